"""Datasets of images: square, kept in memory where they fit, and augmented for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..cli.command import CommandError
from ..cli.gray import Window
from ..cli.images import load_image
from .augmentation import AUGMENTATIONS, augmented
from .splitting import SplitRow

# Up to this size, decoded images are kept in memory; larger sets are decoded again in each epoch.
KEPT_BYTES = 2**30

if TYPE_CHECKING:
    from PIL.Image import Image

Sample = tuple[Tensor, int, int]


class Store:
    """Images of one size, (3, S, S) uint8, decoded on first use; the loader processes share the decoded images.

    Args:
        root: the folder that `files` are relative to.
        size: S.
        resize: how an image that is not square becomes square, see `Options`. The paper squashes.
        window: of images with more than 8 bits per pixel, see `Options`.
    """

    def __init__(
        self, root: Path, files: Sequence[str], size: int, resize: str = "squash", window: Window | None = None
    ) -> None:
        self.root, self.files, self.size, self.resize, self.window = root, files, size, resize, window
        fits = len(files) * 3 * size * size <= KEPT_BYTES
        self._pixels = torch.empty((len(files) if fits else 0, 3, size, size), dtype=torch.uint8).share_memory_()
        self._ready = torch.zeros(len(self._pixels), dtype=torch.bool).share_memory_()

    def __getitem__(self, index: int) -> Tensor:
        if len(self._pixels) == 0:
            return self._decoded(index)
        if not self._ready[index]:
            self._pixels[index] = self._decoded(index)
            self._ready[index] = True
        return self._pixels[index]

    def _decoded(self, index: int) -> Tensor:
        return squared(load_image(self.root / self.files[index], self.window)[0], self.size, self.resize)


def squared(image: Image, size: int, resize: str) -> Tensor:
    """Resize an image in RGB to (3, S, S) uint8; `resize` is as in `Options`."""
    from PIL import Image, ImageOps

    if resize == "pad":
        resized = ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC)
    elif resize == "crop":
        resized = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    else:
        resized = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


class Normalize:
    """Normalize (3, S, S) with values from 0 to 1, as in the training of the weights."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std

    def described(self) -> dict[str, list[float]]:
        """{mean, std}: a number for each channel, with the decimals that float32 needs, such as 0.485."""
        values = {"mean": self.mean, "std": self.std}
        return {name: [float(str(one)) for one in of.flatten().numpy()] for name, of in values.items()}


class ImageDataset(Dataset[Sample]):
    """Images of one split: (3, S, S) float32, the class index, and the index of the image in `store`.

    The augmentation of an image depends only on the seed, the epoch and its index, not on the number of loader
    processes or on whether the run was resumed.

    Args:
        indices: the images of this split, as indices in `store`.
        labels: the class indices of all images in `store`.
        augment: see `Options`.
    """

    def __init__(
        self,
        store: Store,
        indices: Sequence[int],
        labels: Sequence[int],
        normalize: Normalize,
        augment: str = "none",
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        self.store, self.indices, self.labels, self.normalize = store, indices, labels, normalize
        self.augmentation = AUGMENTATIONS.get(augment)
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        """A batch; PyTorch's DataLoader calls this."""
        chosen = [self.indices[position] for position in positions]
        pixels = torch.stack([self.store[index] for index in chosen]).float() / 255.0
        if self.augmentation is not None:
            pixels = augmented(pixels, self.augmentation, [(self.seed, self.epoch, index) for index in chosen])
        return [(self.normalize(image), self.labels[index], index) for image, index in zip(pixels, chosen)]


def numbered(rows: Sequence[SplitRow], classes: Sequence[str]) -> list[int]:
    """The class index of each row."""
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted({row.label for row in rows} - set(number))
    if unknown:
        raise CommandError(f"split.csv has labels that data.json does not list: {', '.join(unknown)}")
    return [number[row.label] for row in rows]
