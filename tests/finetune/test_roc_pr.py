"""ROC and precision-recall curves against scikit-learn's, and their bands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from rsattn.finetune.curves import curves

AUROCS = [0.7, 0.8, 0.9]
CLASSES = ["a", "b", "c"]


def drawn(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (n,), generator=generator)
    logits = 1.5 * torch.nn.functional.one_hot(labels, 3) + torch.randn(n, 3, generator=generator)
    return labels, logits.softmax(1)


def test_the_curves_are_scikit_learns() -> None:
    labels, probabilities = drawn(400)
    found = curves(labels, probabilities, [str(i) for i in range(400)], CLASSES, AUROCS)
    assert list(found) == CLASSES
    for index, name in enumerate(CLASSES):
        true, chance = (labels == index).numpy(), probabilities[:, index].numpy()
        fpr, tpr, _ = metrics.roc_curve(true, chance)
        roc, pr = found[name]["roc"], found[name]["pr"]
        # On a grid of 101 steps a curve is a little lower or higher than its steps.
        assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(metrics.auc(fpr, tpr), abs=0.006)
        assert (roc["tpr"][-1], roc["fpr"][-1]) == (1.0, 1.0)
        precision, recall, _ = metrics.precision_recall_curve(true, chance)
        for wanted in (0.2, 0.5, 0.8, 1.0):
            first = np.flatnonzero(recall >= wanted - 1e-9)[-1]  # the highest threshold that reaches it
            assert pr["precision"][round(100 * wanted)] == pytest.approx(precision[first], abs=1e-4)
        assert found[name]["prevalence"] == pytest.approx(true.mean(), abs=1e-6)


def test_the_bands_hold_the_curves_and_narrow_with_more_images() -> None:
    widths = []
    for n in (60, 600):
        labels, probabilities = drawn(n)
        of = curves(labels, probabilities, [str(i) for i in range(n)], CLASSES, AUROCS)["a"]
        for curve, height in (("roc", "tpr"), ("pr", "precision")):
            low, high, values = (np.array(of[curve][name]) for name in ("low", "high", height))
            assert (low <= high).all()
            assert ((low <= values + 0.02) & (values <= high + 0.02)).mean() > 0.95
        widths.append(np.mean(np.array(of["roc"]["high"]) - of["roc"]["low"]))
    assert widths[1] < 0.7 * widths[0]


def test_of_two_classes_the_second_is_drawn_and_of_many_the_worst() -> None:
    labels, probabilities = drawn(60)
    two = curves(labels.clamp(max=1), probabilities[:, :2], [str(i) for i in range(60)], ["no", "yes"], [0.8, 0.8])
    assert list(two) == ["yes"]
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(120, 10, generator=generator).softmax(1)
    names = [f"c{i}" for i in range(10)]
    found = curves(torch.arange(120) % 10, many, [str(i) for i in range(120)], names, [0.5 + i / 20 for i in range(10)])
    assert list(found) == names[:8]
