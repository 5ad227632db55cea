"""The attention block with both its projections: what a layer of a ViT pays for norms, best head and residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rsattn

from .. import peers
from ..cases import Case, Setup
from ..clock import Variant, copies
from ..shapes import real_shapes
from .attention import dtypes
from .ranking import NO_RANKING, without_norms

MODELS = ("ViT-B/16 at 224", "ViT-B/16 at 384")
# What a block returns is a sum of a few hundred rounded products: the rounding of a layer's matrix products.
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
    ours = [peers.RSATTN, *([] if case.train else [NO_RANKING])]
    sdpa = [name for name in peers.names(case, device) if name.startswith(peers.SDPA)]
    return [*ours, *sdpa, peers.EAGER]


def setup(case: Case, device: torch.device) -> Setup:
    shape = case.shape
    module = rsattn.ResidualSelfAttention(shape.dim, shape.heads, device=device, dtype=case.torch_dtype)
    eager = rsattn.ResidualSelfAttention(
        shape.dim, shape.heads, device=device, dtype=case.torch_dtype, backend="reference"
    )
    eager.load_state_dict(module.state_dict())
    number = copies(device, shape.bytes(case.train, case.itemsize))
    like: dict[str, Any] = {"device": device, "dtype": case.torch_dtype}
    tokens = [torch.randn(shape.batch, shape.length, shape.dim, **like) for _ in range(number)]
    upstream = torch.randn_like(tokens[0])

    def plain(attention: peers.Peer, dense: bool = False) -> Callable[[Tensor], Tensor]:
        """The same weights without the residual."""

        def block(x: Tensor) -> Tensor:
            packed = module.qkv(x).view(*x.shape[:2], 3, shape.heads, shape.width)
            query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
            if dense:
                query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
            output, _ = attention(query, key, value)
            joined: Tensor = module.proj(output.transpose(1, 2).flatten(2))
            return joined

        return block

    blocks: dict[str, Callable[[Tensor], Tensor]] = {peers.RSATTN: module, peers.EAGER: eager}
    for name in names(case, device):
        if name == NO_RANKING:
            blocks[name] = plain(without_norms)
        elif name not in blocks:
            blocks[name] = plain(peers.peer(name), dense=name.endswith("contiguous"))
    parameters = list(module.parameters())

    def step(block: Callable[[Tensor], Tensor]) -> Callable[[int], Any]:
        def forward(index: int) -> Tensor:
            with torch.no_grad():
                return block(tokens[index])

        own = list(eager.parameters()) if block is eager else parameters

        def both(index: int) -> tuple[Tensor, ...]:
            return torch.autograd.grad(block(tokens[index]), own, upstream)

        return both if case.train else forward

    variants = {name: Variant(step(blocks[name])) for name in names(case, device)}
    wanted = {
        with_residual: step(eager if with_residual else plain(peers.eager_peer))(0) for with_residual in (True, False)
    }

    def check(name: str, result: Any) -> None:
        want = wanted[name in (peers.RSATTN, peers.EAGER)]
        for mine, theirs in zip(result, want) if case.train else [(result, want)]:
            error = float((mine.double() - theirs.double()).norm() / theirs.double().norm())
            if not error <= TOLERANCE[case.torch_dtype]:
                raise AssertionError(f"{name} is off by {error:.1e} of its size in {case.dtype}")

    return Setup(variants, number, check, tuple(variants))
