"""The demo's figure: the picture, every head's norm with the winners marked, and where the winners look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .demo_blocks import BlockReport
from .demo_words import Setting

WIDTH, HEIGHT, DPI = 16.0, 11.6, 100
INK, FAINT, WARNING = "#1b1f24", "#68707a", "#b3261e"
NORM_COLOURS, LOOK_COLOURS = "magma_r", "inferno"
PANELS = 4


def draw(path: Path, square: NDArray[np.uint8], reports: Sequence[BlockReport], setting: Setting) -> None:
    """Write the PNG. `square` is (S, S, 3), the picture as the model saw it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    _head(figure, setting)
    _picture(figure, square, setting)
    _norm_map(figure, reports, setting)
    chosen = _spaced(len(reports))
    for column, block in enumerate(chosen):
        _look(figure, column, square, block, reports[block])
    _foot(figure, setting)
    figure.savefig(path, format="png", dpi=DPI)


def _spaced(blocks: int) -> list[int]:
    """A few blocks from the first to the last."""
    return sorted({round(i * (blocks - 1) / (PANELS - 1)) for i in range(PANELS)})


def _axes(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes placed in inches from the lower left corner."""
    return figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))


def _text(figure: Any, left: float, bottom: float, words: str, **style: Any) -> None:
    figure.text(left / WIDTH, bottom / HEIGHT, words, **{"color": INK, "va": "baseline", **style})


def _head(figure: Any, setting: Setting) -> None:
    _text(
        figure,
        0.6,
        10.95,
        "Residual self-attention: which head wins, and where it looks",
        size=23,
        weight="bold",
    )
    facts = (
        "ViT-B/16",
        setting.weights,
        f"norm = {setting.norm}",
        f"N = {setting.tokens} tokens ({setting.grid} × {setting.grid} patches and the class token)",
    )
    _text(figure, 0.6, 10.5, "   ·   ".join(facts), size=13, color=FAINT)


def _title(axes: Any, words: str, detail: str) -> None:
    axes.annotate(
        words,
        (0, 1),
        (0, 24),
        xycoords="axes fraction",
        textcoords="offset points",
        size=14,
        weight="bold",
        color=INK,
    )
    axes.annotate(
        detail, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", size=11, color=FAINT
    )


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _picture(figure: Any, square: NDArray[np.uint8], setting: Setting) -> None:
    axes = _axes(figure, 0.6, 5.3, 4.1, 4.1)
    axes.imshow(square, interpolation="bicubic")
    _bare(axes)
    _title(axes, "The picture", f"{setting.source}, {len(square)} × {len(square)}")


def _norm_map(figure: Any, reports: Sequence[BlockReport], setting: Setting) -> None:
    """Colours compare heads within a block, as the ranking does; the numbers beside each row give its scale."""
    from matplotlib.colors import Normalize

    norms = torch.stack([report.norms for report in reports]).double()
    low, high = norms.amin(1, keepdim=True), norms.amax(1, keepdim=True)
    span = high - low
    place = torch.where(span > 0, (norms - low) / span, 0.0)
    axes = _axes(figure, 5.75, 5.3, 7.1, 4.1)
    image = axes.imshow(
        place.numpy(), cmap=NORM_COLOURS, norm=Normalize(0, 1), aspect="auto", interpolation="nearest"
    )
    blocks, heads = norms.shape
    axes.set_xticks(range(heads))
    axes.set_yticks(range(blocks))
    axes.set_xticks(np.arange(heads + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(blocks + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0, labelsize=10, colors=FAINT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("head", size=11, color=FAINT)
    axes.set_ylabel("block", size=11, color=FAINT)
    winners = [report.best_head for report in reports]
    axes.scatter(winners, range(blocks), s=105, c="white", edgecolors=INK, linewidths=1.4, zorder=3)
    for row, report in enumerate(reports):
        words = f"{_number(float(low[row]))} – {_number(float(high[row]))}" if span[row] > 0 else "all tie"
        axes.annotate(
            words, (1, row), (10, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", size=10, color=FAINT,
        )  # fmt: skip
        del report
    _title(axes, "The norm of every head", "a white dot marks the head that is added to the block's output")
    axes.annotate(
        "norms, least – most", (1, 1), (10, 8), xycoords="axes fraction", textcoords="offset points",
        size=10, color=FAINT,
    )  # fmt: skip
    bar_axes = _axes(figure, 14.85, 5.3, 0.16, 4.1)
    bar = figure.colorbar(image, cax=bar_axes)
    bar.outline.set_visible(False)
    bar.set_ticks([0, 1], labels=["least", "most"])
    bar_axes.tick_params(length=0, labelsize=10, colors=FAINT)
    bar.set_label(f"{setting.norm} norm within its block", size=11, color=FAINT, labelpad=-14)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _look(figure: Any, column: int, square: NDArray[np.uint8], block: int, report: BlockReport) -> None:
    """The attention received by the patches from the block's best head, over the picture in grey."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    size = 3.4
    axes = _axes(figure, 0.6 + column * (size + 0.4), 0.95 + 0.4, size, size)
    received = upsampled(report.received[1:], len(square))
    limits = Normalize(float(received.min()), max(float(received.max()), float(received.min()) + 1e-9))
    colours = colormaps[LOOK_COLOURS](limits(received))[..., :3]
    grey = (square.astype(float) / 255.0) @ np.array([0.2126, 0.7152, 0.0722])
    strength = 0.35 + 0.45 * np.asarray(limits(received))[..., None]
    axes.imshow(grey[..., None] * (1 - strength) + colours * strength, interpolation="bicubic")
    _bare(axes)
    share = float(report.received[0] / report.received.sum())
    _title(
        axes,
        f"Block {block}, head {report.best_head}",
        f"{share:.1%} of its attention goes to the class token",
    )


def upsampled(patches: Tensor, size: int) -> NDArray[np.float64]:
    """(g*g,) numbers of a patch grid -> (size, size), smooth."""
    grid = int(patches.numel() ** 0.5)
    smooth = torch.nn.functional.interpolate(
        patches.double().reshape(1, 1, grid, grid), size=(size, size), mode="bicubic", align_corners=False
    )
    return np.asarray(smooth[0, 0].clamp(min=0.0))


def _foot(figure: Any, setting: Setting) -> None:
    if setting.random:
        _text(
            figure,
            0.6,
            0.45,
            "Random weights: the maps mean nothing yet.",
            size=13,
            color=WARNING,
            weight="bold",
        )
