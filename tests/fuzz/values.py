"""The values of query, key and value: ordinary ones, and those that are difficult for floating-point arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Three = tuple[Tensor, Tensor, Tensor]


def numbers(kind: str, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, draws: torch.Generator) -> Three:
    """Query (B, H, N, E), key and value (B, H, M, E) of `KINDS[kind]`, in the dtype."""
    query, key, value = (torch.randn(shape, generator=draws, dtype=torch.float64) for shape in shapes)
    query, key, value = KINDS[kind]((query, key, value), dtype, draws)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def normal(three: Three, dtype: torch.dtype, draws: torch.Generator) -> Three:
    return three


def spread(three: Three, dtype: torch.dtype, draws: torch.Generator) -> Three:
    """Each tensor has its own magnitude, over five powers of ten."""
    query, key, value = (tensor * 10 ** uniform(-3, 2, draws) for tensor in three)
    return query, key, value


def zeros(three: Three, dtype: torch.dtype, draws: torch.Generator) -> Three:
    query, key, value = (tensor * float(uniform(0, 1, draws) < 0.5) for tensor in three)
    return query, key, value


def huge(three: Three, dtype: torch.dtype, draws: torch.Generator) -> Three:
    """Scores of up to 1e30, within the range of the dtype."""
    query, key, value = three
    most = math.log10(torch.finfo(dtype).max) - 1.0
    size = uniform(1, 30, draws)
    part = uniform(0, 1, draws) * size
    return query * 10 ** min(part, most), key * 10 ** min(size - part, most), value


def extreme(three: Three, dtype: torch.dtype, draws: torch.Generator) -> Three:
    """Scores of up to 1e38 before they are scaled: for scales that are zero or tiny."""
    query, key, value = three
    size = min(torch.finfo(dtype).max / 2, math.sqrt(1e38 / query.shape[-1]))
    return query.tanh() * size, key.tanh() * size, value


def denormal(three: Three, dtype: torch.dtype, draws: torch.Generator) -> Three:
    """Subnormal numbers, in one tensor or in all."""
    tiny = 0.1 * torch.finfo(dtype).tiny
    query, key, value = (tensor * (tiny if uniform(0, 1, draws) < 0.7 else 1.0) for tensor in three)
    return query, key, value


def infinite(three: Three, dtype: torch.dtype, draws: torch.Generator) -> Three:
    return _sprinkled(three, [math.inf, -math.inf], draws)


def nan(three: Three, dtype: torch.dtype, draws: torch.Generator) -> Three:
    return _sprinkled(three, [math.nan], draws)


def equal_heads(three: Three, dtype: torch.dtype, draws: torch.Generator) -> Three:
    """Some heads are copies of the last one, so their norms are equal and the lowest index must win."""
    for tensor in three:
        tensor[:, ::2] = tensor[:, -1:].clone()
    return three


def equal_keys(three: Three, dtype: torch.dtype, draws: torch.Generator) -> Three:
    """All keys are equal, so every row of P is uniform."""
    query, key, value = three
    return query * 10 ** uniform(-2, 6, draws), key[:, :, :1].expand_as(key).clone(), value


def certain(three: Three, dtype: torch.dtype, draws: torch.Generator) -> Three:
    """Each query attends to one key only."""
    query, key, value = three
    seen = torch.arange(query.shape[2]) % key.shape[2]
    return key[:, :, seen] * 10 ** uniform(0, 3, draws), key, value


def negative(three: Three, dtype: torch.dtype, draws: torch.Generator) -> Three:
    """All scores are far below zero, so padding with zeros would dominate."""
    query, key, value = three
    return -(query.abs() + 1.0) * 10 ** uniform(0, 2, draws), key.abs() + 1.0, value


KINDS: dict[str, Callable[[Three, torch.dtype, torch.Generator], Three]] = {
    kind.__name__: kind
    for kind in (
        normal,
        spread,
        zeros,
        huge,
        extreme,
        denormal,
        infinite,
        nan,
        equal_heads,
        equal_keys,
        certain,
        negative,
    )
}


def uniform(low: float, high: float, draws: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=draws, dtype=torch.float64).item()


def _sprinkled(three: Three, strange: list[float], draws: torch.Generator) -> Three:
    """One to three elements of one tensor are NaN or infinite."""
    tensor = three[_below(3, draws)]
    for _ in range(1 + _below(3, draws) if tensor.numel() else 0):
        tensor.view(-1)[_below(tensor.numel(), draws)] = strange[_below(len(strange), draws)]
    return three


def _below(bound: int, draws: torch.Generator) -> int:
    return int(torch.randint(bound, (), generator=draws))
