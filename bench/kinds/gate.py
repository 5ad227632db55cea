"""The cost of the gate: the residual with and without a learnable gamma (D,), as a module computes them.

Forward is inference, which adds in place. Forward + backward is training: it allocates a new tensor and computes the
gradients of the projected output, of the best head in the form that the attention takes, and of gamma. With full-width
heads and no gate, the best head's gradient is the gradient of the sum and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rsattn import ops, reference
from rsattn.attention import Attended
from rsattn.backends.dispatch import choose
from rsattn.call import Call
from rsattn.contract import ResidualAttention
from rsattn.epilogue import join

from ..baselines import EAGER, RSATTN
from ..cases import Case, Setup
from ..clock import Variant, copies
from ..shapes import real_shapes
from .attention import dtypes
from .epilogue import moved, token_dim

TARGETED = ("ViT-B/16 at 224", "ViT-B/16 at 384")
MODELS = (*TARGETED, "the paper's authors'")
UNGATED = "rsattn without a gate"
AT_MOST = 1.10  # the target for gated / ungated at the models `TARGETED`
CALLS = 20  # consecutive calls on a CPU, where one takes a tenth of a millisecond


def cases(device: torch.device) -> list[Case]:
    shapes = real_shapes(device)
    return [
        Case("gate", shapes[model], dtype, train, model=model)
        for model in MODELS
        for dtype in dtypes(device)
        for train in (False, True)
    ]


def names(case: Case, device: torch.device) -> list[str]:
    return [RSATTN, UNGATED, EAGER]


class Operands:
    """One set of inputs."""

    def __init__(self, case: Case, device: torch.device) -> None:
        shape, dim = case.shape, token_dim(case.shape)
        like: dict[str, Any] = {"device": device, "dtype": case.torch_dtype}
        output = torch.randn(shape.batch, shape.length, shape.heads, shape.head_dim, **like).transpose(1, 2)
        norms = torch.rand(shape.batch, shape.heads, device=device)
        self.attention = ResidualAttention(output, norms, norms.argmax(1))
        self.projected, self.upstream = (torch.randn(shape.batch, shape.length, dim, **like) for _ in range(2))
        self.written = {gated: self.projected.clone() for gated in (False, True)}  # inference adds to it in place
        self.gamma = torch.randn(dim, **like)
        self.handle = torch.empty_strided(output[:, 0].shape, (0, 0, 0), **like)  # the best head for autograd
        self.backend = choose(Call((output, output, output), scale=1.0), None)
        if case.train:
            for leaf in (self.projected, self.gamma, self.handle):
                leaf.requires_grad_()

    def forward(self, gamma: Tensor | None) -> Tensor:
        with torch.no_grad():
            projected = self.written[gamma is not None]
            return join(projected, Attended(self.attention, None, self.backend), "tile", gamma)

    def both(self, gamma: Tensor | None) -> tuple[Tensor, ...]:
        """The gradients: dY, merge^T(gamma * dY) and, with a gate, d gamma."""
        output, _, best_head, _ = self.attention
        joined = ops.add_best_head(self.projected, output, best_head, self.handle, gamma, "tile", self.backend)
        leaves = (self.projected, self.handle) if gamma is None else (self.projected, self.handle, gamma)
        return torch.autograd.grad(joined, leaves, self.upstream)

    def eager(self, train: bool) -> Tensor | tuple[Tensor, ...]:
        output, _, best_head, _ = self.attention
        with torch.set_grad_enabled(train):
            best = output[torch.arange(len(output), device=output.device), best_head].requires_grad_(train)
            joined = self.projected + self.gamma * best.repeat(1, 1, self.projected.shape[2] // best.shape[2])
        return torch.autograd.grad(joined, (self.projected, best, self.gamma), self.upstream) if train else joined

    def exact(self, train: bool, gated: bool) -> tuple[Tensor, ...]:
        """The result of `both`, or the sum, from the reference in float64."""
        output, _, best_head, _ = self.attention
        gamma = self.gamma if gated else torch.ones_like(self.gamma)
        leaves = [t.detach().double().requires_grad_() for t in (self.projected, output, gamma)]
        joined = reference.add_best_head(leaves[0], leaves[1], best_head, "tile", leaves[2])
        if not train:
            return (joined.detach(),)
        projected, of_output, of_gamma = torch.autograd.grad(joined, leaves, self.upstream.double())
        return (projected, of_output.sum(1), of_gamma)[: 3 if gated else 2]


def setup(case: Case, device: torch.device) -> Setup:
    sets = [Operands(case, device) for _ in range(copies(device, moved(case)))]
    want = {gated: sets[0].exact(case.train, gated) for gated in (False, True)}
    in_a_row = None if device.type == "cuda" else CALLS

    def ours(gated: bool) -> Callable[[int], Any]:
        def call(index: int) -> Any:
            of = sets[index]
            gamma = of.gamma if gated else None
            return of.both(gamma) if case.train else of.forward(gamma)

        return call

    def check(name: str, result: Any) -> None:
        """The kernels round once; eager PyTorch rounds its sums of bfloat16 products several times."""
        eps = torch.finfo(case.torch_dtype).eps
        for got, exact in zip(result if case.train else (result,), want[name != UNGATED], strict=True):
            size = float(exact.abs().max())
            torch.testing.assert_close(got.double(), exact, rtol=0, atol=(8 if name == EAGER else 2) * eps * size)

    variants = {RSATTN: ours(True), UNGATED: ours(False), EAGER: lambda index: sets[index].eager(case.train)}
    return Setup({name: Variant(call, host_calls=in_a_row) for name, call in variants.items()}, len(sets), check)
