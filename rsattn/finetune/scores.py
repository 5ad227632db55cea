"""Scores of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..cli.command import CommandError

DECIMALS = 7  # the precision of float32, in which torchmetrics computes


def scores(labels: Tensor, probabilities: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """The scores of a test split as plain values; shares are from 0 to 1.

    The prediction is the class with the largest probability, the first of equal ones. Averages over classes (`macro`,
    `balanced_accuracy`, and `auroc` with more than two classes) include the classes with test images. The precision of
    a class that is never predicted is undefined; its average counts it as 0, as scikit-learn does.

    Args:
        labels: (n,) int64, n > 0, indices in `classes`.
        probabilities: (n, C).
        classes: C names.

    Returns:
        images: n.
        accuracy, balanced_accuracy: over all images; the mean recall.
        macro: {precision, recall, f1}.
        auroc: the mean over one-vs-rest scores; with two classes, the score of the second. None where only one class
            has test images.
        log_loss: the mean of -ln(probability of the true class); probabilities are at least 1.2e-7, the precision of
            float32.
        majority: {class, accuracy}: the class with the most test images, the first of equal ones, and the accuracy of
            a model that always predicts it.
        never_predicted: names of the classes with test images that are never predicted.
        per_class: {name: {precision, recall, f1, images}}; recall and f1 are None without test images, precision is
            None without predictions.
        confusion: (C, C) counts; rows are true classes, columns predicted ones.
        absent: names of the classes without test images.

    Raises:
        CommandError: a probability is NaN or infinite.
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
            "the probabilities of the model are NaN, so its training diverged: train again with a lower --lr"
        )
    predicted, number = probabilities.argmax(1), len(classes)
    images, predictions = labels.bincount(minlength=number), predicted.bincount(minlength=number)
    occurs = images > 0
    majority = int(images.argmax())
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
        "majority": {"class": classes[majority], "accuracy": _rounded(images[majority] / len(labels))},
        "never_predicted": [name for name, c, p in zip(classes, images.tolist(), predictions.tolist()) if c and not p],
        "auroc": _auroc(labels, probabilities, occurs),
        "log_loss": _log_loss(labels, probabilities),
        "per_class": {
            name: {
                "precision": _rounded(each["precision"][index]) if predictions[index] else None,
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
    """The 95 % Wilson interval, from 0 to 1, of a share with `correct` of `n` independent trials; n > 0."""
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
    """Probabilities are clamped to the precision of float32, because a 0 has no logarithm."""
    logs = probabilities.double().clamp(min=torch.finfo(torch.float32).eps).log()
    return _rounded(torch.nn.functional.nll_loss(logs, labels))


def _rounded(value: Tensor) -> float:
    return round(float(value), DECIMALS)
