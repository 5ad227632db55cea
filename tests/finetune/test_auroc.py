"""The weighted AUROC is that of scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rsattn.finetune import auroc
from rsattn.finetune.auroc import weighted_auroc


def _case(seed: int, values: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.integers(values, size=60) / values
    return scores, rng.random(60) < 0.3, rng.multinomial(60, np.full(60, 1 / 60), size=25)


@pytest.mark.parametrize("values", [2, 7, 10**6], ids=["two scores", "many ties", "hardly any ties"])
def test_each_row_is_the_weighted_score_of_scikit_learn(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auroc, "BATCH", 7 * 60)  # 25 rows in batches of 7
    scores, positive, weights = _case(values, values)

    areas = weighted_auroc(scores, positive, weights)

    assert areas.shape == (25,)
    assert areas.dtype == np.float64
    np.testing.assert_allclose(
        areas, [roc_auc_score(positive, scores, sample_weight=row) for row in weights], atol=1e-12
    )


def test_float32_scores_and_fractional_weights() -> None:
    scores, positive, _ = _case(1, 9)
    weights = np.random.default_rng(0).random((3, 60))

    expected = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]

    np.testing.assert_allclose(weighted_auroc(scores.astype(np.float32), positive, weights), expected, atol=1e-12)


def test_a_class_without_weight_has_no_area() -> None:
    areas = weighted_auroc([0.1, 0.9, 0.5], [False, True, True], [[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]])

    assert areas[0] == 1.0
    assert np.isnan(areas[1:]).all()
    assert np.isnan(weighted_auroc([0.1, 0.2], [True, True], [[1, 1]])).all()
