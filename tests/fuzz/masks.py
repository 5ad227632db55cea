"""Masks: their values and how they broadcast."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from .layouts import laid
from .plan import DTYPES, Plan


def mask_of(plan: Plan, draws: torch.Generator, layout_draws: Random) -> Tensor | None:
    """The plan's mask, broadcastable to (B, H, N, M), or with a batch axis that repeats.

    Leading dimensions that it does not have are omitted.
    """
    if not plan.mask:
        return None
    sizes = plan.batch, plan.heads, plan.queries, plan.keys
    shape = [n if full else 1 for n, full in zip(sizes, plan.mask_full)]
    if plan.mask_full[0] and plan.batch % plan.mask_repeats == 0:
        shape[0] = plan.batch // plan.mask_repeats
    dtype = DTYPES[plan.mask_dtype]
    dense = KINDS[plan.mask](shape, dtype, draws).to(dtype)
    if plan.seed % 2:
        dense = dense[(0,) * next((d for d in range(3) if plan.mask_full[d]), 3)] if 0 not in shape else dense
    return laid(dense, plan.mask_layout, layout_draws)


def some(shape: list[int], dtype: torch.dtype, draws: torch.Generator) -> Tensor:
    """Each key is hidden from each query with the same probability, which may be 0 or 1."""
    chance = torch.rand((), generator=draws, dtype=torch.float64) * 1.4 - 0.2
    return _shown(torch.rand(shape, generator=draws, dtype=torch.float64) > chance, dtype, draws)


def blind_rows(shape: list[int], dtype: torch.dtype, draws: torch.Generator) -> Tensor:
    """A third of the queries see no key."""
    seen = torch.rand([*shape[:3], 1], generator=draws) > 0.3
    return _shown(seen.expand(shape), dtype, draws)


def causal(shape: list[int], dtype: torch.dtype, draws: torch.Generator) -> Tensor:
    return _shown(torch.ones(shape, dtype=torch.bool).tril(), dtype, draws)


def lowest(shape: list[int], dtype: torch.dtype, draws: torch.Generator) -> Tensor:
    """Keys hidden with the dtype's lowest finite value, as libraries do, and in some rows all keys."""
    numbers = torch.randn(shape, generator=draws, dtype=torch.float64)
    numbers[torch.rand(shape, generator=draws) < 0.4] = torch.finfo(dtype).min
    rows = torch.rand([*shape[:3], 1], generator=draws) < 0.3
    return numbers.masked_fill(rows, torch.finfo(dtype).min)


def large(shape: list[int], dtype: torch.dtype, draws: torch.Generator) -> Tensor:
    """Biases of hundreds, and -10000, with which some libraries hide keys."""
    numbers = 100 * torch.randn(shape, generator=draws, dtype=torch.float64)
    numbers[torch.rand(shape, generator=draws) < 0.3] = -10000.0
    return numbers


def strange(shape: list[int], dtype: torch.dtype, draws: torch.Generator) -> Tensor:
    """NaN or +inf somewhere."""
    numbers = torch.randn(shape, generator=draws, dtype=torch.float64)
    odd = math.nan if torch.rand((), generator=draws) < 0.5 else math.inf
    numbers[torch.rand(shape, generator=draws) < 0.05] = odd
    return numbers


KINDS: dict[str, Callable[[list[int], torch.dtype, torch.Generator], Tensor]] = {
    kind.__name__: kind for kind in (some, blind_rows, causal, lowest, large, strange)
}
BOOL_KINDS = ("some", "blind_rows", "causal")


def _shown(seen: Tensor, dtype: torch.dtype, draws: torch.Generator) -> Tensor:
    """True where a query sees a key; as a float mask, -inf where it does not."""
    if dtype == torch.bool:
        return seen
    return torch.randn(seen.shape, generator=draws, dtype=torch.float64).masked_fill(~seen, -math.inf)
