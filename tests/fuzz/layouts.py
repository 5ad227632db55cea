"""The same values in every memory layout. The gaps between them are NaN (or true), so a read of a gap is noticed."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor


def laid(dense: Tensor, layout: str, draws: Random) -> Tensor:
    """`dense` in that layout. Layouts that repeat elements ("expanded", "windows") change the values."""
    return LAYOUTS[layout](dense, draws)


def contiguous(dense: Tensor, draws: Random) -> Tensor:
    return dense.contiguous()


def permuted(dense: Tensor, draws: Random) -> Tensor:
    """The dimensions in a random memory order."""
    order = draws.sample(range(dense.dim()), dense.dim())
    back = [order.index(d) for d in range(dense.dim())]
    return dense.permute(order).contiguous().permute(back)


def stepped(dense: Tensor, draws: Random) -> Tensor:
    """Every second or third element along some dimensions of a larger tensor."""
    steps = [draws.choice((1, 1, 2, 3)) for _ in dense.shape]
    buffer = _between([n * step for n, step in zip(dense.shape, steps)], dense.dtype)
    view = buffer[tuple(slice(None, None, step) for step in steps)]
    view.copy_(dense)
    return view


def offset(dense: Tensor, draws: Random) -> Tensor:
    """Aligned to one element and to nothing larger."""
    first = draws.randint(1, 15)
    buffer = _between([dense.numel() + first], dense.dtype)
    view = torch.as_strided(buffer[first + dense.numel() :], dense.shape, _dense_strides(dense), first)
    view.copy_(dense)
    return view


def cut(dense: Tensor, draws: Random) -> Tensor:
    """The last row ends where the storage ends, so a read beyond the row is a read beyond the memory."""
    spare = draws.randint(1, 5)
    wide = _between([*dense.shape[:-1], dense.shape[-1] + spare], dense.dtype)
    view = wide[..., spare:]
    view.copy_(dense)
    return view


def unaligned(dense: Tensor, draws: Random) -> Tensor:
    """At an odd address, as memory read from a file or a network packet can be."""
    if not dense.numel():
        return dense
    buffer = bytearray(dense.numel() * dense.element_size() + 1)
    view = torch.frombuffer(buffer, dtype=dense.dtype, offset=1, count=dense.numel()).view(dense.shape)
    view.copy_(dense)
    return view


def expanded(dense: Tensor, draws: Random) -> Tensor:
    """Stride 0 along some dimensions."""
    first = [slice(0, 1) if draws.random() < 0.5 else slice(None) for _ in dense.shape]
    return dense[tuple(first)].clone().expand(dense.shape)


def windows(dense: Tensor, draws: Random) -> Tensor:
    """Rows that overlap in memory, like sliding windows over a signal."""
    strides = [draws.randint(0, 5) for _ in dense.shape]
    reach = sum((n - 1) * stride for n, stride in zip(dense.shape, strides)) + 1
    if not dense.numel():
        return dense
    signal = dense.flatten().repeat(-(-reach // dense.numel()))[:reach]
    return torch.as_strided(signal, dense.shape, strides)


def negated(dense: Tensor, draws: Random) -> Tensor:
    """Negated by a flag of the tensor, like `torch.imag` of a conjugate."""
    return torch._neg_view(-dense) if dense.dtype.is_floating_point else dense


LAYOUTS: dict[str, Callable[[Tensor, Random], Tensor]] = {
    layout.__name__: layout
    for layout in (contiguous, permuted, stepped, offset, cut, unaligned, expanded, windows, negated)
}


def _between(shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.full(shape, True if dtype == torch.bool else math.nan, dtype=dtype)


def _dense_strides(dense: Tensor) -> tuple[int, ...]:
    return torch.empty(dense.shape, device="meta").stride()
