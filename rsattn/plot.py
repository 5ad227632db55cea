"""`rsattn.plot`: figures of a `Record`. Which heads won, by how much, and where they look.

    with rsattn.record(model, received=True) as record:
        model(pictures)
    rsattn.plot.attention_overlay(pictures[0], record).savefig("look.png")

Needs matplotlib. Figures are made without pyplot, so nothing is shown and nothing has to be closed; a notebook shows
the one a cell ends with. Given `axes`, a function draws there, in whatever figure they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cli import drawing
from .recording import BlockRecord, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["attention_overlay", "head_choices", "norm_map"]


def norm_map(record: Record, sample: int | None = None, axes: Axes | None = None) -> Figure:
    """The norm of every head of every block, with dots on the winners.

    Colours run from a block's least norm to its most, because only the heads of one block compete; two columns of
    numbers say what least and most are. A dot's area is the share of samples whose best head that was.

    Args:
        record: of any number of samples.
        sample: the one to show; negative counts from the end. Default: the mean of the norms over all samples.
        axes: where to draw, with 2.5 inches of space on the right. Default: a new figure.

    Returns:
        The figure. The first image of its axes holds the numbers that colours stand for, (blocks, H) from 0 to 1.

    Raises:
        RuntimeError: the record is empty, or its blocks differ in their number of heads.
        IndexError: there is no such sample.
        ImportError: matplotlib is not installed.
    """
    norms, best_head = record.norms.cpu(), record.best_head.cpu()
    samples = norms.shape[1]
    if sample is None:
        of = "sample 0" if samples == 1 else f"mean of {samples} samples"
    else:
        which = _sample_index(sample, samples)
        norms, best_head, of = norms[:, which : which + 1], best_head[:, which : which + 1], f"sample {which}"
    blocks, _, heads = norms.shape
    if axes is None:
        axes = _new_axes(3.4 + 0.5 * max(heads, 9), 1.6 + 0.33 * max(blocks, 10))
    means, shares = norms.double().mean(1), _shares(best_head, heads)
    image = drawing.norm_cells(axes, means, shares, block_labels(list(record.blocks)))
    dots = "the best head" if norms.shape[1] == 1 else "how often best"
    drawing.title(axes, "The norm of every head", f"{of}; dot: {dots}")
    words = "norm of the head's attention, within its block"
    drawing.scale_beside(axes, image, 1.5, words, {0: "least", 1: "most"})
    return _figure_of(axes)


def head_choices(record: Record, axes: Axes | None = None) -> Figure:
    """How often each block chose each head, over all samples of the record: a data set's, after one pass over it.

    Args:
        record: of any number of samples.
        axes: where to draw, with an inch of space on the right. Default: a new figure.

    Returns:
        The figure. The first image of its axes holds the shares (blocks, H), from 0 to 1; a row sums to 1. Shares
        that are not 0 are written into the cells in percent.

    Raises:
        RuntimeError: the record is empty, or its blocks differ in their number of heads.
        ImportError: matplotlib is not installed.
    """
    best_head, heads = record.best_head.cpu(), record.norms.shape[2]
    blocks, samples = best_head.shape
    if axes is None:
        axes = _new_axes(2.6 + 0.5 * max(heads, 9), 1.6 + 0.33 * max(blocks, 5))
    shares = _shares(best_head, heads)
    image = drawing.head_map(axes, np.asarray(shares), block_labels(list(record.blocks)))
    for block, head in shares.nonzero().tolist():
        share = float(shares[block, head])
        colour = "white" if share > 0.45 else drawing.INK
        axes.text(head, block, _percent(share), ha="center", va="center", size=9, color=colour, clip_on=True)
    of = "1 sample" if samples == 1 else f"{samples} samples"
    drawing.title(axes, "How often each head was best", f"percent of {of}, block by block")
    drawing.scale_beside(axes, image, 0.2, "share of the samples", {0: "0 %", 0.5: "50 %", 1: "100 %"})
    return _figure_of(axes)


def attention_overlay(
    picture: Tensor | NDArray[Any],
    record: Record,
    block: int = -1,
    sample: int = 0,
    head: int | None = None,
    prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    axes: Axes | None = None,
) -> Figure:
    """The attention each patch receives from one head, laid over the picture in grey.

    A patch receives sum_i P_ij from the queries i together; if all tokens received alike, that would be 1.

    Args:
        picture: what the model saw, of any size: (3, H, W), (H, W, 3) or grey (H, W), a tensor or an array. Bytes
            are taken as they are, other numbers too if they lie from 0 to 1; else, as after normalisation, they are
            stretched from their least to their most.
        record: made with `rsattn.record(model, received=True)`.
        block: which of the record's blocks; negative counts from the end.
        sample: which of its samples `picture` is; negative counts from the end.
        head: default, the best head.
        prefix_tokens: tokens before the patches, such as a class token and registers. Default: what `grid` leaves,
            or without it what the largest square leaves.
        grid: (rows, columns) of the patches, needed for a picture that is not square.
        axes: where to draw, with 0.7 inches of space below. Default: a new figure.

    Returns:
        The figure. The first image of its axes is the overlay, (H, W, 3) from 0 to 1.

    Raises:
        RuntimeError: the record holds no attention received.
        IndexError: there is no such block, sample or head.
        ValueError: the picture has another shape, or the tokens are not a grid of patches after their prefix.
        ImportError: matplotlib is not installed.
    """
    names = list(record.blocks)
    if not -len(names) <= block < len(names):
        raise IndexError(f"block={block}, and the record has blocks 0 to {len(names) - 1}")
    received, best = _of_sample(record.blocks[names[block]], sample)
    if head is None:
        head = best
    if not 0 <= head < len(received):
        raise IndexError(f"head={head}, and the block has heads 0 to {len(received) - 1}")
    pixels = as_pixels(picture)
    tokens = received.shape[1]
    rows, columns = grid or _square_grid(pixels, tokens, prefix_tokens)
    prefix = tokens - rows * columns
    if min(rows, columns) < 1 or prefix < 0 or prefix_tokens not in (None, prefix):
        raise ValueError(
            f"the block has {tokens} tokens, which are not {rows} x {columns} patches "
            + (f"after {prefix_tokens} prefix tokens" if prefix_tokens is not None else "and a prefix before them")
        )
    if axes is None:
        height, width = pixels.shape[:2]
        axes = _new_axes(5.0, 1.6 + 4.6 * height / width)
    colours = drawing.look(axes, pixels, received[head, prefix:].reshape(rows, columns))
    rank = "the best" if head == best else f"the best is {best}"
    detail = f"{rows}\u00d7{columns} patches"
    if prefix:
        share = float(received[head, :prefix].sum() / received[head].sum())
        detail += f"; {share:.1%} goes to the first {'token' if prefix == 1 else f'{prefix} tokens'}"
    drawing.title(axes, f"Block {block_labels(names)[block]}, head {head} ({rank})", detail)
    drawing.scale_below(axes, colours, "attention received (1 = equal)")
    return _figure_of(axes)


def block_labels(names: list[str]) -> list[str]:
    """What tells the blocks' names apart: "0", "1" for "blocks.0.attn", "blocks.1.attn"; else the names as they are."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) != 1 or len(names) == 1:
        return [name or "0" for name in names]
    varying = [len(set(column)) > 1 for column in zip(*parts)]
    return [".".join(part for part, varies in zip(name, varying) if varies) for name in parts]


