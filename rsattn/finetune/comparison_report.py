"""What a comparison found: as sentences, a table in the terminal and a page that stands alone."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import drawing
from .gates import FROZEN_AT_0
from .statistics import Difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

TEMPLATE = Path(__file__).with_name("comparison.html.j2")
SEED, MEAN = "#9aa7b4", "#0b6e75"
ALPHA = 0.05
FEW_TRAININGS = 5  # from so many on a spread between seeds says something


@dataclass(frozen=True)
class TestSplit:
    """How many images one seed's test split has, and in how many groups."""

    __test__ = False  # not one of pytest's

    images: int
    groups: int


@dataclass(frozen=True)
class Result:
    """One model over its finished runs; shares from 0 to 1.

    Attributes:
        label: what it is called.
        accuracies: seed -> accuracy.
        mean: of the accuracies.
        sd: standard deviation over seeds; None with one seed.
        interval: 95 %, of the mean, as `statistics.accuracy_interval` says.
        precision, recall, f1: macro means, and means over seeds.
        parameters: of the model.
        seconds: of training, mean over seeds.
        options: without seed and folder.
        gates_frozen_at_0: the gates of its residual were 0 and not trained, so it is the plain model.
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
    """A model against the reference, over the seeds that both have; `adjusted_p` is Holm's, over all pairs."""

    label: str
    reference: str
    difference: Difference
    adjusted_p: float


@dataclass(frozen=True)
class Failure:
    """A run that could not be done, and why."""

    label: str
    seed: int
    why: str


