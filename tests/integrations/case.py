"""One model of one library, small, for the tests every library has to pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from oracle import normal
from torch import Tensor, nn

import rsattn

DIM, HEADS, IMAGE = 24, 3, 32


class Keep:
    """A recorder that keeps what it sees."""

    wants_received = False

    def __init__(self) -> None:
        self.seen: list[rsattn.ResidualAttention] = []

    def note(self, attention: rsattn.ResidualAttention) -> None:
        self.seen.append(attention)


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        name: of the test.
        build: the plain model, float32, from the library, with attention dropout `dropout` and no other if it can.
        attentions: the names of the modules that `patch` changes, in order.
        inputs: what the model is called with.
        call: runs the model; returns what it computes.
        dropout: of the attention probabilities in training.
        fresh: whether `num_heads` and `head_dim` may be given.
        as_tokens: an attention module and what it returns -> the same as (B, N, D), a sample being one attention.
        packed: whether Q, K and V come straight from one projection, so that their gradient is one tensor.
    """

    name: str
    build: Callable[[], nn.Module]
    attentions: list[str]
    inputs: Callable[[torch.dtype], Any] = lambda dtype: normal(2, 3, IMAGE, IMAGE, dtype=dtype)
    call: Callable[[nn.Module, Any], Tensor] = lambda model, inputs: model(inputs)
    dropout: float = 0.25
    fresh: bool = True
    as_tokens: Callable[[Any, Tensor], Tensor] = lambda attention, output: output
    packed: bool = True

    def model(self, dtype: torch.dtype = torch.float32, training: bool = False) -> nn.Module:
        """The same weights every time. Q and K are enlarged, so that scores spread as in a trained model."""
        torch.manual_seed(0)
        model = self.build()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
                elif parameter.dim() == 2:
                    parameter.copy_(torch.randn(parameter.shape) * 1.5 * parameter.shape[1] ** -0.5)
        return model.to(dtype).train(training)

    def run(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.call(model, self.inputs(dtype))
