"""Residual attention that adds another head than the best one: is it the choice that helps, or just one more head?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

import rsattn.module
from rsattn.contract import ResidualAttention
from rsattn.reference import add_best_head

Which = Literal["best", "worst", "random", "fixed", "mean"]
"""worst: the least norm; random: another one for every sample and forward pass; fixed: head 0; mean: all, averaged."""


@contextmanager
def adding(which: Which, seed: int = 0) -> Iterator[None]:
    """Inside it, every residual attention of this process adds that head's output (gradients flow through it)."""
    if which == "best":
        yield
        return
    generator = torch.Generator().manual_seed(seed)
    original = rsattn.module.join

    def join(
        projected: Tensor, attention: ResidualAttention, handle: Tensor | None, merge: str, backend: str
    ) -> Tensor:
        output, norms, _best = attention
        if which == "mean":
            average = output.mean(1)
            return projected + average.repeat(1, 1, projected.shape[2] // average.shape[2]).to(projected.dtype)
        return add_best_head(projected, output, chosen(which, norms, generator), merge)

    rsattn.module.join = join
    try:
        yield
    finally:
        rsattn.module.join = original


def chosen(which: Which, norms: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) int64: the head to add; `norms` (B, H)."""
    samples, heads = norms.shape
    if which == "worst":
        return norms.argmin(1)
    if which == "fixed":
        return norms.new_zeros(samples, dtype=torch.int64)
    return torch.randint(heads, (samples,), generator=generator).to(norms.device)
