"""backend="cpu": the compiled kernels of csrc/cpu, loaded when a call first considers them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from . import extension
from .backend import Forward, KernelBackend, Limits, empty_results
from .contract import NORMS, heads_buffer


@cache
def variants() -> tuple[str, ...]:
    """The instruction sets this processor can run of those the extension was built for, fastest first."""
    return tuple(torch.ops.rsattn_C.cpu_variants().split())


class CpuBackend(KernelBackend):
    """Computes with the fastest instruction set of `variants()`, or with the one named."""

    name = "cpu"
    limits = Limits(dtypes=(torch.float16, torch.bfloat16, torch.float32), devices=("cpu",))

    def __init__(self, variant: str | None = None) -> None:
        self._variant = variant

    @property
    def variant(self) -> str:
        return self._variant or variants()[0]

    def missing(self, device_type: str) -> list[str]:
        if device_type != "cpu":
            return [f"runs on CPU tensors, not {device_type}"]
        reason = extension.load()
        return [reason] if reason else []

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        seed: Tensor | None,
        dropout_p: float,
        scale: float,
        norm: str,
        scope: str,
    ) -> Forward:
        result = empty_results(query)
        torch.ops.rsattn_C.cpu_forward(
            query,
            key,
            value,
            attn_mask,
            seed,
            dropout_p,
            scale,
            NORMS.index(norm),
            scope == "sample",
            self.variant,
            *result,
        )
        return result

    def backward(
        self,
        grad_output: Tensor,
        grad_best: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        seed: Tensor | None,
        output: Tensor,
        best_head: Tensor,
        logsumexp: Tensor,
        dropout_p: float,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = heads_buffer(query), heads_buffer(key), heads_buffer(value)
        torch.ops.rsattn_C.cpu_backward(
            grad_output,
            grad_best,
            query,
            key,
            value,
            attn_mask,
            seed,
            output,
            best_head,
            logsumexp,
            dropout_p,
            scale,
            self.variant,
            *grads,
        )
        return grads

    def add_best_head(self, projected: Tensor, output: Tensor, best_head: Tensor, merge: str, out: Tensor) -> None:
        torch.ops.rsattn_C.cpu_add_best_head(projected, output, best_head, merge == "tile", self.variant, out)

    def best_head_gradient(self, grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str) -> Tensor:
        grad_best = grad.new_empty((grad.shape[0], grad.shape[1], width))
        torch.ops.rsattn_C.cpu_best_head_gradient(grad, best_head, merge == "tile", self.variant, grad_best)
        return grad_best


# As for TritonBackend: the answer holds for the whole process, and torch.compile cannot trace into loading a library.
CpuBackend.missing._dynamo_marked_constant = True  # type: ignore[attr-defined]
