"""What is compared: residual attention as rsattn's kernels and eager PyTorch compute it, and attention alone.

Every peer is a function of (query, key, value) that returns the attention's output. All of ours rank the heads;
`scaled_dot_product_attention` computes no norms and chooses no head, so it is a floor rather than an equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import rsattn
from rsattn import reference

Peer = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    length: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch},{self.heads},{self.length},{self.width}"

    @property
    def flops(self) -> int:
        """Floating-point operations of both products, forward; backward takes 2.5 times as many."""
        return 4 * self.batch * self.heads * self.length**2 * self.width


def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return rsattn.residual_attention(query, key, value).output


def eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scale = query.shape[-1] ** -0.5
    return reference.attention(query, key, value, None, None, 0.0, scale, "induced", "sample").output


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value)


def compiled() -> Peer:
    """Eager PyTorch through its own compiler; each call of this starts from nothing."""
    torch._dynamo.reset()
    return torch.compile(eager, dynamic=False)


def packed(shape: Shape, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """query, key and value as a vision transformer has them: views of one packed (B, N, 3, H, E)."""
    generator = torch.Generator().manual_seed(seed)
    together = torch.randn(shape.batch, shape.length, 3, shape.heads, shape.width, generator=generator)
    return list(together.to(dtype).permute(2, 0, 3, 1, 4).unbind(0))


def step(peer: Peer, tensors: list[Tensor], upstream: Tensor | None) -> Callable[[], tuple[Tensor, ...]]:
    """One forward pass, or with a gradient to pull back, one forward and one backward pass."""
    if upstream is None:

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (peer(*tensors),)

        return forward
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    return lambda: torch.autograd.grad(peer(*leaves), leaves, upstream)


def verify(peer: Peer, tensors: list[Tensor], upstream: Tensor | None) -> None:
    """The peer's numbers against the reference in float64, on the first sample; raises if they are not close.

    Loose on purpose: this catches a peer that computes something else. rsattn's own accuracy is tests/'s business.
    """
    first = [tensor[:1] for tensor in tensors]
    got = step(peer, first, None if upstream is None else upstream[:1])()
    want = step(eager, [t.double() for t in first], None if upstream is None else upstream[:1].double())()
    tolerance = 32 * torch.finfo(tensors[0].dtype).eps
    for mine, theirs in zip(got, want):
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())
