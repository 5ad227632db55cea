"""The demo's figure: the picture, every head's norm with the winners marked, and where the winners look."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import drawing
from ..drawing import FAINT, INK
from .blocks import BlockReport
from .words import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches on the page, from its lower left corner.
WIDTH, HEIGHT, DPI = 16.0, 12.35, 100
LEFT, UPPER_ROW, UPPER_SIZE = 0.65, 6.15, 4.1
LOWER_ROW, PANELS, PANEL_SIZE, PANEL_STEP = 1.6, 4, 3.4, 3.77

WARNING = "#b3261e"


def draw(path: Path, square: NDArray[np.uint8], reports: Sequence[BlockReport], setting: Setting) -> None:
    """Write the PNG. `square` is (S, S, 3), the picture as the model saw it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    _head(figure, setting)
    _picture(figure, square, setting)
    _norm_map(figure, reports, setting)
    for panel, block in enumerate(spaced(len(reports), PANELS)):
        _look(figure, LEFT + panel * PANEL_STEP, square, block, reports[block])
    _foot(figure, setting)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a file's name in another script
        figure.savefig(path, format="png")


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
    _text(figure, HEIGHT - 0.7, title, size=23, weight="bold", color=INK)
    facts = (
        "ViT-B/16",
        setting.weights,
        f"norm = {setting.norm}",
        f"N = {setting.tokens} tokens ({setting.grid}\u00d7{setting.grid} patches and the class token)",
    )
    _text(figure, HEIGHT - 1.12, "   \u00b7   ".join(facts), size=13, color=FAINT)


def _picture(figure: Figure, square: NDArray[np.uint8], setting: Setting) -> None:
    axes = _axes(figure, LEFT, UPPER_ROW, UPPER_SIZE, UPPER_SIZE)
    drawing.bare(axes)
    axes.set(xticks=[], yticks=[])
    axes.imshow(square, interpolation="bicubic")
    drawing.title(axes, "The picture", f"{setting.source}, {len(square)}\u00d7{len(square)}")


def _norm_map(figure: Figure, reports: Sequence[BlockReport], setting: Setting) -> None:
    norms = torch.stack([report.norms for report in reports])
    winners = torch.tensor([report.best_head for report in reports])
    shares = torch.nn.functional.one_hot(winners, norms.shape[1])
    axes = _axes(figure, 5.75, UPPER_ROW, 7.3, UPPER_SIZE)
    image = drawing.norm_cells(axes, norms, shares, [str(block) for block in range(len(reports))])
    ranked = "a white dot marks the best head, whose output the block adds once more"
    tied = "all heads tie, so the block adds the output of head 0 once more (white dots)"
    ties = bool((norms == norms[:, :1]).all())
    drawing.title(axes, "The norm of every head", tied if ties else ranked)
    drawing.scale_beside(axes, image, 1.6, f"{setting.norm} norm, within its block", {0: "least", 1: "most"})


def _look(figure: Figure, left: float, square: NDArray[np.uint8], block: int, report: BlockReport) -> None:
    """The attention the patches receive from the block's best head, over the picture."""
    axes = _axes(figure, left, LOWER_ROW, PANEL_SIZE, PANEL_SIZE)
    patches = report.received[1:]
    side = math.isqrt(patches.numel())
    colours = drawing.look(axes, square / 255.0, patches.reshape(side, side))
    share = float(report.received[0] / report.received.sum())
    drawing.title(axes, f"Block {block}, head {report.best_head}", f"class token receives {share:.1%} of its attention")
    drawing.scale_below(axes, colours, "attention received (1 = equal)")


def _foot(figure: Figure, setting: Setting) -> None:
    if setting.random:
        words = "Random weights: the maps mean nothing yet. For real ones: rsattn demo --pretrained"
        _text(figure, 0.5, words, size=13, weight="bold", color=WARNING)
    else:
        words = "Attention received: the column sums of the best head's probabilities, computed in float64."
        _text(figure, 0.5, words, size=11, color=FAINT)
