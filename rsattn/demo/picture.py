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
from torch import Tensor

from .blocks import BlockReport
from .words import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches on the page, from its lower left corner.
WIDTH, HEIGHT, DPI = 16.0, 12.35, 100
LEFT, UPPER_ROW, UPPER_SIZE = 0.65, 6.15, 4.1
LOWER_ROW, PANELS, PANEL_SIZE, PANEL_STEP = 1.6, 4, 3.4, 3.77

INK, FAINT, WARNING = "#1b1f24", "#5d656f", "#b3261e"
NORM_COLOURS, LOOK_COLOURS = "magma_r", "inferno"
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


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


def upsampled(patches: Tensor, size: int) -> NDArray[np.float64]:
    """(g*g,) numbers of a patch grid -> (size, size), smooth, none outside the range of the given ones."""
    grid = math.isqrt(patches.numel())
    smooth = torch.nn.functional.interpolate(
        patches.double().reshape(1, 1, grid, grid), size=(size, size), mode="bicubic", align_corners=False
    )
    return np.asarray(smooth[0, 0].clamp(float(patches.min()), float(patches.max())))


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    axes: Axes = figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))
    axes.tick_params(which="both", length=0, labelsize=10, labelcolor=FAINT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _bare_axes(figure: Figure, left: float, bottom: float, size: float) -> Axes:
    axes = _axes(figure, left, bottom, size, size)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def _text(figure: Figure, bottom: float, words: str, **style: Any) -> None:
    figure.text(LEFT / WIDTH, bottom / HEIGHT, words, va="baseline", parse_math=False, **style)


def _beside(axes: Axes, words: str, at: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Words `offset` points from the place `at`, in fractions of the axes unless `xycoords` differs."""
    style = {"xycoords": "axes fraction", "color": FAINT, "size": 10.5, **style}
    axes.annotate(words, at, offset, textcoords="offset points", annotation_clip=False, parse_math=False, **style)


def _title(axes: Axes, words: str, detail: str) -> None:
    _beside(axes, words, (0, 1), (0, 25), size=14, weight="bold", color=INK)
    _beside(axes, detail, (0, 1), (0, 8))


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
    axes = _bare_axes(figure, LEFT, UPPER_ROW, UPPER_SIZE)
    axes.imshow(square, interpolation="bicubic")
    _title(axes, "The picture", f"{setting.source}, {len(square)}\u00d7{len(square)}")


def _norm_map(figure: Figure, reports: Sequence[BlockReport], setting: Setting) -> None:
    """Colours compare the heads of one block, as the ranking does; numbers beside each row give its scale."""
    norms = torch.stack([report.norms for report in reports]).double()
    blocks, heads = norms.shape
    least, most = norms.amin(1), norms.amax(1)
    place = ((norms - least[:, None]) / (most - least)[:, None]).nan_to_num(0.0)
    axes = _axes(figure, 5.75, UPPER_ROW, 7.3, UPPER_SIZE)
    image = axes.imshow(np.asarray(place), cmap=NORM_COLOURS, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(heads))
    axes.set_yticks(range(blocks))
    axes.set_xticks(np.arange(heads + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(blocks + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.set_xlabel("head", size=11, color=FAINT)
    axes.set_ylabel("block", size=11, color=FAINT)
    winners = [report.best_head for report in reports]
    axes.scatter(winners, range(blocks), s=95, c="white", edgecolors=INK, linewidths=1.4, zorder=3)
    ranked = "a white dot marks the best head, whose output the block adds once more"
    tied = "all heads tie, so the block adds the output of head 0 once more (white dots)"
    _title(axes, "The norm of every head", tied if bool((least == most).all()) else ranked)
    _beside(axes, "least", (1, 1), (44, 8), ha="right")
    _beside(axes, "most", (1, 1), (88, 8), ha="right")
    for row in range(blocks):
        for value, right in ((least[row], 44), (most[row], 88)):
            _beside(
                axes,
                _number(float(value)),
                (1, row),
                (right, 0),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
            )
    scale = _axes(figure, 14.75, UPPER_ROW, 0.16, UPPER_SIZE)
    bar = figure.colorbar(image, cax=scale, ticks=[0, 1])
    bar.outline.set_visible(False)
    scale.set_yticklabels(["least", "most"], size=10.5)
    scale.tick_params(length=0, labelcolor=FAINT)
    _beside(scale, f"{setting.norm} norm, within its block", (1, 0.5), (14, 0), rotation=90, va="center", size=11)


def _number(value: float) -> str:
    """Three digits, their zeros kept: 1.10, 0.0120, 197."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def _look(figure: Figure, left: float, square: NDArray[np.uint8], block: int, report: BlockReport) -> None:
    """The attention the patches receive from the block's best head, over the picture in grey.

    What receives least shows the picture, what receives most shows the colour.
    """
    from matplotlib.cm import ScalarMappable

    patches = report.received[1:]
    colours = ScalarMappable(cmap=LOOK_COLOURS)
    colours.set_clim(float(patches.min()), float(patches.max()))
    received = upsampled(patches, len(square))
    strength = 0.15 + 0.65 * np.asarray(colours.norm(received))[..., None]
    grey = (square / 255.0 @ LUMINANCE)[..., None]
    axes = _bare_axes(figure, left, LOWER_ROW, PANEL_SIZE)
    axes.imshow(grey * (1 - strength) + colours.to_rgba(received)[..., :3] * strength, interpolation="bicubic")
    share = float(report.received[0] / report.received.sum())
    _title(
        axes,
        f"Block {block}, head {report.best_head}",
        f"class token receives {share:.1%} of its attention",
    )
    scale = _axes(figure, left, LOWER_ROW - 0.22, PANEL_SIZE, 0.12)
    bar = figure.colorbar(colours, cax=scale, orientation="horizontal", ticks=[])
    bar.outline.set_visible(False)
    _beside(scale, f"{float(patches.min()):.2f}", (0, 0), (0, -13))
    _beside(scale, "attention received (1 = equal)", (0.5, 0), (0, -13), ha="center")
    _beside(scale, f"{float(patches.max()):.2f}", (1, 0), (0, -13), ha="right")


def _foot(figure: Figure, setting: Setting) -> None:
    if setting.random:
        words = "Random weights: the maps mean nothing yet. For real ones: rsattn demo --pretrained"
        _text(figure, 0.5, words, size=13, weight="bold", color=WARNING)
    else:
        words = "Attention received: the column sums of the best head's probabilities, computed in float64."
        _text(figure, 0.5, words, size=11, color=FAINT)
