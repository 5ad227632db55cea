"""What a backend is: limits declared as data, a list of reasons why not, and four functions on tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .contract import heads_buffer


class Forward(NamedTuple):
    """What a backend's forward pass hands to autograd.

    Attributes:
        output: (B, H, N, E) view of a (B, N, H, E) buffer, inputs' dtype.
        norms: (B, H) float32.
        best_head: (B,) int64.
        logsumexp: (B, H, N) float32, log2 of sum_j exp(score_ij); -inf for a row whose keys are all masked.
    """

    output: Tensor
    norms: Tensor
    best_head: Tensor
    logsumexp: Tensor


def empty_results(query: Tensor) -> Forward:
    """Memory for what a forward pass returns."""
    batch, heads, length, _ = query.shape
    return Forward(
        output=heads_buffer(query),
        norms=query.new_empty((batch, heads), dtype=torch.float32),
        best_head=query.new_empty((batch,), dtype=torch.int64),
        logsumexp=query.new_empty((batch, heads, length), dtype=torch.float32),
    )


@dataclass(frozen=True)
class Limits:
    """What a backend can do, as data: `Backend.refusals` turns it into sentences."""

    dtypes: tuple[torch.dtype, ...]
    devices: tuple[str, ...] | None = None
    max_head_dim: int | None = None
    head_dim_multiple: int = 1
    mask_gradient: bool = False
    transforms: bool = False  # inside torch.func's vmap, grad, jvp, ...
    onnx: bool = False


class Backend(ABC):
    """One way to compute residual attention. Backends never import each other."""

    name: str
    limits: Limits

    @abstractmethod
    def missing(self, device_type: str) -> list[str]:
        """Why this machine cannot run the backend on that type of device; empty when it can."""

    def automatic(self, device_type: str) -> bool:
        """Whether `backend=None` may choose it on that type of device."""
        return True

    def caveat(self, device_type: str) -> str:
        """What whoever asks for it by name on that type of device should know."""
        return ""

    def backward_by(self, query: Tensor, keys: int) -> str:
        """The name of the backend whose backward pass follows a forward pass of this one."""
        return self.name

    def refusals(self, query: Tensor, attn_mask: Tensor | None) -> list[str]:
        """Why this backend cannot do this call; empty when it can."""
        limits = self.limits
        reasons = []
        if limits.devices is not None and query.device.type not in limits.devices:
            reasons.append(f"runs on {' or '.join(limits.devices)} tensors, not {query.device.type}")
        if query.dtype not in limits.dtypes:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in limits.dtypes)
            reasons.append(f"takes {names}, not {str(query.dtype).removeprefix('torch.')}")
        if limits.max_head_dim is not None and query.shape[-1] > limits.max_head_dim:
            reasons.append(f"takes head_dim up to {limits.max_head_dim}, not {query.shape[-1]}")
        if query.shape[-1] % limits.head_dim_multiple:
            reasons.append(f"takes head_dim that is a multiple of {limits.head_dim_multiple}, not {query.shape[-1]}")
        mask_gradient = attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled()
        if mask_gradient and not limits.mask_gradient:
            reasons.append("computes no gradient for attn_mask, and this one requires it")
        if not limits.transforms and torch._C._are_functorch_transforms_active():
            reasons.append("has no rules for torch.func transforms (vmap, grad, jvp, ...), and is inside one")
        if not limits.onnx and torch.onnx.is_in_onnx_export():
            reasons.append("has no ONNX form")
        return reasons + self.missing(query.device.type)


class KernelBackend(Backend):
    """A backend whose forward and backward passes stand behind the `rsattn::` operators.

    `attn_mask` is None or a (B, H, N, M) view, bool or floating; `seed` is None or (1,) int64, and None means
    no dropout.
    """

    @abstractmethod
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
    ) -> Forward: ...

    @abstractmethod
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
        """dQ, dK, dV; `grad_best` (B, N, E) is added to the best head's part of `grad_output`.

        `output`, `best_head` and `logsumexp` are what `forward` returned.
        """

    @abstractmethod
    def add_best_head(self, projected: Tensor, output: Tensor, best_head: Tensor, merge: str, out: Tensor) -> None:
        """Write `rsattn.reference.add_best_head` to `out`, which may be `projected` itself."""

    @abstractmethod
    def best_head_gradient(self, grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str) -> Tensor:
        """merge^T: the gradient (B, N, E) of the best head's output from `grad` (B, N, D)."""
