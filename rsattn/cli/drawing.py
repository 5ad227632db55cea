"""Parts of matplotlib figures that `rsattn.plot`, the commands and the benchmarks share.

The functions take plain numbers and existing axes; the caller imports matplotlib and creates the figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .command import finished_file, shown, writing

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.transforms import Transform

INK, FAINT = "#1b1f24", "#5d656f"
# Both are perceptually uniform. On a white page, dark means much; on an image, bright means much.
MAP_COLORS, LOOK_COLORS = "magma_r", "inferno"
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
ROW = ("axes fraction", "data")  # coordinates of a point beside a row of a map


def label(name: str, otherwise: str, longest: int) -> str:
    """A name for a figure: on one line, without the middle where it is longer than `longest` characters.

    Args:
        otherwise: the label where the font lacks a letter of the name, which would be drawn as an empty box.
    """
    name = shown(name)
    if not _letters() >= {ord(letter) for letter in name}:
        return otherwise
    half = longest // 2 - 1
    return name if len(name) <= longest else f"{name[:half]}\u2026{name[-half:]}"


@cache
def _letters() -> frozenset[int]:
    """The letters of matplotlib's font."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    return frozenset(font.get_charmap())


def save_vector(figure: Figure, stem: Path) -> None:
    """Save a figure as `stem`.svg and `stem`.pdf for a paper.

    Text stays text. The same figure gives the same bytes.

    Raises:
        CommandError: a file cannot be written.
    """
    import matplotlib

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "rsattn", "pdf.fonttype": 42}
    for kind, undated in (("svg", "Date"), ("pdf", "CreationDate")):
        path = stem.with_name(f"{stem.name}.{kind}")
        with finished_file(path) as partial, writing(path), matplotlib.rc_context(settings):
            figure.savefig(partial, format=kind, metadata={undated: None})


