"""Residual attention that adds another head than the best one: is it the choice that helps, or just one more head?"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from rsattn.attention import Attended
from rsattn.module import ResidualOptions
from rsattn.recording import residual_modules
from rsattn.reference import add_best_head

Which = Literal["best", "worst", "random", "fixed", "mean"]
"""worst: the least norm; random: another one for every sample and forward pass; fixed: head 0; mean: all, averaged."""


class OtherHead(ResidualOptions):
    """The options of a module that adds another head than the best one. Gradients flow through that head.

    Args:
        like: the options it had.
        generator: draws the random heads.
    """

    def __init__(self, like: ResidualOptions, which: Which, generator: torch.Generator) -> None:
        super().__init__(like.norm, like.scope, like.merge, like.backend, like.init_values)
        self.which, self.generator = which, generator

    def join(self, projected: Tensor, attended: Attended, gamma: Tensor | None) -> Tensor:
        output, norms, _best = attended.result
        head = chosen(self.which, norms, self.generator)
        if self.which == "mean":
            output = output.mean(1, keepdim=True)
        return add_best_head(projected, output, head, self.merge, gamma)


def add_other_head(model: nn.Module, which: Which, generator: torch.Generator) -> None:
    """Have every residual attention of `model` add that head; "best" leaves the model as it is."""
    if which == "best":
        return
    modules: dict[str, Any] = residual_modules(model)
    for module in modules.values():
        module.options = OtherHead(module.options, which, generator)


def chosen(which: Which, norms: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) int64: the head to add; `norms` (B, H). Of all heads' mean there is one, number 0."""
    samples, heads = norms.shape
    if which == "worst":
        return norms.argmin(1)
    if which in ("fixed", "mean"):
        return norms.new_zeros(samples, dtype=torch.int64)
    return torch.randint(heads, (samples,), generator=generator).to(norms.device)
