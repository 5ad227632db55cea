"""Random queries, keys and values in the layout of a vision transformer, and the steps that are timed on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rsattn.call import unpacked

from .baselines import Baseline, baseline
from .cases import Case
from .clock import Variant, copies
from .oracle import Oracle


@dataclass(frozen=True)
class Inputs:
    """Sets of (query, key, value), each set views of one packed (B, N, 3, H, E), and their upstream gradients."""

    sets: list[tuple[Tensor, Tensor, Tensor]]
    upstream: list[Tensor | None]

    @staticmethod
    def random(case: Case, device: torch.device) -> Inputs:
        shape = case.shape
        number = copies(device, shape.bytes(case.train, case.itemsize))
        packed = (
            torch.randn(
                shape.batch, shape.length, 3, shape.heads, shape.head_dim, device=device, dtype=case.torch_dtype
            )
            for _ in range(number)
        )
        sets = [unpacked(tensor) for tensor in packed]
        return Inputs(sets, [torch.randn_like(query) if case.train else None for query, _, _ in sets])

    def contiguous(self) -> Inputs:
        dense = [(query.contiguous(), key.contiguous(), value.contiguous()) for query, key, value in self.sets]
        return Inputs(dense, self.upstream)

    def variant(self, name: str) -> Variant:
        """The implementation of that name, on contiguous copies of the inputs if its name says so."""
        given = self.contiguous() if name.endswith("contiguous") else self
        return Variant(given.step(baseline(name)))

    def oracle(self) -> Oracle:
        """The oracle of the first set, the one that `Setup.check` sees."""
        query, key, value = self.sets[0]
        return Oracle(query, key, value, self.upstream[0])

    def step(self, compute: Baseline) -> Callable[[int], tuple[Tensor | None, ...]]:
        """A forward pass without gradients that returns (output, norms), or a training step: (dQ, dK, dV)."""
        if self.upstream[0] is None:

            def forward(index: int) -> tuple[Tensor | None, ...]:
                with torch.no_grad():
                    return compute(*self.sets[index])

            return forward
        leaves = [[tensor.detach().requires_grad_() for tensor in tensors] for tensors in self.sets]

        def both(index: int) -> tuple[Tensor | None, ...]:
            output, _ = compute(*leaves[index])
            return torch.autograd.grad(output, leaves[index], self.upstream[index])

        return both


@torch.no_grad()
def tell_heads_apart(query_weight: Tensor, heads: int) -> None:
    """Scale the query projection (H*E, D) so that later heads attend more sharply.

    The norms of random heads differ by less than rounding, so two correct implementations could choose different best
    heads and return different outputs.
    """
    query_weight.unflatten(0, (heads, -1)).mul_(
        torch.linspace(1, 4, heads, device=query_weight.device, dtype=query_weight.dtype)[:, None, None]
    )


def checker(oracle: Oracle, train: bool) -> Callable[[str, Any], None]:
    """A `Setup.check` for the results of `Inputs.step`."""

    def check(name: str, result: Any) -> None:
        if train:
            oracle.check(name, None, None, result)
        else:
            output, norms = result
            oracle.check(name, output, norms, ())

    return check
