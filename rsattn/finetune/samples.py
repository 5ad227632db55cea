"""Draw a few test images, their predictions, and where the model looks: best head's attention, and Grad-CAM."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cli import drawing
from ..recording import Record, record
from .gradcam import cams
from .loading import TrainedModel
from .mistakes import SHOWN_MISTAKES, confidence_order
from .splits import Splits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 8
COLUMNS = 8  # of images and maps
LETTERS = 16  # of a name above an image


def draw_samples(
    loaded: TrainedModel, splits: Splits, shown: Sequence[int], probabilities: Mapping[int, Tensor]
) -> Figure:
    """Draw images with their true and predicted class, and beside each where the model looks.

    Beside an image is the attention that its patches receive in the best head of the last block, for models with
    residual attention, and the Grad-CAM of the predicted class.

    Args:
        shown: indices of images.
        probabilities: index -> (classes,).
    """
    from matplotlib.figure import Figure

    pixels = torch.stack([splits.store[i] for i in shown]).float() / 255.0
    predicted = [int(probabilities[i].argmax()) for i in shown]
    maps = {"attention": _looks(loaded, pixels)} if loaded.residual else {}
    maps["Grad-CAM"] = cams(loaded, torch.stack([loaded.normalize(image) for image in pixels]), predicted)
    maps = {words: column for words, column in maps.items() if any(one is not None for one in column)}
    wide = 1 + len(maps)
    per_row = COLUMNS // wide
    rows = -(-len(shown) // per_row)
    figure = Figure(figsize=(1.5 * wide * per_row, 2.05 * rows), layout="constrained", facecolor="white")
    grid = figure.subplots(rows, per_row * wide, squeeze=False).reshape(-1, wide)
    for axes in grid.ravel():
        axes.set_axis_off()
    for number, (places, image, index) in enumerate(zip(grid, pixels, shown)):
        places[0].imshow(image.permute(1, 2, 0).numpy(), interpolation="bicubic")
        places[0].set_title(
            _title(splits, index, predicted[number], probabilities[index]), fontsize=9, loc="left", parse_math=False
        )
        for axes, (words, column) in zip(places[1:], maps.items()):
            found = column[number]
            axes.set_title(words if found is not None else f"no {words}", fontsize=8, color=drawing.FAINT)
            if found is not None:
                _draw_look(axes, image, found)
    return figure


def _title(splits: Splits, index: int, predicted: int, probabilities: Tensor) -> str:
    """Two lines: the true class, and the predicted one; a cross marks a wrong prediction."""

    def name(label: int) -> str:
        return drawing.label(splits.classes[label], f"class {label + 1}", LETTERS)

    true = splits.labels[index]
    mark = "\u2713" if true == predicted else "\u2717"
    return f"{name(true)}\n{mark} {name(predicted)} {100 * float(probabilities[predicted]):.0f} %"


def most_confident_mistakes(splits: Splits, probabilities: Mapping[int, Tensor]) -> list[int]:
    """Up to `SHOWN_MISTAKES` indices of wrong predictions, in the order of the report's table."""
    wrong = [index for index, row in probabilities.items() if int(row.argmax()) != splits.labels[index]]
    return sorted(
        wrong, key=lambda index: confidence_order(float(probabilities[index].max()), splits.rows[index].file)
    )[:SHOWN_MISTAKES]


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
