"""How the result of a model on outside images differs from that on its own test split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
}


def shift(inside: Mapping[str, Any], outside: Mapping[str, Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The scores on both tests and their differences, outside minus inside.

    The interval of a difference comes from those of both scores, which are independent (MOVER, Zou & Donner 2008).

    Args:
        inside, outside: with the keys scores, intervals and calibration of metrics.json.
        classes: names.

    Returns:
        A list of {name, inside, outside: {value, interval}, difference: {value, interval}}; values and intervals are
        from 0 to 1, and None where undefined.
    """
    one_class = sum(one["images"] > 0 for one in outside["scores"]["per_class"].values()) == 1
    rows = [
        (words, _overall(inside, key), _overall(outside, key))
        for key, words in SCORES.items()
        if not (one_class and key == "accuracy")  # it is the sensitivity of that class, not comparable with inside
    ]
    rows += [(f"sensitivity: {name}", _recall(inside, name), _recall(outside, name)) for name in classes]
    for key, words in {"ece": "expected calibration error", "brier": "Brier score"}.items():
        rows.append((words, (inside["calibration"][key], None), (outside["calibration"][key], None)))
    rows.append(("log loss", (inside["scores"]["log_loss"], None), (outside["scores"]["log_loss"], None)))
    return [
        {
            "name": name,
            "inside": {"value": before[0], "interval": before[1]},
            "outside": {"value": after[0], "interval": after[1]},
            "difference": difference(before, after),
        }
        for name, before, after in rows
    ]


Score = tuple[float | None, Sequence[float] | None]


def difference(before: Score, after: Score) -> dict[str, Any]:
    """{value, interval} of after minus before, from the values and intervals of independent samples."""
    (one, ends), (other, other_ends) = before, after
    if one is None or other is None:
        return {"value": None, "interval": None}
    value = other - one
    if ends is None or other_ends is None:
        return {"value": value, "interval": None}
    low = value - math.hypot(other - other_ends[0], ends[1] - one)
    high = value + math.hypot(other_ends[1] - other, one - ends[0])
    return {"value": value, "interval": (low, high)}


def brightness(pixels: Sequence[Tensor]) -> dict[str, float]:
    """Mean and standard deviation of the pixels (3, S, S) uint8 of an image, from 0 to 1, averaged over images."""
    each = [(image.float().mean() / 255, image.float().std() / 255) for image in pixels]
    mean, spread = torch.tensor(each).mean(0).tolist()
    return {"brightness": round(mean, 4), "contrast": round(spread, 4)}


def _overall(of: Mapping[str, Any], key: str) -> Score:
    scores = of["scores"]
    return scores["macro"]["f1"] if key == "macro_f1" else scores[key], of["intervals"][key]


def _recall(of: Mapping[str, Any], name: str) -> Score:
    return of["scores"]["per_class"][name]["recall"], of["intervals"]["per_class"][name]["recall"]
