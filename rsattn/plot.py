"""`rsattn.plot`: figures of a `rsattn.Record`: which heads are best, by how much, and what they attend to.

`pruning_overlay` shows which patches remain if those that receive the least attention are pruned.

It needs matplotlib. Figures are made without pyplot: no window opens and none has to be closed, and a notebook shows
the figure that a cell ends with. Save one with `figure.savefig`. Given `axes`, a function draws on them instead.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cli import drawing
from .contract import brief, check_integer, check_tensor
from .recording import BlockRecord, Record, check_complete

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["attention_overlay", "head_choices", "norm_map", "pruning_overlay"]


def norm_map(record: Record, sample: int | None = None, axes: Axes | None = None) -> Figure:
    """Draw the norm of every head of every block, with dots on the best heads.

    Colors run from the smallest to the largest norm of a block, because only the heads of one block compete; two
    columns of numbers give both. The area of a dot is the share of samples in which that head was best.

    Args:
        record: of any number of samples.
        sample: index of the sample to show, negative from the end; None for the mean of the norms over all samples of
            each block. In models with windows, a window counts as a sample.
        axes: matplotlib axes with 2.5 inches of space on the right; None for a new figure.

    Returns:
        matplotlib.figure.Figure: the first image of its axes holds the plotted values, (blocks, H) from 0 to 1; NaN
        where a block has fewer heads than another.

    Raises:
        RuntimeError: a block has recorded nothing.
        IndexError: there is no such sample.
        ValueError: `sample` is given, but blocks differ in their number of samples.
        TypeError: `record` or `axes` is something else.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> import rsattn
        >>> attention = rsattn.ResidualSelfAttention(dim=64, num_heads=4)
        >>> with rsattn.record(attention) as record:
        ...     output = attention(torch.randn(8, 10, 64))  # 8 samples, 10 tokens, 64 channels
        >>> figure = rsattn.plot.norm_map(record)
        >>> figure.axes[0].images[0].get_array().shape  # blocks, heads
        (1, 4)
    """
    _check_drawable(record, axes)
    norms, best_head, samples = _by_block(record)
    if sample is None:
        of = "sample 0" if samples == "1 sample" else f"mean of {samples}"
    else:
        if len(set(map(len, norms))) > 1:
            raise ValueError(
                f"sample={sample}, but the blocks have {samples}, because some attend in windows or run several times: "
                "leave sample out"
            )
        which = _sample_index(sample, len(norms[0]))
        norms, best_head, of = [n[[which]] for n in norms], [best[[which]] for best in best_head], f"sample {which}"
    if axes is None:
        axes = _new_axes(3.4 + 0.5 * max(9, *(n.shape[1] for n in norms)), 1.6 + 0.33 * max(len(norms), 10))
    means = [n.double().mean(0) for n in norms]
    image = drawing.norm_cells(axes, means, _shares(norms, best_head), block_labels(list(record.blocks)))
    dots = "the best head" if of.startswith("sample") else "how often best"
    drawing.title(axes, "The norm of every head", f"{of}; dot: {dots}")
    words = "norm of the head's attention, within its block"
    drawing.scale_beside(axes, image, 1.5, words, {0: "least", 1: "most"})
    return _figure_of(axes)


def head_choices(record: Record, axes: Axes | None = None) -> Figure:
    """Draw how often each head of each block was best, over all samples of the record.

    Record one pass over a data set to see its distribution of best heads.

    Args:
        record: of any number of samples.
        axes: matplotlib axes with one inch of space on the right; None for a new figure.

    Returns:
        matplotlib.figure.Figure: the first image of its axes holds the shares (blocks, H) from 0 to 1; a row sums
        to 1. NaN where a block has fewer heads than another. Cells show shares above 0 in percent.

    Raises:
        RuntimeError: a block has recorded nothing.
        TypeError: `record` or `axes` is something else.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> import rsattn
        >>> attention = rsattn.ResidualSelfAttention(dim=64, num_heads=4)
        >>> with rsattn.record(attention) as record:
        ...     for batch in torch.randn(5, 8, 10, 64):  # a data set of 5 batches of 8 samples
        ...         _ = attention(batch)
        >>> figure = rsattn.plot.head_choices(record)
        >>> shares = figure.axes[0].images[0].get_array()  # (blocks, heads)
        >>> round(float(shares.sum()), 6)
        1.0
    """
    _check_drawable(record, axes)
    norms, best_head, samples = _by_block(record)
    if axes is None:
        axes = _new_axes(2.6 + 0.5 * max(9, *(n.shape[1] for n in norms)), 1.6 + 0.33 * max(len(norms), 5))
    shares = _shares(norms, best_head)
    image = drawing.head_map(axes, shares, block_labels(list(record.blocks)))
    for block, of_heads in enumerate(shares):
        for head in of_heads.nonzero().flatten().tolist():
            share = float(of_heads[head])
            color = "white" if share > 0.45 else drawing.INK
            axes.text(head, block, _percent(share), ha="center", va="center", size=9, color=color, clip_on=True)
    drawing.title(axes, "How often each head was best", f"percent of {samples}, block by block")
    drawing.scale_beside(axes, image, 0.2, "share of the samples", {0: "0 %", 0.5: "50 %", 1: "100 %"})
    return _figure_of(axes)


def attention_overlay(
    image: Tensor | NDArray[Any],
    record: Record,
    block: int = -1,
    sample: int = 0,
    head: int | None = None,
    prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Draw the attention that each image patch receives from one head, over the image in gray.

    Patch j receives sum_i P_ij from all queries i together. The mean over all tokens is 1.

    Args:
        image: the model's input image at any size: (3, H, W), (H, W, 3), (1, H, W) or (H, W), a tensor or an array.
            Bytes from 0 to 255 and numbers from 0 to 1 are shown as they are; other numbers, such as a normalized
            image, are rescaled from their minimum and maximum to 0 and 1.
        record: made with `rsattn.record(model, received=True)`.
        block: index of the block in the record, negative from the end.
        sample: index of the image among the record's samples, negative from the end. In models with windows, a window
            counts as a sample: pass that part of the image.
        head: index of the head; None for the best head.
        prefix_tokens: number of tokens before the patches, such as a class token and registers. None for those that
            `grid` leaves over, or without `grid` those that the largest square of patches leaves over.
        grid: (rows, columns) of the patches; required for an image that is not square.
        axes: matplotlib axes with 0.7 inches of space below; None for a new figure.

    Returns:
        matplotlib.figure.Figure: the first image of its axes is the overlay, (H, W, 3) from 0 to 1.

    Raises:
        RuntimeError: the record holds no attention received.
        IndexError: there is no such block, sample or head.
        ValueError: `image` has another shape or is not finite, or the tokens do not form the grid of patches.
        TypeError: an argument is something else, such as the name of a file.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> import rsattn
        >>> images = torch.rand(2, 3, 32, 32)
        >>> embed = torch.nn.Conv2d(3, 64, kernel_size=8, stride=8)  # 4 x 4 patches
        >>> attention = rsattn.ResidualSelfAttention(dim=64, num_heads=4)
        >>> with rsattn.record(attention, received=True) as record:
        ...     output = attention(embed(images).flatten(2).transpose(1, 2))
        >>> figure = rsattn.plot.attention_overlay(images[0], record)
        >>> figure.axes[0].images[0].get_array().shape
        (32, 32, 3)
    """
    _check_drawable(record, axes)
    names = list(record.blocks)
    block = check_integer("block", block)
    if not -len(names) <= block < len(names):
        raise IndexError(f"block={block}, but the record has blocks 0 to {len(names) - 1}")
    received, best = _of_sample(record.blocks[names[block]], sample)
    head = best if head is None else check_integer("head", head)
    if not 0 <= head < len(received):
        raise IndexError(f"head={head}, but the block has heads 0 to {len(received) - 1}")
    pixels = as_pixels(image)
    rows, columns, prefix = _patches(pixels, received.shape[1], prefix_tokens, grid)
    if axes is None:
        axes = _overlay_axes(pixels, 1.6)
    colors = drawing.look(axes, pixels, received[head, prefix:].reshape(rows, columns))
    rank = "the best" if head == best else f"the best is {best}"
    detail = f"{rows}\u00d7{columns} patches"
    if prefix:
        share = float(received[head, :prefix].sum() / received[head].sum())
        detail += f"; {share:.1%} goes to the first {'token' if prefix == 1 else f'{prefix} tokens'}"
    drawing.title(axes, f"Block {block_labels(names)[block]}, head {head} ({rank})", detail)
    drawing.scale_below(axes, colors, "attention received (1 = equal)")
    return _figure_of(axes)


