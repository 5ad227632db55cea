"""Draw a few test images, and for models with residual attention the attention maps of the last block."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cli import drawing
from ..recording import Record, record
from .loading import TrainedModel
from .splits import Splits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 8
PAIRS = 4  # per row
LETTERS = 16  # above an image


def draw_samples(loaded: TrainedModel, splits: Splits, indices: list[int]) -> Figure:
    """Draw images with their class, and for a model with residual attention the attention map beside each."""
    from matplotlib.figure import Figure

    shown = some_of_each(splits, indices)
    pixels = torch.stack([splits.store[i] for i in shown]).float() / 255.0
    looks = _looks(loaded, pixels) if loaded.residual else [None] * len(shown)
    wide = 2 if any(look is not None for look in looks) else 1
    rows = -(-len(shown) // PAIRS)
    figure = Figure(figsize=(1.5 * wide * PAIRS, 1.8 * rows), layout="constrained", facecolor="white")
    grid = figure.subplots(rows, PAIRS * wide, squeeze=False).reshape(-1, wide)
    for axes in grid.ravel():
        axes.set_axis_off()
    for places, image, look, index in zip(grid, pixels, looks, shown):
        places[0].imshow(image.permute(1, 2, 0).numpy(), interpolation="bicubic")
        label = splits.labels[index]
        title = drawing.label(splits.classes[label], f"class {label + 1}", LETTERS * wide)
        places[0].set_title(title, fontsize=10, loc="left", parse_math=False)
        if look is not None:
            _draw_look(places[1], image, look)
    return figure


def _looks(loaded: TrainedModel, pixels: Tensor) -> list[Tensor | None]:
    """The attention (side, side) that the patches of each image receive; None where the patches form no square."""
    with torch.inference_mode(), record(loaded.model, received=True) as recorded:
        loaded.model(torch.stack([loaded.normalize(image) for image in pixels]).to(loaded.device))
    if attends_in_windows(recorded, len(pixels)):
        return [None] * len(pixels)
    return [_patches(recorded, sample) for sample in range(len(pixels))]


def attends_in_windows(recorded: Record, images: int) -> bool:
    """Whether the last block of a model that has seen this many images has attended to several windows of each."""
    return any(len(noted) > images for noted in list(recorded.blocks.values())[-1].received)


def _patches(recorded: Record, sample: int) -> Tensor | None:
    block = list(recorded.blocks.values())[-1]
    received = torch.cat(block.received)[sample, int(torch.cat(block.best_head)[sample])].cpu()
    side = math.isqrt(len(received))
    prefix = len(received) - side * side
    return received[prefix:].view(side, side) if side > 1 else None


def _draw_look(axes: Axes, image: Tensor, look: Tensor) -> None:
    drawing.look(axes, image.permute(1, 2, 0).double().numpy(), look)


def some_of_each(splits: Splits, indices: list[int]) -> list[int]:
    """Up to `SHOWN` of `indices`, taken from the classes in turn."""
    turns: Counter[int] = Counter()
    ranked = []
    for index in indices:
        label = splits.labels[index]
        ranked.append((turns[label], label, index))
        turns[label] += 1
    return [index for _, _, index in sorted(ranked)[:SHOWN]]
