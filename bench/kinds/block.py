"""The attention block with both projections: the cost of norms, best head and residual in a layer of a ViT."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rsattn
from rsattn.call import unpacked

from .. import baselines
from ..cases import Case, Setup
from ..clock import Variant, copies
from ..inputs import tell_heads_apart
from ..shapes import real_shapes
from .attention import dtypes

MODELS = ("ViT-B/16 at 224", "ViT-B/16 at 384")
# A few times the rounding error of a layer in each dtype; a wrong head differs by more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def cases(device: torch.device) -> list[Case]:
    shapes = real_shapes(device)
    return [
        Case("block", shapes[model], dtype, train, model)
        for model in MODELS
        for dtype in dtypes(device)
        for train in (False, True)
    ]


def names(case: Case, device: torch.device) -> list[str]:
    sdpa = [name for name in baselines.names(case, device) if name.startswith(baselines.SDPA)]
    return [baselines.RSATTN, *sdpa, baselines.EAGER]


def setup(case: Case, device: torch.device) -> Setup:
    shape = case.shape
    module = rsattn.ResidualSelfAttention(shape.dim, shape.heads, device=device, dtype=case.torch_dtype)
    tell_heads_apart(module.qkv.weight[: shape.dim], shape.heads)
    eager = copy.deepcopy(module)
    eager.options = rsattn.ResidualOptions(backend="reference")
    number = copies(device, shape.bytes(case.train, case.itemsize))
    like: dict[str, Any] = {"device": device, "dtype": case.torch_dtype}
    tokens = [torch.randn(shape.batch, shape.length, shape.dim, **like) for _ in range(number)]
    upstream = torch.randn_like(tokens[0])

    def plain(attention: baselines.Baseline, dense: bool = False, of: Any = module) -> Callable[[Tensor], Tensor]:
        """The block with the same weights and no residual."""

        def block(x: Tensor) -> Tensor:
            packed = of.qkv(x).view(*x.shape[:2], 3, shape.heads, shape.head_dim)
            query, key, value = unpacked(packed)
            if dense:
                query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
            output, _ = attention(query, key, value)
            joined: Tensor = of.proj(output.transpose(1, 2).flatten(2))
            return joined

        return block

    blocks: dict[str, Callable[[Tensor], Tensor]] = {baselines.RSATTN: module, baselines.EAGER: eager}
    for name in names(case, device):
        if name not in blocks:
            blocks[name] = plain(baselines.baseline(name), dense=name.endswith("contiguous"))

    def run(block: Callable[[Tensor], Tensor], of: Any, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        """The output, or the gradients of the parameters of `of`, which `block` uses."""
        if case.train:
            return torch.autograd.grad(block(x), list(of.parameters()), grad)
        with torch.no_grad():
            return (block(x),)

    def variant(name: str) -> Variant:
        of = eager if name == baselines.EAGER else module
        return Variant(lambda index: run(blocks[name], of, tokens[index], upstream))

    exact, x, grad = copy.deepcopy(eager).double(), tokens[0].double(), upstream.double()
    wanted = {True: run(exact, exact, x, grad), False: run(plain(baselines.eager, of=exact), exact, x, grad)}
    del exact, x, grad

    def check(name: str, result: tuple[Tensor, ...]) -> None:
        with_residual = name in (baselines.RSATTN, baselines.EAGER)
        for mine, theirs in zip(result, wanted[with_residual]):
            error = float((mine.double() - theirs).norm() / theirs.norm())
            if not error <= TOLERANCE[case.torch_dtype]:
                raise AssertionError(f"{name} is off by {error:.1e} of its size in {case.dtype}")

    variants = {name: variant(name) for name in names(case, device)}
    return Setup(variants, number, check, tuple(variants))
