"""Scores, compared with those of scikit-learn."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor

from rsattn.cli.command import CommandError
from rsattn.finetune.scores import scores

ROUNDED = 1e-6  # torchmetrics divides in float32, and seven decimals are kept
NAMES = ("a", "b", "c", "d", "e")


def drawn(classes: int, n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Labels that get rarer from class to class, and probabilities that slightly favor them."""
    generator = torch.Generator().manual_seed(seed)
    rarer = torch.arange(classes, 0, -1).double()
    labels = torch.multinomial(rarer, n, replacement=True, generator=generator)
    logits = torch.nn.functional.one_hot(labels, classes) + torch.randn(n, classes, generator=generator)
    return labels, logits.softmax(1)


def close(value: Any) -> Any:
    return pytest.approx(value, abs=ROUNDED)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_every_score_is_scikit_learns(classes: int, seed: int) -> None:
    labels, probabilities = drawn(classes, seed=seed)
    predicted = probabilities.argmax(1)
    found = scores(labels, probabilities, NAMES[:classes])
    assert found["images"] == 60
    assert found["absent"] == []
    assert found["accuracy"] == close(metrics.accuracy_score(labels, predicted))
    assert found["balanced_accuracy"] == close(metrics.balanced_accuracy_score(labels, predicted))
    exact = probabilities.double() / probabilities.double().sum(1, keepdim=True)  # it wants sums of 1 to all digits
    assert found["log_loss"] == close(metrics.log_loss(labels, exact))
    ranked = probabilities[:, 1] if classes == 2 else exact
    assert found["auroc"] == close(metrics.roc_auc_score(labels, ranked, multi_class="ovr"))
    assert found["confusion"] == metrics.confusion_matrix(labels, predicted).tolist()
    each = metrics.precision_recall_fscore_support(labels, predicted, zero_division=0)
    macro = metrics.precision_recall_fscore_support(labels, predicted, zero_division=0, average="macro")
    assert found["macro"] == close(dict(zip(("precision", "recall", "f1"), macro)))
    for index, name in enumerate(NAMES[:classes]):
        expected = dict(zip(("precision", "recall", "f1", "images"), (column[index] for column in each)))
        true, chance = labels == index, probabilities[:, index]
        expected["specificity"] = metrics.recall_score(~true, predicted != index)
        expected["auroc"] = metrics.roc_auc_score(true, chance)
        expected["average_precision"] = metrics.average_precision_score(true, chance)
        assert found["per_class"][name] == close(expected)


def test_a_class_without_images_counts_in_no_mean() -> None:
    """One wrong prediction gives the class a precision; scikit-learn gets the classes that occur."""
    labels, probabilities = drawn(4)
    here = labels != 1
    labels, probabilities = labels[here], probabilities[here]
    predicted = probabilities.argmax(1)
    assert (predicted == 1).any()
    found = scores(labels, probabilities, NAMES[:4])
    assert found["absent"] == ["b"]
    of_class = found["per_class"]["b"]
    assert (of_class["precision"], of_class["images"]) == (0.0, 0)
    assert [of_class[name] for name in ("recall", "f1", "auroc", "average_precision")] == [None] * 4
    assert of_class["specificity"] == close(float((predicted != 1).double().mean()))
    macro = metrics.precision_recall_fscore_support(
        labels, predicted, labels=[0, 2, 3], zero_division=0, average="macro"
    )
    assert found["macro"] == close(dict(zip(("precision", "recall", "f1"), macro)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the class is predicted and does not occur
        assert found["balanced_accuracy"] == close(metrics.balanced_accuracy_score(labels, predicted))
    assert found["auroc"] == close(
        np.mean([metrics.roc_auc_score(labels == index, probabilities[:, index]) for index in (0, 2, 3)])
    )
    assert found["confusion"][1] == [0, 0, 0, 0]


def test_the_precision_of_a_class_that_is_never_predicted_is_undefined_and_counts_as_zero() -> None:
    labels = torch.tensor([0, 1, 2])
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.4, 0.6, 0.0]])
    found = scores(labels, probabilities, NAMES[:3])
    assert [found["per_class"]["c"][name] for name in ("precision", "recall", "f1")] == [None, 0.0, 0.0]
    assert found["macro"]["precision"] == close((1.0 + 0.5 + 0.0) / 3)
    assert found["never_predicted"] == ["c"]
    absent = scores(labels[:2], probabilities[:2], NAMES[:3])
    assert [absent["per_class"]["c"][name] for name in ("precision", "recall", "f1")] == [None, None, None]
    assert absent["never_predicted"] == []


def test_the_majority_class_is_that_of_the_test_images() -> None:
    labels = torch.tensor([0, 2, 2, 1, 1])
    found = scores(labels, torch.eye(3)[[0, 0, 0, 0, 0]], NAMES[:3])
    assert found["majority"] == {"class": "b", "accuracy": 0.4}
    assert found["accuracy"] == 0.2


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("only", [0, 1])
def test_one_class_alone_has_no_auroc(classes: int, only: int) -> None:
    found = scores(torch.full((4,), only), torch.full((4, classes), 1 / classes), NAMES[:classes])
    assert found["auroc"] is None


def test_of_two_classes_the_second_is_ranked() -> None:
    """It matters where the two columns rank differently after rounding."""
    probabilities = torch.tensor([[0.5, 0.4], [0.5, 0.5], [0.5, 0.6]])
    assert scores(torch.tensor([0, 0, 1]), probabilities, NAMES[:2])["auroc"] == 1.0


def test_of_equal_probabilities_the_first_is_predicted() -> None:
    tied = torch.tensor([[0.2, 0.4, 0.4], [1 / 3, 1 / 3, 1 / 3], [0.4, 0.2, 0.4]])
    found = scores(torch.tensor([2, 2, 2]), tied, NAMES[:3])
    assert found["confusion"][2] == [2, 1, 0]


def test_a_sure_mistake_costs_much_but_not_everything() -> None:
    sure = torch.tensor([[1.0, 0.0]])
    found = scores(torch.tensor([1]), sure, NAMES[:2])["log_loss"]
    assert found == close(-np.log(np.finfo(np.float32).eps))


def test_shares_are_plain_numbers_for_json() -> None:
    """Seven of ten is 0.7, not float32's 0.699999988."""
    labels = torch.zeros(10, dtype=torch.long)
    probabilities = torch.tensor([[0.8, 0.2]] * 7 + [[0.2, 0.8]] * 3)
    found = scores(labels, probabilities, ["x", "y"])
    assert found["accuracy"] == 0.7
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_probabilities_that_are_no_numbers_mean_that_training_diverged(value: float) -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.5, value]])
    with pytest.raises(CommandError, match=r"training diverged: train again with a lower --lr"):
        scores(torch.tensor([0, 1]), probabilities, NAMES[:2])
