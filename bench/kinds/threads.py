"""One thread and all threads of a CPU, compared with a matrix product, which shows the possible speedup."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import baselines
from ..cases import Case, Setup
from ..clock import Variant
from ..inputs import Inputs, checker
from ..shapes import real_shapes
from .attention import dtypes
from .ceilings import PRODUCT

MODELS = ("ViT-B/16 at 224", "ViT-B/16 at 384")
SIDE = 1536


def cases(device: torch.device) -> list[Case]:
    if device.type != "cpu" or torch.get_num_threads() == 1:
        return []
    shapes = real_shapes(device)
    return [Case("threads", shapes[model], dtype, model=model) for model in MODELS for dtype in dtypes(device)]


def names(case: Case, device: torch.device) -> list[str]:
    return [f"{what}, {threads}" for what in (baselines.RSATTN, PRODUCT) for threads in ("1 thread", "all threads")]


def setup(case: Case, device: torch.device) -> Setup:
    inputs, every = Inputs.random(case, device), torch.get_num_threads()
    square = torch.randn(SIDE, SIDE, dtype=case.torch_dtype)
    calls = {baselines.RSATTN: inputs.step(baselines.rsattn_default), PRODUCT: lambda _: square @ square}

    def with_threads(number: int, call: Callable[[int], object]) -> Callable[[], object]:
        def before() -> None:
            torch.set_num_threads(number)
            call(0)

        return before

    variants = {}
    for what, call in calls.items():
        for number, words in ((1, "1 thread"), (every, "all threads")):
            variants[f"{what}, {words}"] = Variant(call, before=with_threads(number, call))
    check = checker(inputs.oracle(), train=False)
    return Setup(variants, 1, lambda name, result: check(name, result) if name.startswith(baselines.RSATTN) else None)
