"""Operating points: chosen on one set of images, tested on another."""

from __future__ import annotations

import pytest
import torch
from sklearn import metrics

from rsattn.finetune.thresholds import at_thresholds, chosen_thresholds

CLASSES = ["a", "b", "c"]


def drawn(seed: int, n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    logits = 1.5 * torch.nn.functional.one_hot(labels, 3) + torch.randn(n, 3, generator=generator)
    return labels, logits.softmax(1)


def test_no_other_threshold_is_better_on_the_validation_split() -> None:
    labels, probabilities = drawn(0)
    chosen = chosen_thresholds(labels, probabilities, CLASSES)
    assert [(one["class"], one["rule"]) for one in chosen] == [
        (name, rule) for name in CLASSES for rule in ("youden", "sensitivity")
    ]
    for one in chosen:
        index = CLASSES.index(one["class"])
        true, chance = labels == index, probabilities[:, index]

        def at(threshold: float, true: torch.Tensor = true, chance: torch.Tensor = chance) -> tuple[float, float]:
            called = chance >= threshold
            return float(called[true].float().mean()), float((~called)[~true].float().mean())

        told = one["validation"]
        assert at(one["threshold"]) == pytest.approx((told["sensitivity"], told["specificity"]), abs=1e-6)
        if one["rule"] == "youden":
            assert sum(at(one["threshold"])) >= max(sum(at(value)) for value in chance.tolist()) - 1e-6
        else:
            assert told["sensitivity"] >= 0.95
            assert all(at(value)[0] < 0.95 for value in chance.tolist() if value > one["threshold"])


def test_the_test_results_are_scikit_learns() -> None:
    chosen = chosen_thresholds(*drawn(0), CLASSES)
    labels, probabilities = drawn(1)
    groups = [str(i) for i in range(len(labels))]
    for one in at_thresholds(chosen, labels, probabilities, groups, CLASSES):
        index = CLASSES.index(one["class"])
        true, called = (labels == index).numpy(), (probabilities[:, index] >= one["threshold"]).numpy()
        expected = {
            "sensitivity": metrics.recall_score(true, called),
            "specificity": metrics.recall_score(~true, ~called),
            "ppv": metrics.precision_score(true, called),
            "npv": metrics.precision_score(~true, ~called),
        }
        for name, value in expected.items():
            assert one[name]["value"] == pytest.approx(value, abs=1e-6)
            assert one[name]["interval"][0] < value < one[name]["interval"][1]


def test_a_class_without_validation_images_has_no_threshold() -> None:
    labels, probabilities = drawn(0)
    here = labels != 1
    assert {one["class"] for one in chosen_thresholds(labels[here], probabilities[here], CLASSES)} == {"a", "c"}
