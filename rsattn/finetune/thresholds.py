"""Operating points: thresholds on the probability of a class that were chosen on the validation split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .intervals import share_interval

LEAST_SENSITIVITY = 0.95
RULES = {
    "youden": "largest sensitivity + specificity",
    "sensitivity": f"sensitivity of at least {100 * LEAST_SENSITIVITY:.0f} %",
}


def chosen_thresholds(labels: Tensor, probabilities: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Two thresholds for each class against the others, chosen on the validation split.

    An image is called positive where the probability of the class is at least the threshold. Of equally good ones, the
    highest is taken.

    Args:
        labels: (n,) int64, of the validation split.
        probabilities: (n, C).
        classes: C names.

    Returns:
        A list of {class, rule ("youden" or "sensitivity"), threshold, validation: {sensitivity, specificity}}, without
        classes that have no validation images, or all.
    """
    from sklearn.metrics import roc_curve

    chosen = []
    for index, name in enumerate(classes):
        positive = (labels == index).numpy()
        if not positive.any() or positive.all():
            continue
        false, true, thresholds = roc_curve(positive, probabilities[:, index].numpy(), drop_intermediate=False)
        places = {
            "youden": int(np.argmax(true - false)),
            "sensitivity": int(np.argmax(true >= LEAST_SENSITIVITY)),
        }
        for rule, place in places.items():
            chosen.append(
                {
                    "class": name,
                    "rule": rule,
                    "threshold": min(float(thresholds[place]), 1.0),
                    "validation": {
                        "sensitivity": round(float(true[place]), 6),
                        "specificity": round(float(1 - false[place]), 6),
                    },
                }
            )
    return chosen


def at_thresholds(
    chosen: Sequence[Mapping[str, Any]],
    labels: Tensor,
    probabilities: Tensor,
    groups: Sequence[str],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """The results of a test at these thresholds.

    Returns:
        `chosen`, each with sensitivity, specificity, ppv and npv (positive and negative predictive value, at the test's
        own prevalence), each {value, interval} or None without images.
    """
    names = np.asarray(groups)
    results = []
    for one in chosen:
        index = list(classes).index(one["class"])
        positive = (labels == index).numpy()
        # float32, as `roc_curve` has seen them
        called = probabilities[:, index].numpy() >= np.float32(one["threshold"])
        results.append(
            {
                **one,
                "sensitivity": _share(called[positive], names[positive]),
                "specificity": _share(~called[~positive], names[~positive]),
                "ppv": _share(positive[called], names[called]),
                "npv": _share(~positive[~called], names[~called]),
            }
        )
    return results


def _share(hits: Any, groups: Any) -> dict[str, Any] | None:
    interval = share_interval(hits, groups)
    return None if interval is None else {"value": round(float(hits.mean()), 6), "interval": interval}
