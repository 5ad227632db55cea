"""Marks on matplotlib axes that `rsattn.plot` and `rsattn demo` share, made from plain numbers.

Nothing here knows a record or a page; matplotlib is imported by whoever makes the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.image import AxesImage
    from matplotlib.transforms import Transform

INK, FAINT = "#1b1f24", "#5d656f"
# Perceptually uniform, both. Dark is much on white paper; over a dark image bright is.
MAP_COLOURS, LOOK_COLOURS = "magma_r", "inferno"
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
ROW = ("axes fraction", "data")  # a place beside a row of a map


def beside(axes: Axes, words: str, at: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Words `offset` points from the place `at`, in fractions of the axes unless `xycoords` differs."""
    style = {"xycoords": "axes fraction", "color": FAINT, "size": 10.5, **style}
    axes.annotate(words, at, offset, textcoords="offset points", annotation_clip=False, parse_math=False, **style)


def title(axes: Axes, words: str, detail: str) -> None:
    """Two lines above the axes' left edge."""
    axes.set_title(words, loc="left", y=1.0, pad=25, size=14, weight="bold", color=INK, parse_math=False)
    beside(axes, detail, (0, 1), (0, 8))


def bare(axes: Axes) -> None:
    """No frame and no tick marks."""
    axes.tick_params(which="both", length=0, labelsize=10, labelcolor=FAINT)
    for spine in axes.spines.values():
        spine.set_visible(False)


def head_map(axes: Axes, values: NDArray[np.float64], blocks: Sequence[str]) -> AxesImage:
    """A cell for each block (row) and head (column), coloured by `values` (blocks, H) from 0 to 1."""
    rows, heads = values.shape
    bare(axes)
    image = axes.imshow(values, cmap=MAP_COLOURS, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(heads))
    axes.set_yticks(range(rows), labels=blocks)
    axes.set_xticks(np.arange(heads + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.set_xlabel("head", size=11, color=FAINT)
    axes.set_ylabel("block", size=11, color=FAINT)
    return image


def norm_cells(axes: Axes, norms: Tensor, shares: Tensor, blocks: Sequence[str]) -> AxesImage:
    """The norm of every head, and dots on the winners.

    Colours compare the heads of one block, as the ranking does; two columns of numbers in the 1.3 inches right of
    the axes give each row its scale.

    Args:
        norms: (blocks, H).
        shares: (blocks, H), how often each head won, from 0 to 1: the area of its dot.
        blocks: what the rows are called.
    """
    norms = norms.double()
    least, most = norms.amin(1), norms.amax(1)
    span = most - least
    image = head_map(axes, np.asarray((norms - least[:, None]) / span.where(span != 0, 1.0)[:, None]), blocks)
    row, head = shares.nonzero(as_tuple=True)
    share = np.asarray(shares[row, head].double())
    axes.scatter(head, row, s=95.0 * share, c="white", edgecolors=INK, linewidths=(1.4 * share**0.5).tolist(), zorder=3)
    for words, values, right in (("least", least, 44), ("most", most, 88)):
        beside(axes, words, (1, 1), (right, 8), ha="right")
        for index, value in enumerate(values.tolist()):
            beside(axes, number(value), (1, index), (right, 0), xycoords=ROW, ha="right", va="center")
    return image


def scale_beside(axes: Axes, image: AxesImage, inches: float, words: str, ticks: dict[float, str]) -> Axes:
    """A colour bar as high as the axes, so many inches right of them, whatever lies between."""
    from matplotlib.transforms import blended_transform_factory

    place = blended_transform_factory(_inches_from(axes, (1, 0)), axes.transAxes)
    scale = axes.inset_axes((inches, 0, 0.16, 1), transform=place)
    axes.figure.colorbar(image, cax=scale, ticks=list(ticks)).outline.set_visible(False)
    scale.set_yticklabels(list(ticks.values()), size=10.5)
    scale.tick_params(length=0, labelcolor=FAINT)
    scale.set_ylabel(words, size=11, color=FAINT)
    return scale


def scale_below(axes: Axes, colours: ScalarMappable, words: str) -> Axes:
    """A colour bar as wide as the axes, below them, with its least and its most; the words on a line of their own."""
    from matplotlib.transforms import blended_transform_factory

    place = blended_transform_factory(axes.transAxes, _inches_from(axes, (0, 0)))
    scale = axes.inset_axes((0, -0.22, 1, 0.12), transform=place)
    axes.figure.colorbar(colours, cax=scale, orientation="horizontal", ticks=[]).outline.set_visible(False)
    least, most = colours.get_clim()
    beside(scale, number(least), (0, 0), (0, -13))
    beside(scale, number(most), (1, 0), (0, -13), ha="right")
    beside(scale, words, (0.5, 0), (0, -27), ha="center")
    return scale


def _inches_from(axes: Axes, corner: tuple[int, int]) -> Transform:
    """Inches right of and above a corner of the axes, wherever a layout moves them."""
    from matplotlib.transforms import ScaledTranslation

    fractions: Any = axes.transAxes  # affine, which its type does not say
    inches: Transform = axes.figure.dpi_scale_trans + ScaledTranslation(*corner, fractions)
    return inches


def number(value: float) -> str:
    """Three digits, their zeros kept: 1.10, 0.0120, 197."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def upsampled(patches: Tensor, height: int, width: int) -> NDArray[np.float64]:
    """(rows, columns) numbers of a patch grid -> (height, width), smooth, none outside the range of the given ones."""
    smooth = torch.nn.functional.interpolate(
        patches.double()[None, None], size=(height, width), mode="bicubic", align_corners=False
    )
    return np.asarray(smooth[0, 0].clamp(float(patches.min()), float(patches.max())))


def look(axes: Axes, pixels: NDArray[np.float64], patches: Tensor) -> ScalarMappable:
    """What the patches receive, over the image in grey: what receives least shows the image, most the colour.

    Args:
        pixels: (height, width, 3) or (height, width), from 0 to 1.
        patches: (rows, columns).

    Returns:
        The scale of the colours, from the least of `patches` to the most.
    """
    from matplotlib.cm import ScalarMappable

    colours = ScalarMappable(cmap=LOOK_COLOURS)
    colours.set_clim(float(patches.min()), float(patches.max()))
    received = upsampled(patches, *pixels.shape[:2])
    strength = 0.15 + 0.65 * np.asarray(colours.norm(received))[..., None]
    grey = (pixels @ LUMINANCE if pixels.ndim == 3 else pixels)[..., None]
    bare(axes)
    axes.set(xticks=[], yticks=[])
    axes.imshow(grey * (1 - strength) + colours.to_rgba(received)[..., :3] * strength, interpolation="bicubic")
    return colours
