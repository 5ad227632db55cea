"""Random augmentation of training images, which resamples a whole batch once.

MONAI's transforms change one image at a time and resample it for each change. For small images they take longer than
the training step of a tiny ViT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """How images may change. Each change has a probability of 1/2 and a uniformly drawn amount.

    Attributes:
        turn: largest rotation in both directions, in degrees; 180 means any angle, and always rotates.
        flip: mirror images, from left to right.
        upend: mirror images, from top to bottom.
        zoom, shift, brightness: largest change, as a share of the size, the side and the values.
    """

    turn: float = 15.0
    flip: bool = False
    upend: bool = False
    zoom: float = 0.1
    shift: float = 0.125
    brightness: float = 0.1


AUGMENTATIONS = {
    "small": Augmentation(),
    "flip": Augmentation(flip=True),
    "mirror": Augmentation(flip=True, upend=True),
    "rotate": Augmentation(turn=180.0, flip=True, upend=True),
}


def described(name: str) -> str:
    """The changes of an augmentation of `Options`, in words."""
    how = AUGMENTATIONS.get(name)
    if how is None:
        return "none"
    turn = "by any angle" if how.turn >= 180.0 else f"up to {how.turn:g} degrees"
    flips = [words for does, words in ((how.flip, "left to right"), (how.upend, "top to bottom")) if does]
    return (
        f"rotation {turn}, shift up to {100 * how.shift:g} % of the side, zoom up to {100 * how.zoom:g} %, "
        f"brightness up to {100 * how.brightness:g} %, {'flips ' + ' and '.join(flips) if flips else 'no flips'}"
    )


def augmented(images: Tensor, how: Augmentation, entropy: Sequence[Sequence[int]]) -> Tensor:
    """Change each of the images (B, 3, S, S) at random; the values, from 0 to 1, stay in this range.

    The result for an image, bit for bit, depends only on its own entropy, not on the rest of the batch.

    Args:
        entropy: for each image, the numbers that seed its random changes.
    """
    drawn = np.stack([np.random.default_rng(np.random.SeedSequence(own)).random(12) for own in entropy])
    happens = torch.from_numpy(drawn[:, :6] < 0.5)
    amount = torch.from_numpy(2.0 * drawn[:, 6:] - 1.0)  # from -1 to 1
    turn, zoom, right, down, brightness = (torch.where(happens[:, i], amount[:, i], 0.0) for i in range(5))
    if how.turn >= 180.0:
        turn = amount[:, 0]
    mirrored = torch.where(happens[:, 5], -1.0, 1.0) if how.flip else torch.ones(len(images))
    upside_down = torch.where(amount[:, 5] < 0.0, -1.0, 1.0) if how.upend else torch.ones(len(images))
    angle = torch.deg2rad(turn * how.turn)
    size = 1.0 + zoom * how.zoom
    # Rows of the affine map from pixel coordinates in the new image, from -1 to 1, to those in the old one.
    across = torch.stack([angle.cos() / size * mirrored, -angle.sin() / size, 2 * how.shift * right], 1)
    along = torch.stack([angle.sin() / size * mirrored, angle.cos() / size, 2 * how.shift * down], 1)
    along = along * torch.stack([upside_down, upside_down, torch.ones_like(upside_down)], 1)
    # Cells and tissue continue beyond the edge; a slice of a brain does not.
    beyond = "reflection" if how.turn >= 180.0 else "border"
    changed = functional.grid_sample(
        images, _places(across, along, images.shape[-1]).to(images), padding_mode=beyond, align_corners=False
    )
    return (changed * (1.0 + how.brightness * brightness).to(images)[:, None, None, None]).clamp(0.0, 1.0)


def _places(across: Tensor, along: Tensor, side: int) -> Tensor:
    """The sampling grid (B, S, S, 2) from two rows (B, 3) of an affine map.

    It avoids a matrix product, whose rounding depends on the batch.
    """
    x = (2.0 * torch.arange(side, dtype=torch.float64) + 1.0) / side - 1.0
    rows = [
        (row[:, 0, None, None] * x + row[:, 1, None, None] * x[:, None]) + row[:, 2, None, None]
        for row in (across, along)
    ]
    return torch.stack(rows, -1)
