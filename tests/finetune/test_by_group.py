"""One prediction for each group of images."""

from __future__ import annotations

import numpy as np
import torch

from rsattn.finetune.by_group import by_group
from rsattn.finetune.measuring import measured


def test_a_group_has_the_mean_probability_of_its_images() -> None:
    labels = np.array([0, 1, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.5, 0.5]])
    found = by_group(labels, probabilities, np.array(["p", "q", "p", "mixed", "q"]))
    assert found.groups.tolist() == ["mixed", "p", "q"]
    assert found.labels.tolist() == [1, 0, 1]
    assert np.allclose(found.probabilities, [[0.3, 0.7], [0.55, 0.45], [0.45, 0.55]])
    assert found.left_out == 0


def test_a_group_with_images_of_several_classes_is_left_out() -> None:
    found = by_group(np.array([0, 1, 1]), np.eye(3)[:, :2], np.array(["p", "p", "q"]))
    assert (found.groups.tolist(), found.labels.tolist(), found.left_out) == (["q"], [1], 1)


def test_patients_that_are_right_on_average_are_right() -> None:
    """Each patient has three images, one of them wrong: 67 % of the images and all patients are right."""
    labels = torch.arange(2).repeat_interleave(30)
    right = torch.arange(60) % 3 != 0
    logits = 2.0 * torch.nn.functional.one_hot(torch.where(right, labels, 1 - labels), 2).float()
    groups = [f"p{i // 3}" for i in range(60)]
    found = measured(labels, logits, 1.0, groups, ["a", "b"], [])
    assert round(found["scores"]["accuracy"], 3) == 0.667
    assert found["by_group"]["groups"] == 20
    assert found["by_group"]["scores"]["accuracy"] == 1.0
    assert measured(labels, logits, 1.0, [str(i) for i in range(60)], ["a", "b"], [])["by_group"] is None
