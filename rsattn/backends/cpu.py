"""backend="cpu": the compiled kernels of csrc/cpu, loaded when a call first considers them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..call import Call, Forward, Gradients
from ..contract import NORMS
from . import extension
from .base import Backend, Limits


@cache
def variants() -> tuple[str, ...]:
    """The instruction sets that the extension was built for and this processor can run, fastest first."""
    return tuple(extension.operators().cpu_variants().split())


class CpuBackend(Backend):
    """Computes with the fastest instruction set of `variants()`, or with the one named."""

    name = "cpu"
    limits = Limits(dtypes=(torch.float16, torch.bfloat16, torch.float32), devices=("cpu",))

    def __init__(self, variant: str | None = None) -> None:
        self._variant = variant

    @property
    def variant(self) -> int:
        """The instruction set's number in `variants()`."""
        if self._variant is None:
            return 0
        if self._variant not in variants():
            raise RuntimeError(f"this processor has no {self._variant!r}; it can run: {', '.join(variants())}")
        return variants().index(self._variant)

    def missing(self, device_type: str, index: int | None = None) -> list[str]:
        if device_type != "cpu":
            return [f"runs on CPU tensors, not {device_type}"]
        reason = extension.load()
        return [reason] if reason else []

    def forward(self, call: Call) -> Forward:
        result = extension.operators().cpu_forward(
            call.query,
            call.key,
            call.value,
            call.expanded_mask(),
            call.seed,
            call.dropout_p,
            call.scale,
            NORMS.index(call.norm),
            call.scope == "sample",
            call.return_received,
            self.variant,
        )
        return Forward(*result)

    def received(self, call: Call) -> Tensor:
        operator = extension.operators().cpu_received
        received: Tensor = operator(call.query, call.key, call.expanded_mask(), call.scale, self.variant)
        return received

    def backward(self, call: Call, forward: Forward, grad_output: Tensor, grad_best: Tensor | None) -> Gradients:
        mask = call.attn_mask if call.mask_gradient else None
        grads = extension.operators().cpu_backward(
            grad_output,
            grad_best,
            call.query,
            call.key,
            call.value,
            call.expanded_mask(),
            call.seed,
            forward.output,
            forward.best_head,
            forward.statistics,
            call.dropout_p,
            call.scale,
            call.packed,
            mask,
            self.variant,
        )
        return Gradients.of(grads) if mask is None else Gradients.of(grads[:-1], grads[-1])

    def add_best_head(
        self,
        projected: Tensor,
        output: Tensor,
        best_head: Tensor,
        merge: str,
        gamma: Tensor | None = None,
        in_place: bool = False,
    ) -> Tensor:
        tile, operators = merge == "tile", extension.operators()
        if in_place:
            operators.cpu_add_best_head_(projected, output, best_head, gamma, tile, self.variant)
            return projected
        joined: Tensor = operators.cpu_add_best_head(projected, output, best_head, gamma, tile, self.variant)
        return joined

    def best_head_gradient(self, grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str) -> Tensor:
        operator = extension.operators().cpu_best_head_gradient
        grad_best: Tensor = operator(grad, best_head, width, merge == "tile", self.variant)
        return grad_best

    def gate_gradients(
        self, grad: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor, merge: str
    ) -> tuple[Tensor, Tensor]:
        operator = extension.operators().cpu_gate_gradients
        grads: tuple[Tensor, Tensor] = operator(grad, output, best_head, gamma, merge == "tile", self.variant)
        return grads


# As for TritonBackend: the answer holds for the whole process, and torch.compile cannot trace the loading of a library.
CpuBackend.missing._dynamo_marked_constant = True  # type: ignore[attr-defined]
