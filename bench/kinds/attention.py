"""Attention with norms and best head at the shapes of real models, beside everything else that computes some of it."""

from __future__ import annotations

from typing import Any

import torch

from .. import peers
from ..cases import Case, Setup
from ..clock import Variant
from ..inputs import Inputs, checker
from ..shapes import real_shapes

LONGEST = 16384  # tokens; in one dtype, and forward only: backward takes eager PyTorch memory and everybody time


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
    return peers.names(device, case.shape.length, case.train)


def setup(case: Case, device: torch.device) -> Setup:
    torch._dynamo.reset()  # a shape compiled before counts against PyTorch's limit of recompilations
    inputs = Inputs.random(case, device)
    variants = {}
    for name in names(case, device):
        given = inputs.contiguous() if name.endswith("contiguous") else inputs
        variants[name] = Variant(given.step(peers.peer(name)))
    check = checker(inputs.oracle(), case.train)

    def check_all_but_a_stand_in(name: str, result: tuple[Any, ...]) -> None:
        check(name, (None, result[1]) if name == peers.NORMS_ALONE else result)

    return Setup(variants, len(inputs.sets), check_all_but_a_stand_in)
