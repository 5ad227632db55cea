"""Calibration scores against scikit-learn and torchmetrics, and the temperature against a known one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.calibration import calibration_curve

from rsattn.finetune.calibration import brier, calibration, fitted_temperature


def drawn(n: int, classes: int, sharpness: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from the softmax of logits, and those logits times `sharpness`."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return labels, sharpness * logits


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_made_logits_too_sharp(sharpness: float) -> None:
    labels, logits = drawn(20_000, 4, sharpness)
    assert fitted_temperature(logits, labels) == pytest.approx(sharpness, rel=0.03)


def test_without_a_wrong_prediction_no_temperature_is_fitted() -> None:
    """The log loss would fall without end as the temperature falls."""
    labels = torch.arange(12) % 3
    assert fitted_temperature(5.0 * torch.nn.functional.one_hot(labels, 3), labels) == 1.0


@pytest.mark.parametrize("classes", [2, 3])
def test_the_brier_score_is_scikit_learns(classes: int) -> None:
    labels, logits = drawn(300, classes)
    probabilities = logits.softmax(1)
    exact = probabilities.double() / probabilities.double().sum(1, keepdim=True)
    expected = metrics.brier_score_loss(labels, exact[:, 1] if classes == 2 else exact)
    assert brier(labels, probabilities) == pytest.approx(expected, abs=1e-6)


def test_the_bins_are_those_of_a_reliability_diagram() -> None:
    labels, logits = drawn(500, 3)
    probabilities = logits.softmax(1)
    found = calibration(labels, probabilities, [str(i) for i in range(500)])
    confidence, predicted = probabilities.max(1)
    shares, places = calibration_curve((predicted == labels).numpy(), confidence.numpy(), n_bins=10)
    assert [one["accuracy"] for one in found["bins"]] == pytest.approx(shares, abs=1e-6)
    assert [one["confidence"] for one in found["bins"]] == pytest.approx(places, abs=1e-6)
    assert sum(one["images"] for one in found["bins"]) == 500
    gaps = [one["images"] / 500 * abs(one["accuracy"] - one["confidence"]) for one in found["bins"]]
    assert found["ece"] == pytest.approx(np.sum(gaps), abs=1e-5)
    assert all(one["interval"][0] <= one["accuracy"] <= one["interval"][1] for one in found["bins"])
