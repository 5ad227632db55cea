"""Time and memory against the number of tokens, all else fixed: the O(n^2 d) claim, and what ranking adds to it."""

from __future__ import annotations

import torch

from .. import peers
from ..cases import Case, Setup
from ..clock import Variant
from ..inputs import Inputs, checker
from ..shapes import Shape
from . import ranking

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)


def cases(device: torch.device) -> list[Case]:
    batch, heads, dtype = (4, 12, "bfloat16") if device.type == "cuda" else (1, 2, "float32")
    return [
        Case("length", Shape(batch, heads, length, 64), dtype, train) for train in (False, True) for length in LENGTHS
    ]


def names(case: Case, device: torch.device) -> list[str]:
    ours = [ranking.WITH_RESIDUAL, ranking.NO_RANKING] if not case.train else [peers.RSATTN]
    sdpa = [name for name in peers.names(case, device) if name.startswith(peers.SDPA)]
    return [*ours, *sdpa, peers.EAGER]


def setup(case: Case, device: torch.device) -> Setup:
    inputs = Inputs.random(case, device)
    check = checker(inputs.oracle(), case.train)
    variants: dict[str, Variant] = {}
    if not case.train:
        variants, check = ranking.variants(case, inputs, check)
    for name in names(case, device):
        if name not in variants:
            given = inputs.contiguous() if name.endswith("contiguous") else inputs
            variants[name] = Variant(given.step(peers.peer(name)))
    return Setup(variants, len(inputs.sets), check, tuple(variants))