def as_pixels(picture: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """A picture of any accepted kind -> (H, W, 3) or (H, W) float64 from 0 to 1."""
    values = np.asarray(picture.detach().cpu().double() if isinstance(picture, Tensor) else picture)
    bytes_ = picture.dtype == torch.uint8 if isinstance(picture, Tensor) else values.dtype == np.uint8
    values = values.astype(np.float64)
    if values.ndim == 3 and values.shape[0] in (1, 3):
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim < 2 or values.shape[2:] not in ((), (3,)) or values.size == 0:
        raise ValueError(
            f"a picture is (3, H, W), (H, W, 3), (1, H, W) or (H, W), and this one {tuple(picture.shape)}; of a batch "
            "pass one, such as pictures[0]"
        )
    if not np.isfinite(values).all():
        raise ValueError("the picture has numbers that are not finite")
    if bytes_:
        return values / 255.0
    least, most = values.min(), values.max()
    if least < 0.0 or most > 1.0:
        values = (values - least) / ((most - least) or 1.0)
    return values


def _square_grid(pixels: NDArray[np.float64], tokens: int, prefix: int | None) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    if height != width:
        raise ValueError(
            f"the picture is {height} x {width}, not square: give grid=(rows, columns) of its patches, or the square "
            "that the model saw"
        )
    side = math.isqrt(tokens if prefix is None else max(tokens - prefix, 0))
    if prefix is not None and side * side != tokens - prefix:
        raise ValueError(
            f"the block has {tokens} tokens, and without {prefix} prefix tokens the {tokens - prefix} left are no "
            "square of patches: give another prefix_tokens, or grid=(rows, columns)"
        )
    return side, side


def _of_sample(block: BlockRecord, sample: int) -> tuple[Tensor, int]:
    """(H, M) received and the best head. Forward passes may differ in M, so they are not joined."""
    if not block.received:
        raise RuntimeError(
            "the record holds no attention received: make it with `rsattn.record(model, received=True)`, and run the "
            "model inside"
        )
    received = [row for noted in block.received for row in noted.unbind(0)]
    which = _sample_index(sample, len(received))
    return received[which].cpu(), int(torch.cat(block.best_head)[which])


def _sample_index(sample: int, samples: int) -> int:
    if not -samples <= sample < samples:
        raise IndexError(f"sample={sample}, and the record has samples 0 to {samples - 1}")
    return sample % samples


def _shares(best_head: Tensor, heads: int) -> Tensor:
    """(blocks, samples) -> (blocks, H) float64, the share of samples whose best head each is."""
    return torch.nn.functional.one_hot(best_head, heads).double().mean(1)


def _percent(share: float) -> str:
    return "<1" if share < 0.005 else f"{100 * share:.0f}"


def _new_axes(width: float, height: float) -> Axes:
    """The axes of a new figure of so many inches."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError("rsattn.plot needs matplotlib: pip install 'rsattn[demo]'") from error
    margins = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    figure = Figure(figsize=(width, height), layout=margins, facecolor="white")
    axes: Axes = figure.add_subplot()
    return axes


def _figure_of(axes: Axes) -> Figure:
    figure: Figure = axes.figure.figure  # twice: axes may be in a part of a figure
    return figure
