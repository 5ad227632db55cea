"""What a comparison of models found: the content of comparison.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .auroc_intervals import Score
from .statistics import Difference

ALPHA = 0.05


@dataclass(frozen=True)
class TestSplit:
    """The test split of one seed or fold.

    Attributes:
        images, groups: the number of images, and of their groups.
        majority: the share of the most frequent class, which is the accuracy of always answering it; with folds, of
            the most frequent class of all folds.
        near_identical: the number of images that look the same as a training image.
        checksum: the SHA-256 of split.csv; None for runs of earlier versions.
    """

    __test__ = False  # not one of pytest's

    images: int
    groups: int
    majority: float
    near_identical: int = 0
    checksum: str | None = None


@dataclass(frozen=True)
class GroupResult:
    """The result of one model for groups, such as patients: the mean probabilities of their images, see `by_group`.

    Attributes:
        groups: the number of groups with images of one class, in the test splits of all runs.
        left_out: the number of groups with images of several classes.
        accuracy, auroc: over groups; auroc is None where all groups of a test split have one class.
    """

    groups: int
    left_out: int
    accuracy: Score
    auroc: Score | None


@dataclass(frozen=True)
class Result:
    """The result of one model over its finished runs; scores are from 0 to 1.

    The scores of seeds are averaged. The images of folds are taken together.

    Attributes:
        label: the name of the model.
        accuracies: seed or fold -> accuracy.
        mean: the accuracy, averaged over seeds or of the images of all folds.
        sd: the standard deviation over seeds or folds; None with one.
        interval: the 95 % interval of the mean, see `statistics.accuracy_interval`.
        precision, recall, f1: macro averages.
        parameters: the number of parameters.
        seconds: the training time, averaged over runs.
        options: the options of its runs, without those that differ between them.
        gates_frozen_at_0: the gates of its residual were 0 and not trained, so it equals the plain model.
        auroc: see `auroc_intervals.macro_auroc`; None where a test split has images of one class only.
        by_group: None where groups are not patients or slides.
        fold_auroc: the mean of the AUROC of each fold, whose scores are those of one model, unlike in `auroc`; None
            without folds, or where a fold has test images of one class only.
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
    auroc: Score | None = None
    by_group: GroupResult | None = None
    fold_auroc: float | None = None


@dataclass(frozen=True)
class GroupPair:
    """The difference between a model and the baseline for groups, such as patients.

    Attributes:
        accuracy: the difference of the accuracy.
        adjusted_p: the p-value of `accuracy` with Holm's correction over all pairs.
        auroc: the difference of the AUROC; None where a model has none.
    """

    accuracy: Difference
    adjusted_p: float
    auroc: Score | None


@dataclass(frozen=True)
class Pair:
    """A model and the baseline, over the seeds or folds that both have.

    Attributes:
        difference: of the accuracy.
        adjusted_p: the p-value of `difference` with Holm's correction over all pairs.
        auroc: the difference of the AUROC; None where a model has none.
        by_group: None where groups are not patients or slides.
    """

    label: str
    baseline: str
    difference: Difference
    adjusted_p: float
    auroc: Score | None = None
    by_group: GroupPair | None = None


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
        seeds: the requested seeds; with folds, their numbers.
        runs, finished: the number of requested runs, and of finished ones.
        images, groups: the number of distinct ones in the test splits of all seeds.
        test_splits: seed or fold -> its test split.
        results: one for each model.
        pairs: one for each model except the first, the baseline.
        failures: the failed runs.
        folds: the number of folds of a cross-validation; None where test splits were drawn with seeds.
        images_checksum: the SHA-256 of the images, see `checksums.of_images`; None for runs of earlier versions.
        methods: a paragraph for a paper.
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
    folds: int | None = None
    images_checksum: str | None = None
    methods: str = ""

    @property
    def repeats(self) -> str:
        """What the numbers of the runs count: "seed" or "fold"."""
        return "fold" if self.folds else "seed"


def verdict(pair: Pair) -> str:
    """The verdict: "none" where the interval of the difference includes 0, "shown" where p confirms it, else "open"."""
    low, high = pair.difference.interval
    if low <= 0.0 <= high:
        return "none"
    return "shown" if pair.adjusted_p < ALPHA else "open"
