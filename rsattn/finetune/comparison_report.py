"""The results of a comparison as sentences, as a table in the terminal, and as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..cli import drawing
from .folders import in_words
from .gates import FROZEN_AT_0
from .statistics import Difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Group
    from rich.table import Table

TEMPLATE = Path(__file__).with_name("comparison.html.j2")
SEED, MEAN = "#9aa7b4", "#0b6e75"
OF_PAIRS = ("difference", "its 95 % interval", "p", "p, adjusted")  # the columns that the baseline lacks
ALPHA = 0.05
FEW_RUNS = 5  # with fewer runs per model, the spread between seeds says little


@dataclass(frozen=True)
class TestSplit:
    """The test split of one seed.

    Attributes:
        images, groups: the number of images, and of their groups.
        majority: the share of the most frequent class, which is the accuracy of always answering it.
        near_identical: the number of images that look the same as a training image.
    """

    __test__ = False  # not one of pytest's

    images: int
    groups: int
    majority: float
    near_identical: int = 0


@dataclass(frozen=True)
class Result:
    """The result of one model over its finished runs; scores are from 0 to 1.

    Attributes:
        label: the name of the model.
        accuracies: seed -> accuracy.
        mean: the mean accuracy.
        sd: the standard deviation over seeds; None with one seed.
        interval: the 95 % interval of the mean, see `statistics.accuracy_interval`.
        precision, recall, f1: macro averages, averaged over seeds.
        parameters: the number of parameters.
        seconds: the training time, averaged over seeds.
        options: the options of its runs, without seed and folder.
        gates_frozen_at_0: the gates of its residual were 0 and not trained, so it equals the plain model.
    """

    label: str
    accuracies: dict[int, float]
    mean: float
    sd: float | None
    interval: tuple[float, float]
    precision: float
    recall: float
    f1: float
    parameters: int
    seconds: float
    options: dict[str, Any]
    gates_frozen_at_0: bool = False


@dataclass(frozen=True)
class Pair:
    """A model and the baseline, over the seeds that both have; `adjusted_p` has Holm's correction over all pairs."""

    label: str
    baseline: str
    difference: Difference
    adjusted_p: float


@dataclass(frozen=True)
class Failure:
    """A failed run, and the reason."""

    label: str
    seed: int
    why: str


@dataclass(frozen=True)
class Comparison:
    """The content of comparison.json.

    Attributes:
        seeds: the requested seeds.
        runs, finished: the number of requested runs, and of finished ones.
        images, groups: the number of distinct ones in the test splits of all seeds.
        test_splits: seed -> size of its test split.
        results: one for each model.
        pairs: one for each model except the first, the baseline.
        failures: the failed runs.
    """

    seeds: list[int]
    runs: int
    finished: int
    images: int
    groups: int
    test_splits: dict[int, TestSplit]
    results: list[Result]
    pairs: list[Pair]
    failures: list[Failure]


def verdict(pair: Pair) -> str:
    """The verdict: "none" where the interval of the difference includes 0, "shown" where p confirms it, else "open"."""
    low, high = pair.difference.interval
    if low <= 0.0 <= high:
        return "none"
    return "shown" if pair.adjusted_p < ALPHA else "open"


def headline(comparison: Comparison) -> str:
    """The result in one sentence."""
    pairs = comparison.pairs
    if not pairs:
        first = comparison.results[0]
        return f"{first.label}: {percent(first.mean)} of the test images classified correctly"
    if len(pairs) > 1:
        shown = sum(verdict(pair) == "shown" for pair in pairs)
        differences = "difference" if shown == 1 else "differences"
        return f"{len(pairs)} models compared with {pairs[0].baseline}: {shown or 'no'} significant {differences}"
    (pair,) = pairs
    return {
        "none": f"No significant difference between {pair.label} and {pair.baseline}",
        "open": f"It is unclear whether {pair.label} and {pair.baseline} differ",
        "shown": f"In these runs, {pair.label} was {_more_or_less(pair)} accurate than {pair.baseline}",
    }[verdict(pair)]


def sentences(comparison: Comparison) -> list[str]:
    """What the numbers show, and what they do not show, in sentences."""
    return [
        *(_finding(pair, len(comparison.pairs)) for pair in comparison.pairs),
        *(f"{result.label}: {FROZEN_AT_0}." for result in comparison.results if result.gates_frozen_at_0),
        _basis(comparison),
        *_constant_answer(comparison),
        *_cautions(comparison),
    ]