def pruning_overlay(
    image: Tensor | NDArray[Any],
    received: Tensor,
    keep: float = 0.5,
    prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Draw which patches remain if those that receive the least attention are pruned: the rest of the image fades.

    It shows what one layer attends to, not what the model's answer depends on: what a patch held may already be in
    other tokens, and a later layer may look elsewhere. Measure the model on the patches that remain before you rely
    on them.

    Args:
        image: as in `attention_overlay`.
        received: (N,) the attention that each token of this image receives: one head of one layer, or a mean or sum
            over heads or layers, from `rsattn.record(model, received=True)` or `rsattn.attention_received`.
        keep: share of the patches that remain, above 0 and at most 1. Of patches that receive the same, the first
            remain.
        prefix_tokens: as in `attention_overlay`. These tokens are not pruned.
        grid: as in `attention_overlay`.
        axes: matplotlib axes; None for a new figure.

    Returns:
        matplotlib.figure.Figure: the first image of its axes is the overlay, (H, W, 3) from 0 to 1.

    Raises:
        ValueError: `image` or `received` has another shape or is not finite, `keep` is no such share, or the tokens do
            not form the grid of patches.
        TypeError: an argument is something else.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch
        >>> import rsattn
        >>> image = torch.rand(3, 32, 32)
        >>> query, key = torch.randn(2, 1, 4, 17, 8)  # 4 heads, a class token and 4 x 4 patches
        >>> received = rsattn.attention_received(query, key)[0].mean(dim=0)
        >>> figure = rsattn.plot.pruning_overlay(image, received, keep=0.25)
        >>> figure.axes[0].get_title(loc="left")
        '4 of 16 patches remain'
    """
    check_tensor("received", received)
    _check_axes(axes)
    received = received.detach().cpu().double()
    if received.dim() != 1:
        raise ValueError(
            f"received must be (tokens,), for one image; got {tuple(received.shape)}. Average over the heads of a "
            "layer, such as record.received[-1, 0].mean(dim=0)"
        )
    if not received.isfinite().all():
        raise ValueError("received must be finite; got values that are not finite, as from a model whose output is NaN")
    if not isinstance(keep, Real):
        raise TypeError(f"keep must be a number above 0 and at most 1; got {brief(keep)}")
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep={keep} is no share of the patches; use a number above 0 and at most 1")
    pixels = as_pixels(image)
    rows, columns, prefix = _patches(pixels, len(received), prefix_tokens, grid)
    patches = received[prefix:]
    remaining = patches.argsort(descending=True, stable=True)[: max(1, round(keep * len(patches)))]
    pruned = torch.ones(len(patches), dtype=torch.bool)
    pruned[remaining] = False
    if axes is None:
        axes = _overlay_axes(pixels, 1.0)
    drawing.fade(axes, pixels, pruned.reshape(rows, columns))
    total = float(patches.sum())
    detail = "no patch receives attention"
    if total:
        detail = f"they receive {float(patches[remaining].sum()) / total:.0%} of the attention to patches"
    drawing.title(axes, f"{len(remaining)} of {len(patches)} patches remain", detail)
    return _figure_of(axes)


def _check_drawable(record: Record, axes: Axes | None) -> None:
    if not isinstance(record, Record):
        raise TypeError(f"record must be what `with rsattn.record(model) as record:` collected; got {brief(record)}")
    _check_axes(axes)


def _check_axes(axes: Axes | None) -> None:
    if axes is not None and not hasattr(axes, "imshow"):
        raise TypeError(
            f"axes must be one of matplotlib's Axes; got {brief(axes)}. Of several, pass one, such as axes[0]"
        )


def block_labels(names: list[str]) -> list[str]:
    """The parts in which the names differ: "0", "1" for "blocks.0.attn", "blocks.1.attn"; else the whole names."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) != 1 or len(names) == 1:
        return [name or "0" for name in names]
    varying = [len(set(column)) > 1 for column in zip(*parts)]
    return [".".join(part for part, varies in zip(name, varying) if varies) for name in parts]


def as_pixels(image: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """An image as `attention_overlay` accepts it -> (H, W, 3) or (H, W) float64 from 0 to 1."""
    values = np.asarray(image.detach().cpu().double() if isinstance(image, Tensor) else image)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"image must be a tensor or an array of numbers; got {brief(image)}. Open a file first")
    bytes_ = image.dtype == torch.uint8 if isinstance(image, Tensor) else values.dtype == np.uint8
    shape = values.shape
    values = values.astype(np.float64)
    if values.ndim == 3 and values.shape[0] in (1, 3):
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim < 2 or values.shape[2:] not in ((), (3,)) or values.size == 0:
        raise ValueError(
            f"image must be (3, H, W), (H, W, 3), (1, H, W) or (H, W); got {shape}. From a batch pass "
            "one image, such as images[0]"
        )
    if not np.isfinite(values).all():
        raise ValueError("image has values that are not finite; replace them, for instance with torch.nan_to_num")
    if bytes_:
        return values / 255.0
    low, high = values.min(), values.max()
    if low < 0.0 or high > 1.0:
        values = (values - low) / ((high - low) or 1.0)
    return values


def _patches(
    pixels: NDArray[np.float64], tokens: int, prefix_tokens: int | None, grid: tuple[int, int] | None
) -> tuple[int, int, int]:
    """The rows and columns of the patches, and the number of tokens before them."""
    prefix_tokens = None if prefix_tokens is None else check_integer("prefix_tokens", prefix_tokens)
    rows, columns = _square_grid(pixels, tokens, prefix_tokens) if grid is None else _rows_and_columns(grid)
    prefix = tokens - rows * columns
    if min(rows, columns) < 1 or prefix < 0 or prefix_tokens not in (None, prefix):
        raise ValueError(
            f"there are {tokens} tokens, which are not {rows} x {columns} patches "
            + (f"after {prefix_tokens} prefix tokens" if prefix_tokens is not None else "after prefix tokens")
            + "; give the grid and prefix_tokens of the model"
        )
    return rows, columns, prefix


def _rows_and_columns(grid: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(grid, list | tuple) or len(grid) != 2:
        raise TypeError(f"grid must be (rows, columns) of the patches; got {brief(grid)}")
    return check_integer("rows of grid", grid[0]), check_integer("columns of grid", grid[1])


def _square_grid(pixels: NDArray[np.float64], tokens: int, prefix: int | None) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    if height != width:
        raise ValueError(
            f"image is {height} x {width}, not square: give grid=(rows, columns) of its patches, or pass the square "
            "image that the model saw"
        )
    side = math.isqrt(tokens if prefix is None else max(tokens - prefix, 0))
    if prefix is not None and side * side != tokens - prefix:
        raise ValueError(
            f"there are {tokens} tokens; without {prefix} prefix tokens, {tokens - prefix} remain, which are not a "
            "square of patches: give another prefix_tokens, or grid=(rows, columns)"
        )
    return side, side


def _of_sample(block: BlockRecord, sample: int) -> tuple[Tensor, int]:
    """(H, M) received and the best head. Forward passes may differ in M, so they are not concatenated."""
    if not block.received:
        raise RuntimeError(
            "the record holds no attention received: make it with `rsattn.record(model, received=True)` and run the "
            "model inside the with block"
        )
    received = [row for noted in block.received for row in noted.unbind(0)]
    which = _sample_index(sample, len(received))
    return received[which].cpu(), int(torch.cat(block.best_head)[which])


def _sample_index(sample: int, samples: int) -> int:
    sample = check_integer("sample", sample)
    if not -samples <= sample < samples:
        raise IndexError(f"sample={sample}, but the record has samples 0 to {samples - 1}")
    return sample % samples


def _by_block(record: Record) -> tuple[list[Tensor], list[Tensor], str]:
    """The norms (samples, H) and best heads (samples,) of each block, and the number of samples in words."""
    check_complete(record)
    norms = [torch.cat(block.norms).cpu() for block in record.blocks.values()]
    best_head = [torch.cat(block.best_head).cpu() for block in record.blocks.values()]
    least, most = min(map(len, norms)), max(map(len, norms))
    if least != most:
        return norms, best_head, f"{least} to {most} samples"
    return norms, best_head, f"{most} sample{'' if most == 1 else 's'}"


def _shares(norms: list[Tensor], best_head: list[Tensor]) -> list[Tensor]:
    """(H,) float64 of each block, the share of samples in which each head is best."""
    return [torch.bincount(best, minlength=n.shape[1]).double() / len(n) for n, best in zip(norms, best_head)]


def _percent(share: float) -> str:
    return "<1" if share < 0.005 else f"{100 * share:.0f}"


def _new_axes(width: float, height: float) -> Axes:
    """The axes of a new figure; width and height in inches."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError("rsattn.plot needs matplotlib: pip install 'rsattn[demo]'") from error
    margins = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    figure = Figure(figsize=(width, height), layout=margins, facecolor="white")
    axes: Axes = figure.add_subplot()
    return axes


def _overlay_axes(pixels: NDArray[np.float64], above_and_below: float) -> Axes:
    """The axes of a new figure for an image, with so many inches for the words."""
    height, width = pixels.shape[:2]
    return _new_axes(5.0, above_and_below + 4.6 * height / width)


def _figure_of(axes: Axes) -> Figure:
    figure: Figure = axes.figure.figure  # twice: axes may be in a subfigure
    return figure
