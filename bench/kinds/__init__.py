"""The kinds of cases, one module each: `cases(device)`, `names(case, device)`, `setup(case, device)`."""

from __future__ import annotations

from types import ModuleType

import torch

from ..cases import Case, Setup
from . import (
    attention,
    bias,
    block,
    ceilings,
    epilogue,
    gate,
    head_dim,
    length,
    model,
    overhead,
    packed,
    ranking,
    received,
    threads,
)

KINDS: dict[str, ModuleType] = {
    "ceilings": ceilings,
    "attention": attention,
    "length": length,
    "width": head_dim,  # the name in result files
    "ranking": ranking,
    "epilogue": epilogue,
    "gate": gate,
    "received": received,
    "block": block,
    "bias": bias,
    "model": model,
    "threads": threads,
    "packed": packed,
    "overhead": overhead,
}


def cases(device: torch.device) -> list[Case]:
    """All cases that the suite times on a device, in order."""
    return [case for kind in KINDS.values() for case in kind.cases(device)]


def names(case: Case, device: torch.device) -> list[str]:
    """The names of the variants of a case, rsattn first."""
    found: list[str] = KINDS[case.kind].names(case, device)
    return found


def setup(case: Case, device: torch.device) -> Setup:
    """The case with its inputs, ready to be timed. The random numbers are always the same."""
    torch.manual_seed(0)
    made: Setup = KINDS[case.kind].setup(case, device)
    return made
