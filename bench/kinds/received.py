"""The attention received, sum_i P_ij: what it adds to a forward pass, what it costs alone, and recomputed in PyTorch.

The variants of rsattn run in turns without any other, because slower variants would hide a difference of a few percent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rsattn

from .. import baselines
from ..cases import Case, Setup
from ..clock import Variant
from ..inputs import Inputs
from ..shapes import real_shapes
from .attention import dtypes

MODELS = ("ViT-B/16 at 224", "ViT-B/16 at 384")
COST, RECOMPUTED = "what it adds", "recomputed"
WITHOUT, ALONE = "rsattn without received", "rsattn, received alone"
EAGER_ALONE, COLREDUCE = "eager, received alone", "flash-colreduce, received alone"
# The targets: with received / without, alone / a forward pass without, and (best SDPA + eager) / with.
AT_MOST, ALONE_AT_MOST, AT_LEAST = 1.03, 0.7, 3.0

Computed = tuple[Tensor | None, Tensor | None]  # the output and the attention received, as far as a variant has them


def cases(device: torch.device) -> list[Case]:
    shapes = real_shapes(device)
    return [
        Case("received", shapes[model], dtype, model=model, detail=detail)
        for model in MODELS
        for dtype in dtypes(device)
        for detail in (COST, RECOMPUTED)
    ]


def names(case: Case, device: torch.device) -> list[str]:
    if case.detail == COST:
        return [baselines.RSATTN, WITHOUT, ALONE]
    sdpa = [name for name in baselines.names(case, device) if name.startswith(baselines.SDPA)]
    return [baselines.RSATTN, *sdpa, EAGER_ALONE, *([COLREDUCE] if device.type == "cuda" else [])]


def with_received(query: Tensor, key: Tensor, value: Tensor) -> Computed:
    result = rsattn.residual_attention(query, key, value, return_received=True)
    return result.output, result.received


def without(query: Tensor, key: Tensor, value: Tensor) -> Computed:
    return rsattn.residual_attention(query, key, value).output, None


def alone(query: Tensor, key: Tensor, value: Tensor) -> Computed:
    return None, rsattn.attention_received(query, key)


def eager_alone(query: Tensor, key: Tensor, value: Tensor) -> Computed:
    """What people write beside SDPA, which does not return its probabilities: they are computed once more."""
    probs = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(-1)
    return None, probs.sum(-2, dtype=torch.float32)


def colreduce(query: Tensor, key: Tensor, value: Tensor) -> Computed:
    from flash_colreduce import flash_colreduce

    return None, flash_colreduce(query, key, reduction="sum")


def setup(case: Case, device: torch.device) -> Setup:
    inputs = Inputs.random(case, device)
    oracle = inputs.oracle()
    computes: dict[str, Callable[[Tensor, Tensor, Tensor], Computed]] = {
        baselines.RSATTN: with_received,
        WITHOUT: without,
        ALONE: alone,
        EAGER_ALONE: eager_alone,
        COLREDUCE: colreduce,
    }

    def variant(name: str) -> Variant:
        @torch.no_grad()
        def call(index: int) -> Computed:
            return computes[name](*inputs.sets[index])

        return Variant(call) if name in computes else inputs.variant(name)

    def check(name: str, result: Any) -> None:
        output, received = result
        oracle.check(name, output, None, (), received)

    return Setup({name: variant(name) for name in names(case, device)}, len(inputs.sets), check)
