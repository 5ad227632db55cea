"""The cost of ranking the heads: the same attention with and without norms, best head and residual.

These two variants run in turns without any other, because slower variants would hide a difference of a few percent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import rsattn
from rsattn.module import Residual, ResidualOptions, attend_and_join

from ..cases import Case, Setup
from ..clock import Variant
from ..inputs import Inputs, checker
from ..shapes import Shape, real_shapes
from .attention import dtypes

MODELS = ("ViT-B/16 at 224", "ViT-B/16 at 384")
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
WITH_RESIDUAL, NO_RANKING = "rsattn with the residual", "rsattn without norms"
OPTIONS = ResidualOptions()


def series(device: torch.device, train: bool, kind: str) -> list[Case]:
    """Cases that differ only in length."""
    batch, heads, dtype = (4, 12, "bfloat16") if device.type == "cuda" else (1, 2, "float32")
    return [Case(kind, Shape(batch, heads, length, 64), dtype, train) for length in LENGTHS]


def cases(device: torch.device) -> list[Case]:
    shapes = real_shapes(device)
    found = [Case("ranking", shapes[model], dtype, model=model) for model in MODELS for dtype in dtypes(device)]
    return found + series(device, train=False, kind="ranking")


def names(case: Case, device: torch.device) -> list[str]:
    return [WITH_RESIDUAL, NO_RANKING]


def without_norms(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """The same kernel with a norm that costs nothing: without dropout the entrywise norm only counts rows."""
    return rsattn.residual_attention(query, key, value, norm="entrywise").output, None


class WithResidual(Residual):
    """A patched block without its projections; the residual is added in place."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        shape, like = case.shape, inputs.sets[0][0]
        self.options, self.gamma = OPTIONS, None
        self.inputs = inputs
        self.first = torch.randn(shape.batch, shape.length, shape.dim, device=like.device, dtype=like.dtype)
        self.projected = [self.first.clone() for _ in inputs.sets]

    @torch.no_grad()
    def __call__(self, index: int) -> Tensor:
        projected = self.projected[index]
        return attend_and_join(OPTIONS.call(*self.inputs.sets[index]), lambda joined: projected, self)

    def check(self, result: Tensor) -> tuple[Tensor, Tensor]:
        """Check that the first call added the best head; return the attention's output and norms to be checked too."""
        attention = rsattn.residual_attention(*self.inputs.sets[0])
        torch.testing.assert_close(result, rsattn.add_best_head(self.first, attention), rtol=0, atol=0)
        return attention.output, attention.norms


def setup(case: Case, device: torch.device) -> Setup:
    inputs = Inputs.random(case, device)
    check, ours = checker(inputs.oracle(), train=False), WithResidual(case, inputs)

    def check_both(name: str, result: Any) -> None:
        check(name, ours.check(result) if name == WITH_RESIDUAL else result)

    variants = {WITH_RESIDUAL: Variant(ours), NO_RANKING: Variant(inputs.step(without_norms))}
    return Setup(variants, len(inputs.sets), check_both)