def _finding(pair: Pair, comparisons: int) -> str:
    difference = pair.difference
    low, high = difference.interval
    numbers = (
        f"{points(difference.mean)} percentage points of accuracy (95 % interval {points(low)} to {points(high)}, "
        f"p {p_value(difference.p)}"
        + (f"; p {p_value(pair.adjusted_p)} adjusted for {comparisons} comparisons)" if comparisons > 1 else ")")
    )
    said = {
        "none": f"No significant difference between {pair.label} and {pair.baseline}: {numbers}. With this number of "
        f"test images, a difference below about {100 * (high - low) / 2:.1f} points cannot be detected.",
        "open": f"It is unclear whether {pair.label} and {pair.baseline} differ: {numbers}. The interval excludes 0, "
        "but the permutation test is not significant.",
        "shown": f"In these runs, {pair.label} was {_more_or_less(pair)} accurate than {pair.baseline}: {numbers}.",
    }[verdict(pair)]
    seeds = difference.wins + difference.losses + difference.ties
    if seeds > 1:
        said += f" Over {seeds} seeds, {pair.label} was better in {difference.wins}, worse in {difference.losses}"
        said += f" and equal in {difference.ties}." if difference.ties else "."
    return said


def _basis(comparison: Comparison) -> str:
    """The size of the test."""
    sizes = [split.images for split in comparison.test_splits.values()]
    size = str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
    if len(sizes) == 1:
        return f"Tested on {size} images in {comparison.groups} groups."
    return (
        f"Tested on {size} images with each of {len(sizes)} seeds; "
        f"over all seeds, on {comparison.images} different images in {comparison.groups} groups."
    )


def _constant_answer(comparison: Comparison) -> Iterator[str]:
    """How good it is to always answer the most frequent class, and the models that are not better."""
    splits = comparison.test_splits
    share = fmean(split.majority for split in splits.values())
    if share == 1.0:
        return  # all test images are of one class
    said = f"Always answering the most frequent class of the test images is right for {percent(share)} of them."
    if not_better := [
        result.label
        for result in comparison.results
        if result.interval[0] <= fmean(splits[seed].majority for seed in result.accuracies)
    ]:
        are = "is" if len(not_better) == 1 else "are"
        said += f" {in_words(not_better, 'and')} {are} not shown to be better than that: see the 95 % intervals."
    yield said


def _cautions(comparison: Comparison) -> list[str]:
    splits = comparison.test_splits.values()
    said = []
    if alike := sum(split.near_identical for split in splits):
        groups = comparison.results[0].options["groups"]
        said.append(
            f"{alike} of {sum(split.images for split in splits)} test images, over all seeds, "
            f"{'looks' if alike == 1 else 'look'} the same as a training image"
            + (
                ", so the accuracies are too high; --groups phash prevents this."
                if groups is None
                else f"; if they are copies, the accuracies are too high: give them one group in {groups}."
            )
        )
    said.append(
        "Intervals and p-values describe the chance in the choice of test images from this source. Other training "
        "runs, or images from another source, can change the result more."
    )
    runs = max(len(result.accuracies) for result in comparison.results)
    if runs < FEW_RUNS:
        times = {1: "once", 2: "twice"}.get(runs, f"{runs} times")
        said.append(
            f"Each model was trained only {times}, which says little about chance in training: use {FEW_RUNS} seeds or "
            "more."
        )
    missing = comparison.runs - comparison.finished - len(comparison.failures)
    if missing:
        said.append(f"This report is preliminary: {comparison.finished} of {comparison.runs} runs are finished.")
    if len(comparison.pairs) > 1:
        said.append(
            f"With {len(comparison.pairs)} comparisons, a difference by chance is more likely; the adjusted p-values "
            "(Holm) account for that."
        )
    return said


def table(comparison: Comparison) -> Group:
    """The tables for the terminal: the results of each model, and its difference from the baseline."""
    from rich.console import Group

    every = rows(comparison)
    results = _drawn(every, {name: name for name in ("model", "accuracy, %", "95 % interval", "F1")})
    if not comparison.pairs:
        return Group(results)
    compared = {name: name.removeprefix("its ") for name in _columns(comparison) if name in OF_PAIRS}
    baseline = comparison.pairs[0].baseline
    paired = [row for row in every if row["difference"]]
    return Group(results, _drawn(paired, {"model": f"compared with {baseline}", **compared}))


