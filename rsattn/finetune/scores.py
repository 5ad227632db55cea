"""How good predictions are, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..cli.command import CommandError

DECIMALS = 7  # torchmetrics divides in float32, which has no more


def scores(labels: Tensor, probabilities: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """The scores of a test split, ready for JSON; shares are from 0 to 1.

    The prediction is the class of the largest probability, the first of equals. Means over classes (`macro`,
    `balanced_accuracy`, and `auroc` of more than two classes) are over those with test images. A class that is never
    predicted has a precision of 0.

    Args:
        labels: (n,) int64, n > 0, each a position in `classes`.
        probabilities: (n, C).
        classes: C names.

    Returns:
        images: n.
        accuracy, balanced_accuracy: of all images; the mean recall.
        macro: {precision, recall, f1}.
        auroc: one class against the rest, the mean; of two classes that of the second. None where only one class has
            test images.
        log_loss: the mean of -log(probability of the true class), natural; no probability counts as less than
            1.2e-7, float32's precision.
        per_class: {name: {precision, recall, f1, images}}; recall and f1 are None without test images.
        confusion: (C, C) counts; rows are true classes, columns predicted ones.
        absent: names of the classes without test images.

    Raises:
        CommandError: a probability is not a number.
    """
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    if not probabilities.isfinite().all():
        raise CommandError(
            "the model's probabilities are not numbers, so its training diverged: train again with a lower --lr"
        )
    predicted, number = probabilities.argmax(1), len(classes)
    images = labels.bincount(minlength=number)
    occurs = images > 0
    each = {
        name: score(predicted, labels, number, average=None)
        for name, score in (
            ("precision", multiclass_precision),
            ("recall", multiclass_recall),
            ("f1", multiclass_f1_score),
        )
    }
    macro = {name: _rounded(values[occurs].mean()) for name, values in each.items()}
    return {
        "images": len(labels),
        "accuracy": _rounded(multiclass_accuracy(predicted, labels, number, average="micro")),
        "balanced_accuracy": macro["recall"],
        "macro": macro,
        "auroc": _auroc(labels, probabilities, occurs),
        "log_loss": _log_loss(labels, probabilities),
        "per_class": {
            name: {
                "precision": _rounded(each["precision"][index]),
                "recall": _rounded(each["recall"][index]) if occurs[index] else None,
                "f1": _rounded(each["f1"][index]) if occurs[index] else None,
                "images": int(images[index]),
            }
            for index, name in enumerate(classes)
        },
        "confusion": multiclass_confusion_matrix(predicted, labels, number).tolist(),
        "absent": [name for name, here in zip(classes, occurs.tolist()) if not here],
    }


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % interval, from 0 to 1, of the share of which `correct` of `n` independent trials were seen; n > 0."""
    from scipy.stats import binomtest

    low, high = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(low), float(high)


def _auroc(labels: Tensor, probabilities: Tensor, occurs: Tensor) -> float | None:
    from torchmetrics.functional.classification import binary_auroc

    here = occurs.nonzero().flatten().tolist()
    if len(here) < 2:
        return None
    if len(occurs) == 2:
        here = [1]
    each = [binary_auroc(probabilities[:, index], (labels == index).long()) for index in here]
    return _rounded(torch.stack(each).mean())


def _log_loss(labels: Tensor, probabilities: Tensor) -> float:
    """With no probability below float32's precision: a 0 is a number too small for it, and has no logarithm."""
    logs = probabilities.double().clamp(min=torch.finfo(torch.float32).eps).log()
    return _rounded(torch.nn.functional.nll_loss(logs, labels))


def _rounded(value: Tensor) -> float:
    return round(float(value), DECIMALS)
