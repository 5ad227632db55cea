"""A training step with packed query, key and value, compared with three views of the packed tensor.

A QKV projection returns one tensor (B, N, 3, H, E), and its backward pass takes one gradient in that layout.
`residual_attention_qkvpacked` writes that gradient. With three views PyTorch gets three gradients and stacks them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import rsattn
from rsattn.call import unpacked

from .. import baselines
from ..cases import Case, Setup
from ..clock import Variant, copies
from ..inputs import checker
from ..oracle import Oracle
from ..shapes import real_shapes
from .attention import dtypes
from .block import TOLERANCE

MODEL = "ViT-B/16 at 224"
ALONE, PROJECTED = "attention alone", "through the projection"
UNPACKED = "rsattn, three views"


def cases(device: torch.device) -> list[Case]:
    shape = real_shapes(device)[MODEL]
    return [
        Case("packed", shape, dtype, True, MODEL, detail) for detail in (ALONE, PROJECTED) for dtype in dtypes(device)
    ]


def names(case: Case, device: torch.device) -> list[str]:
    # Not SDPA on contiguous copies: their gradients would have to be stacked too.
    sdpa = [
        name for name in baselines.names(case, device) if name.startswith(baselines.SDPA) and "contiguous" not in name
    ]
    return [baselines.RSATTN, UNPACKED, *sdpa, *([baselines.EAGER] if case.detail == ALONE else [])]


def attention(name: str) -> Callable[[Tensor], Tensor]:
    """A function that computes the output (B, H, N, E) of a packed tensor with that variant."""
    if name == baselines.RSATTN:
        return lambda packed: rsattn.residual_attention_qkvpacked(packed).output
    compute = baselines.rsattn_default if name == UNPACKED else baselines.baseline(name)
    return lambda packed: compute(*unpacked(packed))[0]


def setup(case: Case, device: torch.device) -> Setup:
    return _projected(case, device) if case.detail == PROJECTED else _alone(case, device)


def _alone(case: Case, device: torch.device) -> Setup:
    shape = case.shape
    like: dict[str, Any] = {"device": device, "dtype": case.torch_dtype}
    number = copies(device, shape.bytes(case.train, case.itemsize))
    size = (shape.batch, shape.length, 3, shape.heads, shape.head_dim)
    sets = [torch.randn(size, **like) for _ in range(number)]
    upstream = _upstream(case, like)
    oracle = Oracle(*unpacked(sets[0]), upstream)
    for packed in sets:
        packed.requires_grad_()

    def step(name: str) -> Callable[[int], tuple[Tensor, ...]]:
        compute = attention(name)
        return lambda index: torch.autograd.grad(compute(sets[index]), sets[index], upstream)

    def check(name: str, result: tuple[Tensor, ...]) -> None:
        checker(oracle, train=True)(name, unpacked(*result))

    return Setup({name: Variant(step(name)) for name in names(case, device)}, number, check)


def _projected(case: Case, device: torch.device) -> Setup:
    shape = case.shape
    like: dict[str, Any] = {"device": device, "dtype": case.torch_dtype}
    number = copies(device, shape.bytes(case.train, case.itemsize))
    linear = nn.Linear(shape.dim, 3 * shape.dim, **like)
    tokens = [torch.randn(shape.batch, shape.length, shape.dim, **like).requires_grad_() for _ in range(number)]
    upstream = _upstream(case, like)

    def gradients(compute: Callable[[Tensor], Tensor], of: nn.Linear, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """The gradients of the projection's weight and of the tokens."""
        packed = of(x).view(shape.batch, shape.length, 3, shape.heads, shape.head_dim)
        return torch.autograd.grad(compute(packed), (of.weight, x), grad)

    def step(name: str) -> Callable[[int], tuple[Tensor, ...]]:
        compute = attention(name)
        return lambda index: gradients(compute, linear, tokens[index], upstream)

    exact = nn.Linear(shape.dim, 3 * shape.dim, device=device, dtype=torch.float64)
    exact.load_state_dict(linear.state_dict())
    x = tokens[0].detach().double().requires_grad_()
    wanted = gradients(attention(baselines.EAGER), exact, x, upstream.double())

    def check(name: str, result: tuple[Tensor, ...]) -> None:
        for words, mine, want in zip(("weight", "input"), result, wanted):
            error = float((mine.double() - want).norm() / want.norm())
            if not error <= TOLERANCE[case.torch_dtype]:
                raise AssertionError(f"{name}: the gradient of the {words} is off by {error:.1e} in {case.dtype}")

    return Setup({name: Variant(step(name)) for name in names(case, device)}, number, check)


def _upstream(case: Case, like: dict[str, Any]) -> Tensor:
    """A gradient (B, H, N, E) with the strides that the output projection gives it."""
    shape = case.shape
    return torch.randn(shape.batch, shape.length, shape.heads, shape.head_dim, **like).transpose(1, 2)
