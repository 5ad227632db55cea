"""Average precision with weighted images, for many sets of weights at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .auroc import BATCH


def weighted_average_precision(scores: ArrayLike, positive: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """The average precision for each row of weights, as `sklearn.metrics.average_precision_score` with `sample_weight`.

    Args:
        scores: (n,) finite numbers.
        positive: (n,) bool.
        weights: (R, n), 0 or larger.

    Returns:
        (R,), from 0 to 1; NaN where the positive images have no weight.
    """
    values, positives, rows = np.asarray(scores), np.asarray(positive, dtype=bool), np.asarray(weights)
    order = np.argsort(-values, kind="stable")
    ranked, positives = values[order], positives[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])  # of equal scores
    result = np.full(len(rows), np.nan)
    step = max(1, BATCH // max(1, len(values)))
    for first in range(0, len(rows), step):
        batch = rows[first : first + step, order].astype(np.float64)
        found, called = (batch * positives).cumsum(1)[:, ends], batch.cumsum(1)[:, ends]
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        gained = np.diff(found, axis=1, prepend=0.0)
        every = found[:, -1]
        np.divide((gained * precision).sum(1), every, out=result[first : first + step], where=every > 0)
    return result
