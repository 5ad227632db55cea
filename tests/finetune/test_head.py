"""The fit of the classifier to frozen features, before training."""

from __future__ import annotations

import io
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from runs import MakeOptions, table
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from rsattn.cli.command import CommandError
from rsattn.finetune.features import features
from rsattn.finetune.head import STRENGTHS, fit_head, some_of
from rsattn.finetune.loading import load
from rsattn.finetune.models import Built
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.running import run


def clouds(classes: int, count: int, seed: int) -> TensorDataset:
    """Gaussian clouds, one per class, with features on very different scales and far from zero."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centers = 4.0 * torch.eye(classes, 5)
    features = (centers[labels] + torch.randn(count, 5, generator=generator)) * torch.tensor([0.1, 1, 10, 1, 1]) + 7
    return TensorDataset(features, labels, torch.arange(count))


def model_of(classes: int, bias: bool = True) -> Built:
    return Built(nn.Sequential(nn.Identity(), nn.Linear(5, classes, bias=bias)), "1", (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_classifier_is_the_regression_scikit_learn_finds(classes: int, console: Console) -> None:
    """Two classes too, for which scikit-learn stores one vector: its sigmoid is the softmax of both logits."""
    from sklearn.linear_model import LogisticRegression

    built = model_of(classes)
    splits = {"train": clouds(classes, 200, 0), "val": clouds(classes, 80, 1)}
    fit_head(built, splits.__getitem__, False, console)
    features, labels = splits["val"].tensors[:2]
    probabilities = built.model(features).softmax(1)
    assert float((probabilities.argmax(1) == labels).float().mean()) > 0.9
    train, names = splits["train"].tensors[:2]
    mean, std = train.double().mean(0), train.double().std(0, correction=0)
    fits = [
        LogisticRegression(C=c, max_iter=1000).fit(((train - mean) / std).numpy(), names.numpy()) for c in STRENGTHS
    ]
    ours = [torch.from_numpy(fit.predict_proba(((features - mean) / std).numpy())).float() for fit in fits]
    losses = [float(nn.functional.nll_loss(own.log(), labels)) for own in ours]
    expected = ours[losses.index(min(losses))]
    torch.testing.assert_close(
        probabilities.detach(), expected, atol=1e-2, rtol=0
    )  # both stop near the optimum, not at it


def test_classes_that_are_rare_can_weigh_as_much(console: Console) -> None:
    def skewed(split: str) -> TensorDataset:
        """Two clouds that overlap, of 200 images and of 20."""
        labels = torch.arange(220) // 200
        features = torch.randn(220, 5, generator=torch.Generator().manual_seed(0)) + labels[:, None]
        return TensorDataset(features, labels, torch.arange(220))

    shares = []
    for balanced in (False, True):
        built = model_of(2)
        fit_head(built, skewed, balanced, console)
        shares.append(float(built.model(skewed("train").tensors[0]).detach().softmax(1)[:, 1].mean()))
    assert shares[1] > 2 * shares[0]


def test_a_classifier_without_a_bias_separates_features_far_from_zero(console: Console) -> None:
    built = model_of(3, bias=False)
    fit_head(built, lambda split: clouds(3, 90, 0), False, console)
    features, labels = clouds(3, 90, 0).tensors[:2]
    right = float((built.model(features).argmax(1) == labels).float().mean())
    assert right > 0.9
    assert isinstance(console.file, io.StringIO)
    assert f"accuracy {right:.1%}" in console.file.getvalue()


def test_a_feature_of_one_training_image_gets_no_huge_weight(console: Console) -> None:
    """A feature that is zero in all training images but one, as after a ReLU, and not zero in validation."""

    def rare(split: str) -> TensorDataset:
        features, labels, indices = clouds(2, 80, int(split == "val")).tensors
        features[:, 4] = 0.0
        features[0, 4] = 1e-5 if split == "train" else 0.0
        if split == "val":
            features[::3, 4] = 1.0
        return TensorDataset(features, labels, indices)

    built = model_of(2)
    fit_head(built, rare, False, console)
    features, labels = rare("val").tensors[:2]
    assert float((built.model(features).argmax(1) == labels).float().mean()) > 0.9


@pytest.mark.parametrize("split", ["train", "val"])
def test_features_that_are_not_finite_are_refused_in_a_line(split: str, console: Console) -> None:
    def broken(wanted: str) -> TensorDataset:
        made = clouds(2, 40, 0)
        made.tensors[0][3, 2] = float("nan") if wanted == split else 0.0
        return made

    with pytest.raises(CommandError, match="features of the model contain NaN or infinity"):
        fit_head(model_of(2), broken, False, console)


class Moved(nn.Sequential):
    """Its parameters are new tensors after `to`, as when a model moves to a GPU."""

    def to(self, *device: Any, **kinds: Any) -> Moved:
        for parameter in self.parameters():
            parameter.data = parameter.data.clone()
        return self


def test_a_model_that_moved_for_its_features_can_still_be_trained(make_options: MakeOptions, console: Console) -> None:
    images = TensorDataset(torch.randn(6, 5), torch.arange(6) % 2, torch.arange(6))
    built = replace(model_of(2), model=Moved(nn.Linear(5, 5), nn.Linear(5, 2)))
    made = features(built, images, make_options(), console, "features")  # type: ignore[arg-type]
    built.model(made.tensors[0]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in built.model.parameters())


def test_some_images_of_every_class_stand_for_many() -> None:
    labels = [0] * 1000 + [1] * 100 + [2] * 3
    chosen = some_of(range(1103), labels, 110)
    counts = [sum(labels[i] == label for i in chosen) for label in range(3)]
    assert counts == [100, 10, 1]
    assert max(b - a for a, b in itertools.pairwise(chosen)) <= 95  # spread over the whole of a class
    assert some_of(range(5), [0, 1, 0, 1, 0], 110) == [0, 1, 2, 3, 4]


def test_training_starts_from_it_and_says_so(make_options: MakeOptions, console: Console) -> None:
    """With a learning rate of 0, training does not change the classifier."""
    stream = console.file
    assert isinstance(stream, io.StringIO)
    fitted = make_options(head_first=True, epochs=1, learning_rate=0.0, model="vit", image_size=32)
    run(fitted, console)
    said = re.search(r"classifier fitted to frozen features: validation loss \S+, accuracy (\S+)%", stream.getvalue())
    assert said is not None
    (epoch,) = table(RunFolder(Path(fitted.out)).history)
    assert float(epoch["val_accuracy"]) == pytest.approx(float(said[1]) / 100, abs=5e-4)  # one digit behind the point
    plain = replace(fitted, head_first=False, out=f"{fitted.out}-plain")
    run(plain, console)
    first, other = (load(Path(options.out)).model.get_submodule("fc").weight for options in (fitted, plain))
    assert isinstance(first, Tensor)
    assert not torch.equal(first, other)  # type: ignore[arg-type]
