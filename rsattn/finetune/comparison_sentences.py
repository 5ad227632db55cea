"""The results of a comparison in sentences, and its numbers as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import fmean

from .auroc_intervals import Score
from .comparison import Comparison, GroupPair, Pair, verdict
from .gates import FROZEN_AT_0
from .near_identical import table_of
from .statistics import Difference
from .wording import counted, in_words

FEW_RUNS = 5  # with fewer runs per model, the spread between seeds says little


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
        *(_finding(pair, len(comparison.pairs), comparison.repeats) for pair in comparison.pairs),
        *(_finding_by_group(pair, pair.by_group, len(comparison.pairs)) for pair in comparison.pairs if pair.by_group),
        *(f"{result.label}: {FROZEN_AT_0}." for result in comparison.results if result.gates_frozen_at_0),
        _basis(comparison),
        *_constant_answer(comparison),
        *_cautions(comparison),
    ]


def _finding(pair: Pair, comparisons: int, repeats: str) -> str:
    difference = pair.difference
    low, high = difference.interval
    numbers = _of_accuracy(difference, pair.adjusted_p, comparisons)
    said = {
        "none": f"No significant difference between {pair.label} and {pair.baseline}: {numbers}. With this number of "
        f"test images, a difference below about {100 * (high - low) / 2:.1f} points cannot be detected.",
        "open": f"It is unclear whether {pair.label} and {pair.baseline} differ: {numbers}. The interval excludes 0, "
        "but the permutation test is not significant.",
        "shown": f"In these runs, {pair.label} was {_more_or_less(pair)} accurate than {pair.baseline}: {numbers}.",
    }[verdict(pair)]
    runs = difference.wins + difference.losses + difference.ties
    if runs > 1:
        said += f" Over {runs} {repeats}s, {pair.label} was better in {difference.wins}, worse in {difference.losses}"
        said += f" and equal in {difference.ties}." if difference.ties else "."
    return said + _of_auroc(pair.auroc)


def _of_accuracy(difference: Difference, adjusted_p: float, comparisons: int) -> str:
    ends = " to ".join(map(points, difference.interval))
    adjusted = f"; p {p_value(adjusted_p)} adjusted for {comparisons} comparisons" if comparisons > 1 else ""
    return (
        f"{points(difference.mean)} percentage points of accuracy (95 % interval {ends}, p {p_value(difference.p)}"
        f"{adjusted})"
    )


def _of_auroc(difference: Score | None) -> str:
    if difference is None:
        return ""
    ends = " to ".join(map(signed, difference.interval))
    return f" Difference in AUROC: {signed(difference.mean)} (95 % interval {ends})."


def _finding_by_group(pair: Pair, by_group: GroupPair, comparisons: int) -> str:
    """The differences for patients or slides, for which the probabilities of the images are averaged."""
    numbers = _of_accuracy(by_group.accuracy, by_group.adjusted_p, comparisons)
    return f"By group, {pair.label} compared with {pair.baseline}: {numbers}.{_of_auroc(by_group.auroc)}"


def _basis(comparison: Comparison) -> str:
    """The size of the test."""
    sizes = [split.images for split in comparison.test_splits.values()]
    size = str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
    if comparison.folds:
        of = "" if len(sizes) == comparison.folds else f" of {comparison.folds}"
        images = f"{comparison.images} images in {comparison.groups} groups"
        return f"Tested on {images}, each once, in {counted(len(sizes), 'fold')}{of}."
    if len(sizes) == 1:
        return f"Tested on {size} images in {comparison.groups} groups."
    return (
        f"Tested on {size} images with each of {len(sizes)} seeds; "
        f"over all seeds, on {comparison.images} different images in {comparison.groups} groups."
    )


def _constant_answer(comparison: Comparison) -> Iterator[str]:
    """How good it is to always answer the most frequent class, and the models that are not better."""
    splits = comparison.test_splits
    share = _majority(comparison, splits)
    if share == 1.0:
        return  # all test images are of one class
    said = f"Always answering the most frequent class of the test images is right for {percent(share)} of them."
    if not_better := [
        result.label for result in comparison.results if result.interval[0] <= _majority(comparison, result.accuracies)
    ]:
        are = "is" if len(not_better) == 1 else "are"
        said += f" {in_words(not_better, 'and')} {are} not shown to be better than that: see the 95 % intervals."
    yield said


def _majority(comparison: Comparison, numbers: Iterable[int]) -> float:
    """The accuracy of always answering the most frequent class, in these splits: as that of models, see `Result`."""
    splits = [comparison.test_splits[number] for number in numbers]
    weights = [split.images for split in splits] if comparison.folds else None
    return fmean((split.majority for split in splits), weights)


def _cautions(comparison: Comparison) -> list[str]:
    splits = comparison.test_splits.values()
    said = []
    if alike := sum(split.near_identical for split in splits):
        groups = comparison.results[0].options["groups"]
        said.append(
            f"{alike} of {sum(split.images for split in splits)} test images, over all {comparison.repeats}s, "
            f"{'looks' if alike == 1 else 'look'} the same as a training image"
            + (
                ", so the accuracies are too high; --groups phash prevents this."
                if groups is None
                else f"; if they are copies, the accuracies are too high: give them one group in {table_of(groups)}."
            )
        )
    said.append(
        "Intervals and p-values describe the chance in the choice of test images from this source. Other training "
        "runs, or images from another source, can change the result more."
    )
    if comparison.folds:
        said.append(
            "The folds share training images, so the intervals describe the choice of images, not that of training "
            "sets."
        )
        if any(result.auroc for result in comparison.results):
            said.append(_pooled_auroc(comparison))
    runs = max(len(result.accuracies) for result in comparison.results)
    if runs < FEW_RUNS and not comparison.folds:
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


def _pooled_auroc(comparison: Comparison) -> str:
    """The limit of one AUROC for all folds; source: Forman and Scholz 2010, "Apples-to-apples in cross-validation
    studies: pitfalls in classifier performance measurement", SIGKDD Explorations 12 (1)."""
    said = (
        "The AUROC ranks the images of all folds together, although each fold has a model of its own, whose "
        "probabilities may be higher or lower than those of the others. This can change the AUROC (Forman and Scholz "
        "2010)."
    )
    means = [f"{one.label} {one.fold_auroc:.3f}" for one in comparison.results if one.fold_auroc is not None]
    return f"{said} Mean of the AUROC of each fold: {', '.join(means)}." if means else said


def _more_or_less(pair: Pair) -> str:
    return "more" if pair.difference.mean > 0 else "less"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """The difference in percentage points, with a sign unless it rounds to 0."""
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\u2212")


def signed(value: float) -> str:
    """The difference of two AUROC, with a sign unless it rounds to 0."""
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text.replace("-", "\u2212")


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"
