"""The AUROC of finished runs, the differences between models, and their intervals over groups of test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .auroc import BATCH, weighted_auroc
from .intervals import resampled, score_interval
from .statistics import CONFIDENCE, Scored, unlike_all_seen

RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """A mean over runs with its 95 % interval, both from 0 to 1, or from -1 to 1 for a difference."""

    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Resampled:
    """The AUROC of one run.

    Attributes:
        value: with all test images; NaN where they are of one class.
        drawn: (R,) of each resample of the groups; NaN where its images are of one class.
        groups: the number of groups that are resampled.
    """

    value: float
    drawn: NDArray[np.float64]
    groups: int


def macro_auroc(run: Scored, weights: NDArray[np.integer]) -> NDArray[np.float64]:
    """The AUROC of `scores.scores`, for each row of weights.

    It is the mean of the one-vs-rest scores over the classes with test images; with two classes, the score of the
    second.

    Args:
        weights: (R, n), how often each image counts.

    Returns:
        (R,); NaN where the images with a weight are of one class.
    """
    classes = list(enumerate(run.classes))
    if len(classes) == 2:
        classes = classes[1:]
    total, defined = np.zeros(len(weights)), np.zeros(len(weights))
    for index, name in classes:
        areas = weighted_auroc(run.probabilities[:, index], run.label == name, weights)
        total += np.nan_to_num(areas)
        defined += ~np.isnan(areas)
    return np.divide(total, defined, out=np.full(len(weights), np.nan), where=defined > 0)


def mean_auroc(runs: Sequence[Scored]) -> float | None:
    """The mean of the AUROC of each run; None where the test images of one are of one class."""
    values = [float(macro_auroc(run, np.ones((1, len(run.label)), dtype=np.int64))[0]) for run in runs]
    return None if np.isnan(values).any() else float(np.mean(values))


def resampled_auroc(runs: Sequence[Scored], resamples: int = RESAMPLES, seed: int = 0) -> list[Resampled]:
    """The AUROC of each run with the same draws of groups for all runs, so that models can be compared.

    A resample draws as many groups as all test splits have together, with replacement; an image counts as often as its
    group was drawn.

    Args:
        runs: of all models; their test splits may differ.
        resamples: R.
        seed: the seed of the resamples.
    """
    names = np.unique(np.concatenate([run.group for run in runs]))
    counts = resampled(names, resamples, seed)
    found = []
    for run in runs:
        index, step = np.searchsorted(names, run.group), max(1, BATCH // len(run.group))
        parts = [macro_auroc(run, counts[first : first + step, index]) for first in range(0, resamples, step)]
        alone = macro_auroc(run, np.ones((1, len(index)), dtype=np.int64))
        found.append(Resampled(float(alone[0]), np.concatenate(parts), len(names)))
    return found


def auroc_estimate(runs: Sequence[Resampled]) -> Score | None:
    """The mean AUROC over runs with its `intervals.score_interval`; None where a test split has one class only."""
    mean, means = _means([run.value for run in runs], [run.drawn for run in runs])
    if np.isnan(mean):
        return None
    return Score(mean, score_interval(mean, means) or unlike_all_seen(mean, runs[0].groups, (0.0, 1.0)))


def auroc_difference(plain: Sequence[Resampled], other: Sequence[Resampled]) -> Score | None:
    """The mean of the AUROC of `other` minus that of `plain`, paired by test split, with its percentile interval.

    None where a test split has one class only.

    Args:
        plain, other: runs with the same test splits in the same order, from one call of `resampled_auroc`.
    """
    pairs = list(zip(plain, other, strict=True))
    mean, means = _means([b.value - a.value for a, b in pairs], [b.drawn - a.drawn for a, b in pairs])
    if np.isnan(mean):
        return None
    if len(means):
        outside = (1 - CONFIDENCE) / 2
        low, high = np.quantile(means, (outside, 1 - outside))
        if high - low > 1e-12:  # not only rounding
            return Score(mean, (float(low), float(high)))
    return Score(mean, unlike_all_seen(mean, plain[0].groups, (-1.0, 1.0)))


def _means(values: Sequence[float], drawn: Sequence[NDArray[np.float64]]) -> tuple[float, NDArray[np.float64]]:
    """The mean over runs, and that of each resample; a run without a score in a resample is left out of its mean."""
    every = np.stack(drawn)
    scored = (~np.isnan(every)).sum(0)
    return float(np.mean(values)), np.nansum(every, 0)[scored > 0] / scored[scored > 0]
