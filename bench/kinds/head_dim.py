"""Time against the head dimension E: the d of O(n^2 d)."""

from __future__ import annotations

import torch

from .. import baselines
from ..cases import Case, Setup
from ..inputs import Inputs, checker
from ..shapes import Shape

HEAD_DIMS = (16, 32, 64, 128, 256)


def cases(device: torch.device) -> list[Case]:
    batch, heads, dtype = (32, 12, "bfloat16") if device.type == "cuda" else (2, 4, "float32")
    return [Case("width", Shape(batch, heads, 577, head_dim), dtype) for head_dim in HEAD_DIMS]


def names(case: Case, device: torch.device) -> list[str]:
    compiled = (baselines.COMPILED, baselines.FLEX, baselines.NORMS_ALONE)
    return [name for name in baselines.names(case, device) if name not in compiled]


def setup(case: Case, device: torch.device) -> Setup:
    inputs = Inputs.random(case, device)
    variants = {name: inputs.variant(name) for name in names(case, device)}
    return Setup(variants, len(inputs.sets), checker(inputs.oracle(), case.train))
