"""The area under the ROC curve with weighted images, for many sets of weights at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

BATCH = 4_000_000  # the largest number of values in memory at once


def weighted_auroc(scores: ArrayLike, positive: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """The area under the ROC curve, for each row of weights.

    It is the probability that a positive image has a larger score than a negative one, where equal scores count a half
    and an image is drawn with a probability in proportion to its weight. In a bootstrap, the weight of an image is how
    often it was drawn. The result is that of `sklearn.metrics.roc_auc_score` with `sample_weight`, which takes one row
    at a time.

    Args:
        scores: (n,) finite numbers.
        positive: (n,) bool.
        weights: (R, n), 0 or larger.

    Returns:
        (R,), from 0 to 1; NaN where the positive or the negative images have no weight.
    """
    values, positives, rows = np.asarray(scores), np.asarray(positive, dtype=bool), np.asarray(weights)
    order = np.argsort(values, kind="stable")
    ranked, positives = values[order], positives[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # of equal scores
    result = np.full(len(rows), np.nan)
    step = max(1, BATCH // max(1, len(values)))
    for first in range(0, len(rows), step):
        batch = rows[first : first + step, order].astype(np.float64)
        above = np.add.reduceat(batch * positives, starts, axis=1)
        below = np.add.reduceat(batch * ~positives, starts, axis=1)
        wins = (above * (below.cumsum(1) - below / 2)).sum(1)
        pairs = above.sum(1) * below.sum(1)
        np.divide(wins, pairs, out=result[first : first + step], where=pairs > 0)
    return result
