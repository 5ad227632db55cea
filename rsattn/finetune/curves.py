"""ROC and precision-recall curves of a test, with pointwise 95 % bands from a bootstrap over groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .intervals import resampled

GRID = np.linspace(0, 1, 101)
MOST_CURVES = 8  # of the classes with the lowest AUROC, where there are more
RESAMPLES = 300


def curves(
    labels: Tensor, probabilities: Tensor, groups: Sequence[str], classes: Sequence[str], aurocs: Sequence[float | None]
) -> dict[str, Any]:
    """The curves of each class against the others, as plain values; with two classes, only of the second.

    Args:
        labels: (n,) int64.
        probabilities: (n, C).
        groups: n names.
        classes: C names.
        aurocs: of the classes; those without one have no curve.

    Returns:
        {name: {roc: {fpr, tpr, low, high}, pr: {recall, precision, low, high}, prevalence}}. fpr and recall are a grid
        from 0 to 1 in 101 steps; low and high are the 2.5 % and 97.5 % quantiles of the resamples at each.
    """
    known = [index for index, auroc in enumerate(aurocs) if auroc is not None]
    drawn = [1] if len(classes) == 2 and 1 in known else sorted(known, key=lambda index: aurocs[index] or 0)
    weights = resampled(np.asarray(groups), RESAMPLES)
    found = {}
    for index in sorted(drawn[:MOST_CURVES]):
        positive, scores = (labels == index).numpy(), probabilities[:, index].numpy()
        roc, pr = _curves(scores, positive, np.ones((1, len(scores))))
        rocs, prs = _curves(scores, positive, weights)
        found[classes[index]] = {
            "roc": {"fpr": _list(GRID), "tpr": _list(roc[0]), **_band(rocs)},
            "pr": {"recall": _list(GRID), "precision": _list(pr[0]), **_band(prs)},
            "prevalence": round(float(positive.mean()), 6),
        }
    return found


def _curves(
    scores: NDArray[np.float32], positive: NDArray[np.bool_], weights: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each row of weights, the sensitivity at each false-positive rate, and the precision at each recall."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    is_positive = positive[order]
    rocs, prs = np.full((len(weights), len(GRID)), np.nan), np.full((len(weights), len(GRID)), np.nan)
    for row, weight in enumerate(weights):
        drawn = weight[order]
        true, false = np.cumsum(drawn * is_positive)[ends], np.cumsum(drawn * ~is_positive)[ends]
        if true[-1] == 0 or false[-1] == 0:
            continue
        recall, fpr = np.r_[0, true / true[-1]], np.r_[0, false / false[-1]]
        # The upper end of a vertical step.
        rocs[row] = np.interp(GRID, fpr - 1e-12 * np.arange(len(fpr))[::-1], recall)
        precision = true / np.maximum(true + false, 1)
        reached = np.searchsorted(recall[1:], np.maximum(GRID, 1e-9) - 1e-12)
        prs[row] = precision[reached]
    return rocs, prs


def _band(drawn: NDArray[np.float64]) -> dict[str, list[float]]:
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return {"low": _list(low), "high": _list(high)}


def _list(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 4) for value in values]
