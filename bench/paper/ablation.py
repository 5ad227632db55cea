"""Residual attention that adds another head than the best one: is it the choice that helps, or just one more head?"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from rsattn.attention import Attended
from rsattn.call import Call
from rsattn.module import ResidualOptions
from rsattn.recording import residual_modules
from rsattn.reference import add_best_head, best_heads

from .rules import scores

Which = Literal["best", "worst", "random", "fixed", "mean", "patches", "value-weighted", "centered"]
"""worst: the least norm; random: another one for every sample and forward pass; fixed: head 0; mean: all, averaged;
the rest: the head that a rule of rules.py chooses."""


class OtherHead(ResidualOptions):
    """The options of one module that adds another head than the best one. Gradients flow through that head.

    Args:
        like: the options it had.
        generator: draws the random heads.
        prefix_tokens: number of tokens before the patches, such as the class token.
    """

    def __init__(self, like: ResidualOptions, which: Which, generator: torch.Generator, prefix_tokens: int = 1) -> None:
        super().__init__(like.norm, like.scope, like.merge, like.backend, like.init_values)
        self.which, self.generator, self.prefix_tokens = which, generator, prefix_tokens
        self._call: Call | None = None

    def call(
        self, *inputs: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, scale: float | None = None
    ) -> Call:
        """As in `ResidualOptions`. `join` takes the call it belongs to from here: a module makes one at a time."""
        self._call = super().call(*inputs, attn_mask=attn_mask, dropout_p=dropout_p, scale=scale)
        return self._call

    def join(self, projected: Tensor, attended: Attended, gamma: Tensor | None) -> Tensor:
        call, self._call = self._call, None  # it would keep the graph of Q, K and V alive
        output, norms, _best, _ = attended.result
        if self.which in ("patches", "value-weighted", "centered"):
            assert call is not None
            head = best_heads(scores(self.which, call, output, self.prefix_tokens), self.scope)
        else:
            head = chosen(self.which, norms, self.generator)
        if self.which == "mean":
            output = output.mean(1, keepdim=True)
        return add_best_head(projected, output, head, self.merge, gamma)


def add_other_head(model: nn.Module, which: Which, generator: torch.Generator) -> None:
    """Have every residual attention of `model` add that head; "best" leaves the model as it is.

    Tokens before the patches are counted as timm's models do, `num_prefix_tokens`; others have a class token.
    """
    if which == "best":
        return
    modules: dict[str, Any] = residual_modules(model)
    for module in modules.values():
        module.options = OtherHead(module.options, which, generator, getattr(model, "num_prefix_tokens", 1))


def chosen(which: Which, norms: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) int64: the head to add; `norms` (B, H). Of all heads' mean there is one, number 0."""
    samples, heads = norms.shape
    if which == "worst":
        return norms.argmin(1)
    if which in ("fixed", "mean"):
        return norms.new_zeros(samples, dtype=torch.int64)
    return torch.randint(heads, (samples,), generator=generator).to(norms.device)
