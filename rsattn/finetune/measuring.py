"""Everything that is measured of a model on a test: scores, intervals, calibration, thresholds, results by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .by_group import by_group
from .calibration import calibration
from .curves import curves
from .intervals import intervals
from .scores import scores
from .thresholds import at_thresholds


def measured(
    labels: Tensor,
    logits: Tensor,
    temperature: float,
    groups: Sequence[str],
    classes: Sequence[str],
    thresholds: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The measurements as plain values.

    Args:
        labels: (n,) int64, indices in `classes`.
        logits: (n, C).
        temperature: the logits are divided by it.
        groups: n names; the images of a group are not independent.
        classes: C names.
        thresholds: from `chosen_thresholds` on the validation split.

    Returns:
        scores, intervals, thresholds: as their functions return them.
        calibration: that of the probabilities, with temperature, and before (without it): {ece, brier, log_loss}.
        by_group: null, or the scores and intervals of the mean probabilities of each group of several images, with
            left_out, the number of groups with several labels.
        curves: as `curves.curves` returns them.

    Raises:
        CommandError: a probability is NaN or infinite.
    """
    plain, probabilities = logits.softmax(1), (logits / temperature).softmax(1)
    described, before = scores(labels, probabilities, classes), scores(labels, plain, classes)
    uncalibrated = calibration(labels, plain, list(groups))
    return {
        "scores": described,
        "intervals": intervals(labels, probabilities, groups, classes),
        "calibration": {
            **calibration(labels, probabilities, list(groups)),
            "temperature": temperature,
            "before": {
                "ece": uncalibrated["ece"],
                "brier": uncalibrated["brier"],
                "log_loss": before["log_loss"],
                "bins": uncalibrated["bins"],
            },
        },
        "thresholds": at_thresholds(thresholds, labels, probabilities, groups, classes),
        "by_group": _by_group(labels, probabilities, groups, classes),
        "curves": curves(
            labels, probabilities, groups, classes, [described["per_class"][name]["auroc"] for name in classes]
        ),
    }


def _by_group(
    labels: Tensor, probabilities: Tensor, groups: Sequence[str], classes: Sequence[str]
) -> dict[str, Any] | None:
    if len(set(groups)) == len(groups):
        return None
    mean = by_group(labels.numpy(), probabilities.double().numpy(), np.asarray(groups))
    if not len(mean.labels):
        return None
    of_groups, chances = torch.from_numpy(mean.labels), torch.from_numpy(mean.probabilities).float()
    return {
        "groups": len(mean.labels),
        "left_out": mean.left_out,
        "scores": scores(of_groups, chances, classes),
        "intervals": intervals(of_groups, chances, mean.groups.tolist(), classes),
    }
