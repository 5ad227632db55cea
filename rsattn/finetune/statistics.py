"""Intervals and a test for the comparison of models, from their predictions.

The unit is a group of test images, not a single image: images of one patient, or augmented copies of one photograph,
tend to be right or wrong together and count as one observation.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cli.command import CommandError, shown, why
from .cells import from_cell

PROBABILITY = "p_"  # the prefix of the columns of probabilities
CONFIDENCE = 0.95
EXACT_GROUPS = 14  # the largest number of differing groups for which all sign flips (2^14) are counted
FLIPS = 10_000  # the number of random sign flips for more groups
BATCH = 4_000_000  # the largest number of values in memory while resampling


@dataclass(frozen=True)
class Predictions:
    """The predictions of one run on its test split of n images.

    Attributes:
        file: (n,) text.
        group: (n,) text; the images of a group are not independent.
        correct: (n,) bool, whether the predicted class is the true one.
    """

    file: NDArray[np.str_]
    group: NDArray[np.str_]
    correct: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


@dataclass(frozen=True)
class Scored(Predictions):
    """Predictions with their probabilities.

    Attributes:
        label: (n,) text, the true class.
        predicted: (n,) text, the predicted class.
        classes: C names.
        probabilities: (n, C) float64.
    """

    label: NDArray[np.str_]
    predicted: NDArray[np.str_]
    classes: tuple[str, ...]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The accuracy of a model minus that of the baseline on the same test images, from -1 to 1.

    Attributes:
        mean: the mean over the seeds.
        interval: the 95 % interval of the mean, see `accuracy_interval`.
        p: the two-sided p-value of the hypothesis that no group favors a model.
        wins, losses, ties: the number of seeds in which the model was better than the baseline, worse, and equal.
    """

    mean: float
    interval: tuple[float, float]
    p: float
    wins: int
    losses: int
    ties: int


def read_predictions(path: Path) -> Scored:
    """Read the predictions.csv of a run.

    Raises:
        CommandError: the file cannot be read, lacks a column, a number or rows.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as table:
            rows = list(csv.DictReader(table))
    except (OSError, csv.Error) as error:
        raise CommandError(f"cannot read the predictions {path}: {why(error)}") from None
    needed = ("file", "group", "label", "predicted")
    if not rows or any(row.get(column) is None for row in rows for column in needed):
        raise CommandError(
            f"{path} is not the predictions.csv of a run: expected rows with the columns {', '.join(needed)}"
        )
    columns = [column for column in rows[0] if column and column.startswith(PROBABILITY)]
    try:
        probabilities = np.array([[float(row[column]) for column in columns] for row in rows])
    except (TypeError, ValueError):
        raise CommandError(f"{path} is damaged: a probability is missing or not a number") from None
    file, group, label, predicted = (np.array([from_cell(row[column]) for row in rows]) for column in needed)
    classes = tuple(column.removeprefix(PROBABILITY) for column in columns)
    if unknown := sorted({*label.tolist()} - {*classes}):
        raise CommandError(f"{path} is damaged: it has no column {PROBABILITY}{shown(unknown[0])}")
    return Scored(file, group, label == predicted, label, predicted, classes, probabilities)


def accuracy_interval(runs: Sequence[Predictions], resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean accuracy over `runs`, from a percentile bootstrap over groups.

    A resample draws as many groups as there are, with replacement; the images of a group stay together in all runs. The
    interval describes the choice of test images: other patients or photographs from the same source. It does not
    describe other training runs (more seeds, other training images) or images from another source. With few groups
    (below about 20), it is somewhat too narrow, as percentile intervals are.

    Where all resamples are equal, for example because all predictions are correct, the interval assumes a share h of
    groups unlike those seen, the largest share that an exact binomial interval allows.

    Args:
        runs: at least one; their test splits may differ.
        resamples: the number of resamples.
        seed: the seed of the resamples.

    Returns:
        The lower and the upper end, from 0 to 1.
    """
    correct, images = _per_group(runs, [run.correct.astype(np.int64) for run in runs])
    return _interval(correct, images, (0.0, 1.0), resamples, seed)


