"""Time and memory against the number of tokens: the claim of O(n^2 d)."""

from __future__ import annotations

from typing import Any

import torch

from .. import baselines
from ..cases import Case, Setup
from ..clock import Variant
from ..inputs import Inputs, checker
from .ranking import WITH_RESIDUAL, WithResidual, series


def cases(device: torch.device) -> list[Case]:
    return [case for train in (False, True) for case in series(device, train, "length")]


def names(case: Case, device: torch.device) -> list[str]:
    ours = baselines.RSATTN if case.train else WITH_RESIDUAL
    sdpa = [name for name in baselines.names(case, device) if name.startswith(baselines.SDPA)]
    return [ours, *sdpa, baselines.EAGER]


def setup(case: Case, device: torch.device) -> Setup:
    inputs = Inputs.random(case, device)
    check, with_residual = checker(inputs.oracle(), case.train), WithResidual(case, inputs)
    variants = {
        name: Variant(with_residual) if name == WITH_RESIDUAL else inputs.variant(name) for name in names(case, device)
    }

    def check_all(name: str, result: Any) -> None:
        check(name, with_residual.check(result) if name == WITH_RESIDUAL else result)

    return Setup(variants, len(inputs.sets), check_all, tuple(variants))