def _drawn(every: Sequence[Mapping[str, str]], headings: Mapping[str, str]) -> Table:
    """A table of the columns that `headings` name; long names of models are folded."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name, heading in headings.items():
        if name == "model":
            drawn.add_column(Text(heading), overflow="fold")
        else:
            drawn.add_column(heading, justify="right", no_wrap=True)
    for row in every:
        drawn.add_row(*(Text(row[name]) for name in headings))
    return drawn


def _columns(comparison: Comparison) -> list[str]:
    columns = ["model", "accuracy, %", "95 % interval", "precision", "recall", "F1"]
    if comparison.pairs:
        columns += ["difference", "its 95 % interval", "p"]
    if len(comparison.pairs) > 1:
        columns.append("p, adjusted")
    return columns


def rows(comparison: Comparison) -> list[dict[str, str]]:
    """The numbers of each model as text, by column."""
    pairs = {pair.label: pair for pair in comparison.pairs}
    shown = []
    for result in comparison.results:
        row = dict.fromkeys(_columns(comparison), "")
        row["model"] = result.label
        row["accuracy, %"] = f"{100 * result.mean:.1f}"
        if result.sd is not None:
            row["accuracy, %"] += f" \u00b1 {100 * result.sd:.1f}"
        row["95 % interval"] = " to ".join(f"{100 * end:.1f}" for end in result.interval)
        row |= {"precision": f"{result.precision:.3f}", "recall": f"{result.recall:.3f}", "F1": f"{result.f1:.3f}"}
        if pair := pairs.get(result.label):
            row["difference"] = points(pair.difference.mean)
            row["its 95 % interval"] = " to ".join(points(end) for end in pair.difference.interval)
            row["p"] = p_value(pair.difference.p).removeprefix("= ")
            if "p, adjusted" in row:
                row["p, adjusted"] = p_value(pair.adjusted_p).removeprefix("= ")
        shown.append(row)
    return shown


def dot_plot(comparison: Comparison) -> Figure:
    """Plot a row for each model: a dot for each seed, the mean and its interval; thin lines join equal seeds."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    results, seeds = comparison.results, list(comparison.test_splits)
    margins = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    figure = Figure(figsize=(5.4, 1.7 + 0.8 * len(results)), layout=margins, facecolor="white")
    axes = figure.add_subplot()
    for index, seed in enumerate(seeds):
        shift = 0.18 * (index + 1) / len(seeds)  # below the mean, at a separate height for each seed
        places = [(100 * r.accuracies[seed], row + shift) for row, r in enumerate(results) if seed in r.accuracies]
        across, down = zip(*places)
        axes.plot(across, down, color=SEED, lw=0.7, alpha=0.6, marker="o", ms=5, mec="white", mew=0.5)
    for row, result in enumerate(results):
        axes.plot([100 * end for end in result.interval], [row, row], color=MEAN, lw=2.5, solid_capstyle="round")
        axes.plot(100 * result.mean, row, "D", color=MEAN, ms=8, mec="white", mew=1)
        name = result.label if len(result.label) <= 44 else f"{result.label[:43]}\u2026"
        drawing.beside(axes, name, (0, row), (0, 15), xycoords=drawing.ROW, size=11, color=drawing.INK)
    drawing.bare(axes)
    axes.set_ylim(len(results) - 0.55, -0.75)
    axes.set_yticks([])
    axes.grid(axis="x", color="#e4e8ec", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("accuracy on test images, %", size=11, color=drawing.FAINT)
    drawing.title(axes, "Accuracy", "small dots: seeds; diamond and line: mean and 95 % interval")
    return figure


def write_page(path: Path, comparison: Comparison) -> None:
    """Write the self-contained HTML page."""
    from jinja2 import Environment, StrictUndefined

    png = io.BytesIO()
    dot_plot(comparison).savefig(png, format="png", dpi=200)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    path.write_text(
        page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            comparison=comparison,
            headline=headline(comparison),
            sentences=sentences(comparison),
            columns=_columns(comparison),
            rows=rows(comparison),
            plot=base64.b64encode(png.getvalue()).decode(),
            settings=_settings(comparison),
            percent=percent,
        ),
        encoding="utf-8",
        errors="replace",
    )


def _settings(comparison: Comparison) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The options that are equal for all models, and those that differ, with the value of each model."""
    told = {name: [result.options[name] for result in comparison.results] for name in comparison.results[0].options}
    alike = {name: values[0] for name, values in told.items() if all(value == values[0] for value in values)}
    return alike, {name: values for name, values in told.items() if name not in alike}


def _more_or_less(pair: Pair) -> str:
    return "more" if pair.difference.mean > 0 else "less"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """The difference in percentage points, with a sign unless it rounds to 0."""
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\u2212")


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"
