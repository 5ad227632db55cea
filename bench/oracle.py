"""The float64 result that every variant is checked against before it is timed.

The timed call itself is checked, in its first and its last head, by ||got - want|| / ||want||. The tolerances are
several times the error of eager PyTorch in the same dtype: they detect a wrong computation, not a less accurate one.
The accuracy of rsattn is tested in tests/.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 1024
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Head:
    """The output (N, E) of one head, the attention received (M,), and with an upstream gradient dQ, dK and dV."""

    output: Tensor
    received: Tensor
    gradients: tuple[Tensor, ...]

    @property
    def norm(self) -> Tensor:
        """The induced norm."""
        return self.received.amax()


def head(query: Tensor, key: Tensor, value: Tensor, upstream: Tensor | None) -> Head:
    """Compute one head from (N, E) tensors, a block of rows at a time; kernels/README.md has the equations."""
    query, key, value = (tensor.double() for tensor in (query, key, value))
    scale = query.shape[1] ** -0.5
    received = query.new_zeros(len(key))
    outputs, dq, dk, dv = [], [], torch.zeros_like(key), torch.zeros_like(value)
    for begin in range(0, len(query), ROWS):
        rows = slice(begin, begin + ROWS)
        probs = (query[rows] @ key.T * scale).softmax(-1)
        outputs.append(probs @ value)
        received += probs.sum(0)
        if upstream is not None:
            grad = upstream[rows].double()
            delta = (grad * outputs[-1]).sum(-1, keepdim=True)
            dscores = probs * (grad @ value.T - delta) * scale
            dq.append(dscores @ key)
            dk += dscores.T @ query[rows]
            dv += probs.T @ grad
    gradients = () if upstream is None else (torch.cat(dq), dk, dv)
    return Head(torch.cat(outputs), received, gradients)


class Oracle:
    """The first and the last head of (B, H, N, E) inputs, computed once for all variants."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, upstream: Tensor | None) -> None:
        batch, heads = query.shape[:2]
        self.dtype = query.dtype
        self.heads = {
            (b, h): head(query[b, h], key[b, h], value[b, h], None if upstream is None else upstream[b, h])
            for b, h in {(0, 0), (batch - 1, heads - 1)}
        }

    def check(
        self,
        name: str,
        output: Tensor | None,
        norms: Tensor | None,
        gradients: tuple[Tensor, ...],
        received: Tensor | None = None,
    ) -> None:
        """Raise AssertionError if a given result differs from the oracle by more than the tolerance."""
        for (b, h), want in self.heads.items():
            if output is not None:
                self._close(f"{name}: output", output[b, h], want.output)
            if norms is not None:
                self._close(f"{name}: norm", norms[b, h], want.norm)
            if received is not None:
                self._close(f"{name}: attention received", received[b, h], want.received)
            for word, got, true in zip(("dQ", "dK", "dV"), gradients, want.gradients):
                self._close(f"{name}: {word}", got[b, h], true)

    def _close(self, words: str, got: Tensor, want: Tensor) -> None:
        error = float((got.double() - want).norm() / want.norm())
        allowed = TOLERANCE[self.dtype]
        if not error <= allowed:
            raise AssertionError(f"{words} is off by {error:.1e} of its size in {self.dtype}; {allowed:.0e} is allowed")
