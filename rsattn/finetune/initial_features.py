"""The features that the initial model gives for a split, computed once for all trainings that start from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from rich.console import Console
from torch.utils.data import TensorDataset

from .features import features
from .head import some_of
from .models import Built
from .options import Options
from .splits import Splits


class FeaturesOf(Protocol):
    """(model, split, whether to fit the classifier with them) -> (features (n, D), labels (n,), indices (n,))."""

    def __call__(self, built: Built, split: str, for_head: bool = False) -> TensorDataset: ...


class InitialFeatures:
    """A `FeaturesOf` that keeps what it computed, for models with the same initial weights.

    To fit a classifier it takes at most `head.MOST_IMAGES` images.
    """

    def __init__(self, options: Options, splits: Splits, console: Console) -> None:
        self._options, self._splits, self._console = options, splits, console
        self._kept: dict[tuple[str, bool], TensorDataset] = {}

    def __call__(self, built: Built, split: str, for_head: bool = False) -> TensorDataset:
        if (split, for_head) not in self._kept:
            images = self._splits.dataset(split, replace(self._options, augment="none"))
            if for_head:
                images.indices = some_of(images.indices, images.labels)
            what = f"features of the {split} split"
            self._kept[split, for_head] = features(built, images, self._options, self._console, what)
        return self._kept[split, for_head]
