"""A test on images of one class, such as a cohort of patients who all have the disease."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEEDS = "specificity, precision, F1, balanced accuracy and AUROC need images of other classes"


def without_other_classes(found: Mapping[str, Any]) -> dict[str, Any]:
    """The measurements of images of one class, with None for the scores that need images of other classes.

    Specificity, AUROC and average precision are undefined without them already. Precision is 1 and negative predictive
    values are 0 for any model, and F1 and balanced accuracy say nothing beyond the sensitivity, which stays, as do the
    accuracy and the calibration.

    Args:
        found: as `measuring.measured` returns it; only one class has images.
    """
    by_group = found["by_group"]
    return {
        **found,
        **_without(found),
        "thresholds": [{**one, "ppv": None, "npv": None} for one in found["thresholds"]],
        "by_group": by_group and {**by_group, **_without(by_group)},
    }


def _without(found: Mapping[str, Any]) -> dict[str, Any]:
    scores, intervals, nothing = found["scores"], found["intervals"], {"precision": None, "f1": None}
    per_class = {
        key: {name: {**one, **nothing} for name, one in of["per_class"].items()}
        for key, of in (("scores", scores), ("intervals", intervals))
    }
    macro = {**scores["macro"], **nothing}
    return {
        "scores": {**scores, "balanced_accuracy": None, "macro": macro, "per_class": per_class["scores"]},
        "intervals": {
            **intervals,
            "balanced_accuracy": None,
            "macro_f1": None,
            "per_class": per_class["intervals"],
        },
    }
