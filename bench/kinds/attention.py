"""Attention with norms and best head at the shapes of real models, compared with all baselines."""

from __future__ import annotations

from typing import Any

import torch

from .. import baselines
from ..cases import Case, Setup
from ..inputs import Inputs, checker
from ..shapes import real_shapes

# At this length: one dtype and forward only. Backward takes all variants long, and eager PyTorch too much memory.
LONGEST = 16384


def dtypes(device: torch.device) -> tuple[str, ...]:
    return ("bfloat16",) if device.type == "cuda" else ("float32", "bfloat16")


def cases(device: torch.device) -> list[Case]:
    found = []
    for model, shape in real_shapes(device).items():
        if shape.length < LONGEST:
            found += [
                Case("attention", shape, dtype, train, model) for dtype in dtypes(device) for train in (False, True)
            ]
        else:
            found += [Case("attention", shape, dtypes(device)[0], False, model)]
    return found


def names(case: Case, device: torch.device) -> list[str]:
    return baselines.names(case, device)


def setup(case: Case, device: torch.device) -> Setup:
    torch._dynamo.reset()  # earlier compilations count toward PyTorch's recompilation limit
    inputs = Inputs.random(case, device)
    check = checker(inputs.oracle(), case.train)
    variants = {name: inputs.variant(name) for name in names(case, device)}

    def check_computed(name: str, result: Any) -> None:
        if name == baselines.NORMS_ALONE:
            result = (None, result[1])
        check(name, result)

    return Setup(variants, len(inputs.sets), check_computed)