def paired_difference(
    plain: Sequence[Predictions], other: Sequence[Predictions], resamples: int = 2000, seed: int = 0
) -> Difference:
    """The difference in accuracy between `other` and `plain`, the baseline, paired by seed.

    The interval is a percentile bootstrap over groups, see `accuracy_interval`. The p-value is that of a paired
    permutation test. The difference of a group is the number of its images, over all seeds, that only the other model
    classified correctly, minus those that only the baseline did. If the models were equally good, its sign would be
    random. The test counts all sign flips where at most 14 groups differ, else 10,000 random ones and the observed one.

    Args:
        plain, other: runs of the same seeds in the same order, at least one.
        resamples: the number of resamples for the interval.
        seed: the seed of the resamples and flips.

    Raises:
        CommandError: two runs of a pair were tested on different images or groups.
    """
    changes = [_change(one, another) for one, another in zip(plain, other, strict=True)]
    difference, images = _per_group(plain, changes)
    per_seed = [float(change.mean()) for change in changes]
    return Difference(
        mean=float(np.mean(per_seed)),
        interval=_interval(difference, images, (-1.0, 1.0), resamples, seed),
        p=_sign_flip_p(difference.sum(0), seed),
        wins=sum(change > 0 for change in per_seed),
        losses=sum(change < 0 for change in per_seed),
        ties=sum(change == 0 for change in per_seed),
    )


def holm(p: Sequence[float]) -> list[float]:
    """P-values with Holm's correction for multiple tests, in the given order."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def _change(plain: Predictions, other: Predictions) -> NDArray[np.int64]:
    """(n,) in the order of `plain`: 1 where only the other model is right, -1 where only the baseline is."""
    here, there = (np.lexsort((run.group, run.file)) for run in (plain, other))
    if not (
        np.array_equal(plain.file[here], other.file[there]) and np.array_equal(plain.group[here], other.group[there])
    ):
        raise CommandError(
            "two runs that should share their test split were tested on different images or groups, because the data "
            "changed between them: compare again in a new folder"
        )
    change = np.empty(len(here), dtype=np.int64)
    change[here] = other.correct[there].astype(np.int64) - plain.correct[here]
    return change


def _per_group(
    runs: Sequence[Predictions], values: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sums of the values of the images, and the numbers of images, each (runs, groups)."""
    names = np.unique(np.concatenate([run.group for run in runs]))
    index = [np.searchsorted(names, run.group) for run in runs]
    sums = [np.bincount(i, weights=value, minlength=len(names)) for i, value in zip(index, values)]
    counts = [np.bincount(i, minlength=len(names)).astype(np.float64) for i in index]
    return np.stack(sums), np.stack(counts)


def _interval(
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    bounds: tuple[float, float],
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Percentile bootstrap of the mean over runs of sum / count, each (runs, groups); `bounds` limit the mean."""
    from scipy.stats import bootstrap

    groups = sums.shape[1]

    def mean(chosen: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        """(..., groups) indices -> (...); a run without a drawn group is left out of the mean."""
        drawn = counts[:, chosen].sum(axis)
        shares = np.divide(sums[:, chosen].sum(axis), drawn, out=np.zeros_like(drawn), where=drawn > 0)
        tested: NDArray[np.float64] = shares.sum(0) / np.maximum((drawn > 0).sum(0), 1)
        return tested

    everything = np.arange(groups)
    if groups > 1:
        low, high = bootstrap(
            (everything,),
            mean,
            n_resamples=resamples,
            batch=max(1, BATCH // sums.size),
            vectorized=True,
            axis=-1,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        if high - low > 1e-12:  # not only rounding
            return float(low), float(high)
    return unlike_all_seen(float(mean(everything)), groups, bounds)


def unlike_all_seen(mean: float, groups: int, bounds: tuple[float, float]) -> tuple[float, float]:
    """The range of the mean if unseen kinds of groups are as frequent as an exact interval allows."""
    from scipy.stats import binomtest

    share = 1.0 - float(binomtest(groups, groups).proportion_ci(CONFIDENCE, method="exact").low)
    low, high = (mean + share * (bound - mean) for bound in bounds)
    return low, high


def _sign_flip_p(difference: NDArray[np.float64], seed: int) -> float:
    """The two-sided p-value of the sum of (groups,) whole numbers, under random signs."""
    from scipy.stats import permutation_test

    differing = difference[difference != 0]
    if len(differing) < 2:
        return 1.0  # with a single group, both signs are equally likely
    tested = permutation_test(
        (differing,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if len(differing) <= EXACT_GROUPS else FLIPS,
        batch=max(1, BATCH // len(differing)),
        rng=np.random.default_rng(seed),
    )
    return float(tested.pvalue)