@dataclass(frozen=True)
class Comparison:
    """comparison.json, field by field.

    Attributes:
        seeds: asked for.
        runs, finished: how many were asked for, and how many are done.
        images, groups: different ones, in the test splits of all seeds together.
        test_splits: seed -> its size.
        results: a model each.
        pairs: every other model against the first.
        failures: runs that could not be done.
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
    """ "none" where the interval of the difference holds 0, "open" where the test does not confirm it, else "shown"."""
    low, high = pair.difference.interval
    if low <= 0.0 <= high:
        return "none"
    return "shown" if pair.adjusted_p < ALPHA else "open"


def headline(comparison: Comparison) -> str:
    """The result in one sentence."""
    pairs = comparison.pairs
    if not pairs:
        first = comparison.results[0]
        return f"{first.label}: {percent(first.mean)} of the test images recognised"
    if len(pairs) > 1:
        shown = sum(verdict(pair) == "shown" for pair in pairs)
        were = "difference was" if shown == 1 else "differences were"
        return f"{len(pairs)} models against {pairs[0].reference}: {shown or 'no'} {were} shown"
    (pair,) = pairs
    return {
        "none": f"No difference between {pair.label} and {pair.reference} was shown",
        "open": f"Whether {pair.label} and {pair.reference} differ stays open",
        "shown": f"In these trainings {pair.label} was {_more_or_less(pair)} accurate than {pair.reference}",
    }[verdict(pair)]


def sentences(comparison: Comparison) -> list[str]:
    """What the numbers say and what they do not, in plain words; no more than they show."""
    return [
        *(_finding(pair, len(comparison.pairs)) for pair in comparison.pairs),
        *(f"{result.label}: {FROZEN_AT_0}." for result in comparison.results if result.gates_frozen_at_0),
        _basis(comparison),
        *_cautions(comparison),
    ]


def _finding(pair: Pair, comparisons: int) -> str:
    difference = pair.difference
    low, high = difference.interval
    numbers = (
        f"{points(difference.mean)} percentage points of accuracy (95 % interval {points(low)} to {points(high)}, "
        f"p {p_value(difference.p)}"
        + (f"; adjusted for {comparisons} comparisons p {p_value(pair.adjusted_p)})" if comparisons > 1 else ")")
    )
    said = {
        "none": f"No difference between {pair.label} and {pair.reference} was shown: {numbers}. With so many test "
        f"images one below about {100 * (high - low) / 2:.1f} points goes unseen.",
        "open": f"Whether {pair.label} and {pair.reference} differ stays open: {numbers}; the interval leaves out 0, "
        "but the test does not confirm it.",
        "shown": f"In these trainings {pair.label} was {_more_or_less(pair)} accurate than {pair.reference}: "
        f"{numbers}.",
    }[verdict(pair)]
    seeds = difference.wins + difference.losses + difference.ties
    if seeds > 1:
        said += f" Of {seeds} seeds it was better in {difference.wins}, worse in {difference.losses}"
        said += f", equal in {difference.ties}." if difference.ties else "."
    return said


def _basis(comparison: Comparison) -> str:
    """How much was tested."""
    sizes = [split.images for split in comparison.test_splits.values()]
    size = str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
    if len(sizes) == 1:
        return f"Tested on {size} images in {comparison.groups} groups."
    return (
        f"Tested on {size} images in each of {len(sizes)} seeds, "
        f"{comparison.images} different ones in {comparison.groups} groups."
    )


def _cautions(comparison: Comparison) -> list[str]:
    said = [
        "Intervals and p-values say what other test images from the same source might have given, group by group; "
        "training again, or images from elsewhere, can change more."
    ]
    trainings = max(len(result.accuracies) for result in comparison.results)
    if trainings < FEW_TRAININGS:
        times = {1: "once", 2: "twice"}.get(trainings, f"{trainings} times")
        said.append(
            f"Every model was trained only {times}, so how much of a difference is chance in training is hardly known: "
            f"take {FEW_TRAININGS} seeds or more."
        )
    missing = comparison.runs - comparison.finished - len(comparison.failures)
    if missing:
        said.append(f"An early look: {comparison.finished} of {comparison.runs} runs are finished.")
    if len(comparison.pairs) > 1:
        said.append(
            f"{len(comparison.pairs)} comparisons were made, and with several one is more easily found by chance; "
            "adjusted p-values (Holm) allow for that."
        )
    return said


def table(comparison: Comparison) -> Table:
    """The terminal's table: a row for each model."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = [name for name in _columns(comparison) if name not in ("precision", "recall")]  # wide enough as it is
    drawn = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in columns:
        heading = name.replace(", ", ",\n").replace("95 % ", "95 %\n")
        drawn.add_column(heading, justify="left" if name == "model" else "right", min_width=6, overflow="fold")
    for row in rows(comparison):
        drawn.add_row(*(Text(row[name]) for name in columns))
    return drawn


def _columns(comparison: Comparison) -> list[str]:
    columns = ["model", "accuracy, %", "95 % interval", "precision", "recall", "F1"]
    if comparison.pairs:
        columns += ["difference", "its 95 % interval", "p"]
    if len(comparison.pairs) > 1:
        columns.append("p, adjusted")
    return columns


def rows(comparison: Comparison) -> list[dict[str, str]]:
    """Every model's numbers as they are shown, by column."""
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
    """A row for each model: a dot for each seed, the mean and its interval; thin lines join the same seed's dots."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    results, seeds = comparison.results, list(comparison.test_splits)
    margins = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    figure = Figure(figsize=(5.4, 1.7 + 0.8 * len(results)), layout=margins, facecolor="white")
    axes = figure.add_subplot()
    for index, seed in enumerate(seeds):
        shift = 0.18 * (index + 1) / len(seeds)  # below the mean, each seed at its own height
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
    """The page, with everything it needs inside."""
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
    """What all models were told alike, and what each was told where they differ."""
    told = {name: [result.options[name] for result in comparison.results] for name in comparison.results[0].options}
    alike = {name: values[0] for name, values in told.items() if all(value == values[0] for value in values)}
    return alike, {name: values for name, values in told.items() if name not in alike}


def _more_or_less(pair: Pair) -> str:
    return "more" if pair.difference.mean > 0 else "less"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """In percentage points with a sign; a difference that rounds to nothing has none."""
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\u2212")


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"
