"""Fit the classifier to the features of the initial model, before the other layers are trained.

With a random classifier, the first steps of fine-tuning distort good features (Kumar et al. 2022, "Fine-Tuning can
Distort Pretrained Features", arXiv 2202.10054).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..cli.command import CommandError
from ..cli.terminal import tracked
from .models import Built

MOST_IMAGES = 10_000  # enough for one linear layer
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # scikit-learn's C: the inverse of the L2 penalty


def fit_head(built: Built, features_of: Callable[[str], TensorDataset], balanced: bool, console: Console) -> None:
    """Fit the classifier of `built` with scikit-learn's logistic regression.

    Of the penalties `STRENGTHS`, the one with the lowest validation loss is used. The result is deterministic.

    Args:
        features_of: "train" or "val" -> (features (n, D), labels (n,), indices (n,)).
        balanced: weight the classes by the inverse of their number of images.

    Raises:
        CommandError: a feature is NaN or infinite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    (train, labels), (val, val_labels) = (_arrays(features_of(split)) for split in ("train", "val"))
    if not (np.isfinite(train).all() and np.isfinite(val).all()):
        raise CommandError(
            "the features of the model contain NaN or infinity: try "
            "--precision 32-true, other --weights, or --no-head-first"
        )
    classifier = built.model.get_submodule(built.classifier)
    assert isinstance(classifier, nn.Linear)
    mean = train.mean(0) if classifier.bias is not None else np.zeros(train.shape[1])
    # A feature that hardly varies in training may vary in validation: limit the weight it can get.
    std = np.maximum(train.std(0), 1e-2 * float(np.median(train.std(0)))) + 1e-12
    best: tuple[float, LogisticRegression] | None = None
    model = LogisticRegression(
        max_iter=300,
        warm_start=True,
        fit_intercept=classifier.bias is not None,
        class_weight="balanced" if balanced else None,
    )
    for strength in tracked(STRENGTHS, "fitting the classifier", console):
        model.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without convergence, the result is still a good start
            model.fit((train - mean) / std, labels)
        loss = float(log_loss(val_labels, model.predict_proba((val - mean) / std), labels=model.classes_))
        if best is None or loss < best[0]:
            best = loss, copy.deepcopy(model)
    assert best is not None
    weight, bias = _of_all_classes(best[1])
    weight = weight / std
    _put(classifier, torch.from_numpy(weight), torch.from_numpy(bias - weight @ mean))
    logits = classifier(torch.from_numpy(val).to(classifier.weight))
    right = float((logits.argmax(1).cpu().numpy() == val_labels).mean())
    said = f"classifier fitted to frozen features: validation loss {best[0]:.3f}, accuracy {right:.1%}"
    console.print(said, markup=False)


def some_of(indices: Sequence[int], labels: Sequence[int], most: int = MOST_IMAGES) -> list[int]:
    """About `most` of `indices`, in proportion from each class, and at least one of each.

    Args:
        labels: the class indices of all images.
    """
    of_class: dict[int, list[int]] = {}
    for index in indices:
        of_class.setdefault(labels[index], []).append(index)
    step = max(len(indices) / most, 1.0)
    chosen = [of[int(step * n)] for of in of_class.values() for n in range(math.ceil(len(of) / step))]
    return sorted(chosen)


def _arrays(made: TensorDataset) -> tuple[np.ndarray, np.ndarray]:
    features, labels = made.tensors[:2]
    return features.double().numpy(), labels.numpy()


def _of_all_classes(model: object) -> tuple[np.ndarray, np.ndarray]:
    """Weight (classes, D) and bias (classes,); for two classes, scikit-learn stores only their difference."""
    weight, bias = model.coef_, model.intercept_  # type: ignore[attr-defined]
    if len(weight) == 1:
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


@torch.no_grad()
def _put(classifier: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    classifier.weight.copy_(weight)
    if classifier.bias is not None:
        classifier.bias.copy_(bias)
