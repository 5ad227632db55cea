"""Scores of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
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
        per_class: {name: {precision, recall, f1, specificity, auroc, average_precision, images}}, each of this class
            against the others; None where undefined: precision without predictions, specificity without images of
            other classes, the others without images of the class.
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
        multiclass_specificity,
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
            ("specificity", multiclass_specificity),
        )
    }
    ranked = [_ranking(probabilities[:, index], labels == index) for index in range(number)]
    macro = {name: _rounded(each[name][occurs].mean()) for name in ("precision", "recall", "f1")}
    return {
        "images": len(labels),
        "accuracy": _rounded(multiclass_accuracy(predicted, labels, number, average="micro")),
        "balanced_accuracy": macro["recall"],
        "macro": macro,
        "majority": {"class": classes[majority], "accuracy": _rounded(images[majority] / len(labels))},
        "never_predicted": [name for name, c, p in zip(classes, images.tolist(), predictions.tolist()) if c and not p],
        "auroc": _mean_auroc([auroc for auroc, _ in ranked]),
        "log_loss": _log_loss(labels, probabilities),
        "per_class": {
            name: {
                "precision": _rounded(each["precision"][index]) if predictions[index] else None,
                "recall": _rounded(each["recall"][index]) if occurs[index] else None,
                "f1": _rounded(each["f1"][index]) if occurs[index] else None,
                "specificity": _rounded(each["specificity"][index]) if images[index] < len(labels) else None,
                "auroc": ranked[index][0],
                "average_precision": ranked[index][1],
                "images": int(images[index]),
            }
            for index, name in enumerate(classes)
        },
        "confusion": multiclass_confusion_matrix(predicted, labels, number).tolist(),
        "absent": [name for name, here in zip(classes, occurs.tolist()) if not here],
    }


def _ranking(scores: Tensor, positive: Tensor) -> tuple[float | None, float | None]:
    """The AUROC and the average precision of one class against the others; None where one side has no images."""
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    if not positive.any() or positive.all():
        return None, None
    return _rounded(binary_auroc(scores, positive.long())), _rounded(binary_average_precision(scores, positive.long()))


def _mean_auroc(aurocs: Sequence[float | None]) -> float | None:
    known = [auroc for auroc in (aurocs[1:] if len(aurocs) == 2 else aurocs) if auroc is not None]
    return round(fmean(known), DECIMALS) if known else None


def _log_loss(labels: Tensor, probabilities: Tensor) -> float:
    """Probabilities are clamped to the precision of float32, because a 0 has no logarithm."""
    logs = probabilities.double().clamp(min=torch.finfo(torch.float32).eps).log()
    return _rounded(torch.nn.functional.nll_loss(logs, labels))


def _rounded(value: Tensor) -> float:
    return round(float(value), DECIMALS)
