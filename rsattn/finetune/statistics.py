"""How sure a comparison can be: intervals and a test over groups of test images, from predictions alone.

Groups are what is resampled and flipped, never single images: several images of one patient, or augmented copies
of one photograph, are right or wrong together and count as one observation.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cli.command import CommandError, why
from .cells import from_cell

CONFIDENCE = 0.95
EXACT_GROUPS = 14  # up to so many groups that differ, all their sign flips (2^14) are counted
FLIPS = 10_000  # of more groups, so many random ones
BATCH = 4_000_000  # numbers held at once while resampling


@dataclass(frozen=True)
class Predictions:
    """One run's predictions on its test split of n images.

    Attributes:
        file: (n,) text.
        group: (n,) text; images of one group are not independent of each other.
        correct: (n,) bool, whether the predicted class is the true one.
    """

    file: NDArray[np.str_]
    group: NDArray[np.str_]
    correct: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


@dataclass(frozen=True)
class Difference:
    """The accuracy of one model minus that of another on the same test images, both from 0 to 1.

    Attributes:
        mean: over the seeds.
        interval: 95 %, of the mean; what it covers is said at `accuracy_interval`.
        p: two-sided, of the hypothesis that no group favours either model.
        wins, losses, ties: seeds in which the other model was better than the plain one, worse, and equally good.
    """

    mean: float
    interval: tuple[float, float]
    p: float
    wins: int
    losses: int
    ties: int


def read_predictions(path: Path) -> Predictions:
    """The predictions of one run from its predictions.csv.

    Raises:
        CommandError: the file cannot be read, lacks a column or has no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as table:
            rows = list(csv.DictReader(table))
    except (OSError, csv.Error) as error:
        raise CommandError(f"cannot read the predictions {path}: {why(error)}") from None
    needed = ("file", "group", "label", "predicted")
    if not rows or any(row.get(column) is None for row in rows for column in needed):
        raise CommandError(f"{path} is not a run's predictions: it needs rows with the columns {', '.join(needed)}")
    file, group, label, predicted = (np.array([from_cell(row[column]) for row in rows]) for column in needed)
    return Predictions(file, group, label == predicted)


def accuracy_interval(runs: Sequence[Predictions], resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean accuracy over `runs`: percentile bootstrap over groups.

    A resample draws as many groups as there are, with replacement; all images of a group go together, in every run
    that tested them. The interval covers the choice of the test images: other patients, or other photographs, from
    the same source. It does not cover other trainings (further seeds, other training images) nor images from
    elsewhere. With few groups (below about 20) it is somewhat too narrow, as percentile intervals are.

    Where resampling changes nothing, such as when every image was recognised, the interval is that of a share h of
    groups unlike all those seen, the most that an exact binomial interval allows.

    Args:
        runs: at least one; their test splits may differ.
        resamples: how many.
        seed: of the resamples.

    Returns:
        Lower and upper end, from 0 to 1.
    """
    correct, images = _per_group(runs, [run.correct.astype(np.int64) for run in runs])
    return _interval(correct, images, (0.0, 1.0), resamples, seed)


def paired_difference(
    plain: Sequence[Predictions], other: Sequence[Predictions], resamples: int = 2000, seed: int = 0
) -> Difference:
    """How much better `other` is than `plain`, paired by seed.

    The interval is a percentile bootstrap over groups, as in `accuracy_interval`, and covers the same. The p-value is
    of a paired permutation test: a group's difference is how many more of its images the other model recognised, in
    all seeds together, and if the two models were alike it could as well have had the other sign. All flips of signs
    are counted where at most 14 groups differ, else 10,000 random ones and the one that was seen.

    Args:
        plain, other: runs of the same seeds in the same order, at least one.
        resamples: of the interval.
        seed: of the resamples and flips.

    Raises:
        CommandError: the two runs of a pair were tested on other images or groups.
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
    """Holm's adjustment of p-values for how many there are, in the order given."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def _change(plain: Predictions, other: Predictions) -> NDArray[np.int64]:
    """(n,) in the order of `plain`: 1 where only the other model is right, -1 where only the plain one is."""
    here, there = (np.lexsort((run.group, run.file)) for run in (plain, other))
    if not (
        np.array_equal(plain.file[here], other.file[there]) and np.array_equal(plain.group[here], other.group[there])
    ):
        raise CommandError(
            "two runs of one seed were tested on different images or groups, so they cannot be compared: "
            "the data changed between them; compare again in a new folder"
        )
    change = np.empty(len(here), dtype=np.int64)
    change[here] = other.correct[there].astype(np.int64) - plain.correct[here]
    return change


def _per_group(
    runs: Sequence[Predictions], values: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each (runs, groups): the sums of the images' values, and how many images; 0 where a run has none."""
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
    """Percentile bootstrap of the mean over runs of sum / count, (runs, groups) each; `bounds` of what it can be."""
    from scipy.stats import bootstrap

    groups = sums.shape[1]

    def mean(chosen: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        """(..., groups) indices -> (...): a run of which no group was drawn is left out of the mean."""
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
        if high - low > 1e-12:  # not merely rounding
            return float(low), float(high)
    return _unlike_all_seen(float(mean(everything)), groups, bounds)


def _unlike_all_seen(mean: float, groups: int, bounds: tuple[float, float]) -> tuple[float, float]:
    """What the mean could be if groups unlike all those seen were as frequent as an exact interval allows."""
    from scipy.stats import binomtest

    share = 1.0 - float(binomtest(groups, groups).proportion_ci(CONFIDENCE, method="exact").low)
    low, high = (mean + share * (bound - mean) for bound in bounds)
    return low, high


def _sign_flip_p(difference: NDArray[np.float64], seed: int) -> float:
    """Two-sided p of the sum of (groups,) whole numbers if each could as well have had the other sign."""
    from scipy.stats import permutation_test

    differing = difference[difference != 0]
    if len(differing) < 2:
        return 1.0  # of a single group either sign is as likely
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
