"""Random changes of training images, a whole batch in one resampling.

MONAI's transforms change one image at a time and resample it once for each change; for small images they take longer
than the training step of a tiny ViT. Here a batch is resampled once, for all changes together.
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
    """How images may change. Each change is made with a probability of 1/2, by an amount drawn uniformly.

    Attributes:
        turn: largest rotation either way, in degrees; 180 is any angle, and always drawn.
        flips: mirror images, left to right and top to bottom.
        zoom, shift, brightness: largest change, as a share of the size, of the side and of the values.
    """

    turn: float = 15.0
    flips: bool = False
    zoom: float = 0.1
    shift: float = 0.125
    brightness: float = 0.1


AUGMENTATIONS = {
    "small": Augmentation(),
    "mirror": Augmentation(flips=True),
    "rotate": Augmentation(turn=180.0, flips=True),
}


def augmented(images: Tensor, how: Augmentation, entropy: Sequence[Sequence[int]]) -> Tensor:
    """Images (B, 3, S, S) with values from 0 to 1, each changed at random, within the same range.

    What is drawn for an image, and each bit of the result, depends on its own entropy alone, not on the batch.

    Args:
        entropy: for each image, numbers that its random changes depend on.
    """
    drawn = np.stack([np.random.default_rng(np.random.SeedSequence(own)).random(12) for own in entropy])
    happens = torch.from_numpy(drawn[:, :6] < 0.5)
    amount = torch.from_numpy(2.0 * drawn[:, 6:] - 1.0)  # from -1 to 1
    turn, zoom, right, down, brightness = (torch.where(happens[:, i], amount[:, i], 0.0) for i in range(5))
    if how.turn >= 180.0:
        turn = amount[:, 0]
    mirrored = torch.where(happens[:, 5], -1.0, 1.0) if how.flips else torch.ones(len(images))
    upside_down = torch.where(amount[:, 5] < 0.0, -1.0, 1.0) if how.flips else torch.ones(len(images))
    angle = torch.deg2rad(turn * how.turn)
    size = 1.0 + zoom * how.zoom
    # Rows of the map from a pixel's place in the new image, from -1 to 1, to its place in the old one.
    across = torch.stack([angle.cos() / size * mirrored, -angle.sin() / size, 2 * how.shift * right], 1)
    along = torch.stack([angle.sin() / size * mirrored, angle.cos() / size, 2 * how.shift * down], 1)
    along = along * torch.stack([upside_down, upside_down, torch.ones_like(upside_down)], 1)
    # Cells and tissue go on beyond the edge; a slice of a brain does not.
    beyond = "reflection" if how.turn >= 180.0 else "border"
    changed = functional.grid_sample(
        images, _places(across, along, images.shape[-1]).to(images), padding_mode=beyond, align_corners=False
    )
    return (changed * (1.0 + how.brightness * brightness).to(images)[:, None, None, None]).clamp(0.0, 1.0)


def _places(across: Tensor, along: Tensor, side: int) -> Tensor:
    """(B, S, S, 2) of two rows (B, 3) of an affine map; without a matrix product, whose bits depend on the batch."""
    x = (2.0 * torch.arange(side, dtype=torch.float64) + 1.0) / side - 1.0
    rows = [
        (row[:, 0, None, None] * x + row[:, 1, None, None] * x[:, None]) + row[:, 2, None, None]
        for row in (across, along)
    ]
    return torch.stack(rows, -1)
