"""Calibration: whether images with a probability of 80 % are right in 80 % of cases, and the temperature that helps.

Temperature scaling divides the logits by one number, fitted on the validation split (Guo et al. 2017, "On Calibration
of Modern Neural Networks"). The predicted class stays the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .intervals import share_interval

BINS = 10
LOWEST, HIGHEST = 0.05, 20.0  # temperatures


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the smallest log loss; 1 where it cannot be fitted, because no prediction is wrong.

    Args:
        logits: (n, C), of the validation split.
        labels: (n,) int64.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels) or bool((logits.argmax(1) == labels).all()) or not logits.isfinite().all():
        return 1.0
    exact = logits.double()

    def loss(log_temperature: float) -> float:
        return float(functional.cross_entropy(exact / math.exp(log_temperature), labels))

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    return round(math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x), 4)


def calibration(labels: Tensor, probabilities: Tensor, groups: list[str]) -> dict[str, Any]:
    """How well probabilities agree with the shares of correct predictions, as plain values.

    Args:
        labels: (n,) int64.
        probabilities: (n, C).
        groups: n names, for the intervals.

    Returns:
        ece: the expected calibration error of the predicted class, in 10 bins of equal width, from 0 to 1.
        brier: the Brier score: the squared error, summed over classes; with two classes, that of one, as usual.
        bins: a list of {range, images, confidence (mean probability), accuracy, interval} of the bins with images.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    number = probabilities.shape[1]
    confidence, predicted = probabilities.max(1)
    right = (predicted == labels).numpy()
    place = np.clip(np.ceil(confidence.double().numpy() * BINS).astype(int) - 1, 0, BINS - 1)
    names = np.asarray(groups)
    bins = [
        {
            "range": [index / BINS, (index + 1) / BINS],
            "images": int(chosen.sum()),
            "confidence": round(float(confidence.double().numpy()[chosen].mean()), 6),
            "accuracy": round(float(right[chosen].mean()), 6),
            "interval": share_interval(right[chosen], names[chosen]),
        }
        for index in range(BINS)
        if (chosen := place == index).any()
    ]
    return {
        "ece": round(float(multiclass_calibration_error(probabilities, labels, number, n_bins=BINS)), 6),
        "brier": brier(labels, probabilities),
        "bins": bins,
    }


def brier(labels: Tensor, probabilities: Tensor) -> float:
    """scikit-learn has the score of several classes only from version 1.7 on."""
    true = functional.one_hot(labels, probabilities.shape[1]).double()
    error = torch.square(probabilities.double() - true).sum(1).mean()
    return round(float(error / 2 if probabilities.shape[1] == 2 else error), 6)