def beside(axes: Axes, words: str, at: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Write text `offset` points away from `at`, which is in fractions of the axes unless `xycoords` says otherwise."""
    style = {"xycoords": "axes fraction", "color": FAINT, "size": 10.5, **style}
    axes.annotate(words, at, offset, textcoords="offset points", annotation_clip=False, parse_math=False, **style)


def title(axes: Axes, words: str, detail: str) -> None:
    """Write a title and a line of detail above the axes, aligned left."""
    axes.set_title(words, loc="left", y=1.0, pad=25, size=14, weight="bold", color=INK, parse_math=False)
    beside(axes, detail, (0, 1), (0, 8))


def bare(axes: Axes) -> None:
    """Remove the frame and the tick marks."""
    axes.tick_params(which="both", length=0, labelsize=10, labelcolor=FAINT)
    for spine in axes.spines.values():
        spine.set_visible(False)


def head_map(axes: Axes, values: Iterable[Tensor], blocks: Sequence[str]) -> AxesImage:
    """Draw a cell for each block (row) and head (column), colored by `values`, (H,) of each block, from 0 to 1."""
    cells = torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True, padding_value=torch.nan)
    rows, heads = cells.shape
    bare(axes)
    image = axes.imshow(np.asarray(cells), cmap=MAP_COLORS, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(heads))
    axes.set_yticks(range(rows), labels=blocks)
    axes.set_xticks(np.arange(heads + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.set_xlabel("head", size=11, color=FAINT)
    axes.set_ylabel("block", size=11, color=FAINT)
    return image


def norm_cells(axes: Axes, norms: Iterable[Tensor], shares: Iterable[Tensor], blocks: Sequence[str]) -> AxesImage:
    """Draw the norm of every head, with dots on the best heads.

    Colours compare the heads of one block, as the ranking does; two columns of numbers in the 1.4 inches right of
    the axes give each row its scale.

    Args:
        norms: (H,) of each block; blocks may differ in their number of heads.
        shares: (H,) of each block, how often each head was best, from 0 to 1: the area of its dot.
        blocks: the labels of the rows.
    """
    rows = [row.double() for row in norms]
    least, most = [float(row.amin()) for row in rows], [float(row.amax()) for row in rows]
    cells = [(row - low) / ((high - low) or 1.0) for row, low, high in zip(rows, least, most)]
    image = head_map(axes, cells, blocks)
    padded = torch.nn.utils.rnn.pad_sequence(list(shares), batch_first=True)
    row, head = padded.nonzero(as_tuple=True)
    share = np.asarray(padded[row, head].double())
    axes.scatter(head, row, s=95.0 * share, c="white", edgecolors=INK, linewidths=(1.4 * share**0.5).tolist(), zorder=3)
    for words, values, right in (("least", least, 50), ("most", most, 100)):
        beside(axes, words, (1, 1), (right, 8), ha="right")
        for index, value in enumerate(values):
            beside(axes, number(value), (1, index), (right, 0), xycoords=ROW, ha="right", va="center")
    return image


def scale_beside(axes: Axes, image: AxesImage, inches: float, words: str, ticks: dict[float, str]) -> Axes:
    """Draw a color bar as high as the axes, `inches` to the right of them."""
    from matplotlib.transforms import blended_transform_factory

    place = blended_transform_factory(_inches_from(axes, (1, 0)), axes.transAxes)
    scale = axes.inset_axes((inches, 0, 0.16, 1), transform=place)
    axes.figure.colorbar(image, cax=scale, ticks=list(ticks)).outline.set_visible(False)
    scale.set_yticklabels(list(ticks.values()), size=10.5)
    scale.tick_params(length=0, labelcolor=FAINT)
    scale.set_ylabel(words, size=11, color=FAINT)
    return scale


def scale_below(axes: Axes, colors: ScalarMappable, words: str) -> Axes:
    """Draw a color bar as wide as the axes, below them, with its smallest and largest value and a label."""
    from matplotlib.transforms import blended_transform_factory

    place = blended_transform_factory(axes.transAxes, _inches_from(axes, (0, 0)))
    scale = axes.inset_axes((0, -0.22, 1, 0.12), transform=place)
    axes.figure.colorbar(colors, cax=scale, orientation="horizontal", ticks=[]).outline.set_visible(False)
    least, most = colors.get_clim()
    beside(scale, number(least), (0, 0), (0, -13))
    beside(scale, number(most), (1, 0), (0, -13), ha="right")
    beside(scale, words, (0.5, 0), (0, -27), ha="center")
    return scale


def _inches_from(axes: Axes, corner: tuple[int, int]) -> Transform:
    """A transform from inches, measured right and up from a corner of the axes."""
    from matplotlib.transforms import ScaledTranslation

    fractions: Any = axes.transAxes  # it is affine, which its type does not say
    inches: Transform = axes.figure.dpi_scale_trans + ScaledTranslation(*corner, fractions)
    return inches


def number(value: float) -> str:
    """The number with three digits, zeros included: 1.10, 0.0120, 197, 2.44e-4."""
    if 0 < abs(value) < 0.001:
        digits, power = f"{value:.2e}".split("e")
        return f"{digits}e{int(power)}"
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def upsampled(patches: Tensor, height: int, width: int) -> NDArray[np.float64]:
    """Upsample a patch grid (rows, columns) to (height, width) smoothly, within the range of its values."""
    smooth = torch.nn.functional.interpolate(
        patches.double()[None, None], size=(height, width), mode="bicubic", align_corners=False
    )
    return np.asarray(smooth[0, 0].clamp(float(patches.min()), float(patches.max())))


def look(axes: Axes, pixels: NDArray[np.float64], patches: Tensor) -> ScalarMappable:
    """Draw the attention that the patches receive over the gray image: the more attention, the stronger the color.

    Args:
        pixels: (height, width, 3) or (height, width), from 0 to 1.
        patches: (rows, columns).

    Returns:
        The color scale, from the smallest value of `patches` to the largest.
    """
    from matplotlib.cm import ScalarMappable

    colors = ScalarMappable(cmap=LOOK_COLORS)
    colors.set_clim(float(patches.min()), float(patches.max()))
    received = upsampled(patches, *pixels.shape[:2])
    strength = 0.15 + 0.65 * np.asarray(colors.norm(received))[..., None]
    gray = (pixels @ LUMINANCE if pixels.ndim == 3 else pixels)[..., None]
    bare(axes)
    axes.set(xticks=[], yticks=[])
    axes.imshow(gray * (1 - strength) + colors.to_rgba(received)[..., :3] * strength, interpolation="bicubic")
    return colors


def fade(axes: Axes, pixels: NDArray[np.float64], patches: Tensor) -> None:
    """Draw the image, with most of the color and contrast gone where `patches` is True.

    Patches fade to a medium gray, which differs from black and white backgrounds alike.

    Args:
        pixels: (height, width, 3) or (height, width), from 0 to 1.
        patches: (rows, columns) bool.
    """
    height, width = pixels.shape[:2]
    color = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    row, column = (np.arange(size) * count // size for size, count in zip((height, width), patches.shape))
    faded = np.asarray(patches)[row[:, None], column][..., None]
    bare(axes)
    axes.set(xticks=[], yticks=[])
    axes.imshow(np.where(faded, 0.5 + 0.2 * ((color @ LUMINANCE)[..., None] - 0.5), color), interpolation="bicubic")
