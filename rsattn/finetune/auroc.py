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
    values, chosen, rows = np.asarray(scores), np.asarray(positive, dtype=bool), np.asarray(weights)
    above, below = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    below = below[np.argsort(values[below], kind="stable")]
    # For each positive image, the number of negative ones with a smaller score, and with a smaller or equal one.
    smaller, not_larger = (np.searchsorted(values[below], values[above], side) for side in ("left", "right"))
    result = np.full(len(rows), np.nan)
    step = max(1, BATCH // max(1, len(values)))
    for first in range(0, len(rows), step):
        batch = rows[first : first + step]
        positives = batch.take(above, axis=1).astype(np.float64)
        negatives = np.zeros((len(batch), len(below) + 1))
        np.cumsum(batch.take(below, axis=1), axis=1, out=negatives[:, 1:])
        wins = (positives * (negatives.take(smaller, axis=1) + negatives.take(not_larger, axis=1))).sum(1) / 2
        pairs = positives.sum(1) * negatives[:, -1]
        np.divide(wins, pairs, out=result[first : first + step], where=pairs > 0)
    return result
