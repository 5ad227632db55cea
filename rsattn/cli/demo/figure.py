"""The demo's figure: the image, every head's norm with the winners marked, and where the winners look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import drawing
from ..drawing import FAINT, INK
from .blocks import BlockReport
from .reader import Reading, share_on_digit
from .words import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches on the page, from its lower left corner.
WIDTH, HEIGHT, DPI = 12.0, 10.1, 140
LEFT, UPPER_ROW, UPPER_SIZE, MAP_LEFT, MAP_WIDTH = 0.5, 5.3, 3.0, 4.3, 5.2
LOWER_ROW, PANELS, PANEL_SIZE, PANEL_STEP = 0.9, 4, 2.55, 2.82

LETTERS = 36  # above the image
OUTLINE = "#3ddbd9"


def draw(path: Path, image: NDArray[np.uint8], reports: Sequence[BlockReport], setting: Setting) -> None:
    """Write the PNG. `image` is (S, S, 3), as the model saw it."""
    compose(image, reports, setting).savefig(path, format="png")


def compose(image: NDArray[np.uint8], reports: Sequence[BlockReport], setting: Setting) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    _head(figure, setting)
    _image(figure, image, setting)
    _norm_map(figure, reports, setting)
    _text(figure, 4.45, "Where the best head of each block looks", size=14, weight="bold", color=INK)
    _text(figure, 4.2, _meaning(setting.reading), size=10.5, color=FAINT)
    for panel, block in enumerate(spaced(len(reports), PANELS)):
        _look(figure, LEFT + panel * PANEL_STEP, image, block, reports[block], setting.reading)
    return figure


def spaced(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `count`, from the first to the last."""
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    axes: Axes = figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))
    return axes


def _text(figure: Figure, bottom: float, words: str, **style: Any) -> None:
    figure.text(LEFT / WIDTH, bottom / HEIGHT, words, va="baseline", parse_math=False, **style)


def _head(figure: Figure, setting: Setting) -> None:
    title = "Residual self-attention: which head wins, and where it looks"
    _text(figure, HEIGHT - 0.55, title, size=20, weight="bold", color=INK)
    facts = (
        setting.model,
        drawing.label(setting.weights, "weights from a file", 2 * LETTERS),
        f"N = {setting.tokens} tokens ({setting.grid}\u00d7{setting.grid} patches and the class token)",
    )
    _text(figure, HEIGHT - 0.9, "   \u00b7   ".join(facts), size=11, color=FAINT)


def _image(figure: Figure, image: NDArray[np.uint8], setting: Setting) -> None:
    axes = _axes(figure, LEFT, UPPER_ROW, UPPER_SIZE, UPPER_SIZE)
    drawing.bare(axes)
    axes.set(xticks=[], yticks=[])
    axes.imshow(image, interpolation="bicubic")
    reading = setting.reading
    if reading is None:
        source = drawing.label(setting.source, "your image", LETTERS)
        detail = f"{source}, {len(image)}\u00d7{len(image)}"
    else:
        detail = f"digit: {reading.digit}; the model reads: {reading.answer} ({reading.probability:.1%})"
    drawing.title(axes, "The image", detail)


def _norm_map(figure: Figure, reports: Sequence[BlockReport], setting: Setting) -> None:
    norms = torch.stack([report.norms for report in reports])
    winners = torch.tensor([report.best_head for report in reports])
    shares = torch.nn.functional.one_hot(winners, norms.shape[1])
    axes = _axes(figure, MAP_LEFT, UPPER_ROW, MAP_WIDTH, UPPER_SIZE)
    cells = drawing.norm_cells(axes, norms, shares, [str(block) for block in range(len(reports))])
    ranked = "dot: the best head, whose output is added once more"
    tied = "all heads tie, so the output of head 0 is added once more (dots)"
    ties = bool((norms == norms[:, :1]).all())
    drawing.title(axes, "The norm of every head", tied if ties else ranked)
    drawing.scale_beside(axes, cells, 1.6, f"{setting.norm} norm, within its block", {0: "least", 1: "most"})


def _meaning(reading: Reading | None) -> str:
    words = "bright: patches that receive much of the head's attention"
    if reading is None:
        return words
    return f"{words}; frame: the digit, {reading.area:.0%} of the image; percent: shares of the head's attention"


def _look(
    figure: Figure, left: float, image: NDArray[np.uint8], block: int, report: BlockReport, reading: Reading | None
) -> None:
    """The attention the patches receive from the block's best head, over the image."""
    axes = _axes(figure, left, LOWER_ROW, PANEL_SIZE, PANEL_SIZE)
    patches = report.received[1:]
    side = math.isqrt(patches.numel())
    colors = drawing.look(axes, image / 255.0, patches.reshape(side, side))
    class_token = float(report.received[0] / report.received.sum())
    if reading is None:
        detail = f"class token receives {class_token:.1%}"
    else:
        _outline(axes, reading.on_digit.reshape(side, side), len(image) / side)
        on_digit = float(share_on_digit(report.received, reading.on_digit))
        detail = f"digit {on_digit:.0%}, class token {class_token:.0%}"
    drawing.title(axes, f"Block {block}, head {report.best_head}", detail)
    drawing.scale_below(axes, colors, "attention received (1 = equal)")


def _outline(axes: Axes, patches: Tensor, size: float) -> None:
    """A frame around the True ones of `patches` (rows, columns), each `size` pixels wide."""
    from matplotlib.patches import Rectangle

    rows, columns = patches.nonzero(as_tuple=True)
    corner = float(columns.min()) * size - 0.5, float(rows.min()) * size - 0.5
    width, height = (float(at.max() - at.min() + 1) * size for at in (columns, rows))
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=OUTLINE, linewidth=1.5))
