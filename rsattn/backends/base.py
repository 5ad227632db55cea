"""What a backend is: limits declared as data, the reasons why it cannot run a call, and functions on tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..call import Call, Forward, Gradients


@dataclass(frozen=True)
class Limits:
    """What a backend supports, as data; `Backend.refusals` turns it into reasons."""

    dtypes: tuple[torch.dtype, ...]
    devices: tuple[str, ...] | None = None
    max_head_dim: int | None = None
    head_dim_multiple: int = 1
    transforms: bool = False  # inside torch.func's vmap, grad, jvp, ...
    onnx: bool = False


class Backend(ABC):
    """One way to compute residual attention. Backends never import each other."""

    name: str
    limits: Limits
    differentiable = False
    """Whether autograd differentiates the forward pass itself and never calls `backward`."""

    @abstractmethod
    def missing(self, device_type: str, index: int | None = None) -> list[str]:
        """Why this machine cannot run the backend on that device (None: the current one); empty when it can."""

    def automatic(self, device_type: str, index: int | None = None) -> bool:
        """Whether `backend=None` may choose it on that device (None: the current one)."""
        return True

    def caveat(self, device_type: str, index: int | None = None) -> str:
        """What to know before choosing it by name on that device (None: the current one), where it can run."""
        return ""

    def backward_by(self, call: Call) -> str:
        """The name of the backend that runs the backward pass after this one's forward pass."""
        return self.name

    def refusals(self, call: Call) -> list[str]:
        """Why this backend cannot run this call; empty when it can."""
        limits, device_type = self.limits, call.device_type
        dtype, width = call.query.dtype, call.query.shape[-1]
        reasons = []
        if limits.devices is not None and device_type not in limits.devices:
            reasons.append(f"runs on {' or '.join(limits.devices)} tensors, not {device_type}")
        if dtype not in limits.dtypes:
            names = ", ".join(str(allowed).removeprefix("torch.") for allowed in limits.dtypes)
            reasons.append(f"takes {names}, not {str(dtype).removeprefix('torch.')}")
        if limits.max_head_dim is not None and width > limits.max_head_dim:
            reasons.append(f"takes head_dim up to {limits.max_head_dim}, not {width}")
        if limits.head_dim_multiple > 1 and width % limits.head_dim_multiple:
            reasons.append(f"takes head_dim that is a multiple of {limits.head_dim_multiple}, not {width}")
        if not limits.transforms and torch._C._are_functorch_transforms_active():
            reasons.append("does not support torch.func transforms (vmap, grad, jvp, ...), and the call is inside one")
        if not limits.transforms and call.has_tangent():
            reasons.append("has no forward-mode derivative, and a dual tensor (torch.autograd.forward_ad) asks for one")
        if not limits.onnx and _traced() and torch.onnx.is_in_onnx_export():
            reasons.append("has no ONNX form")
        return reasons + self.missing(device_type, call.query.device.index)

    @abstractmethod
    def forward(self, call: Call) -> Forward:
        """Attention, norms and best heads; with `call.return_received` also the attention received."""

    @abstractmethod
    def received(self, call: Call) -> Tensor:
        """The attention received alone, (B, H, M) float32: sum_i P_ij, before dropout. `call.value` is not read."""

    @abstractmethod
    def backward(self, call: Call, forward: Forward, grad_output: Tensor, grad_best: Tensor | None) -> Gradients:
        """dQ, dK and dV of a call whose forward pass returned `forward`; with `call.mask_gradient` also the mask's.

        That gradient is asked for only if the mask's last axis is longer than 1; otherwise it is zero (`rsattn.ops`).

        Args:
            grad_output: (B, H, N, E), any strides.
            grad_best: (B, N, E) or None; added to the best head's part of `grad_output`.
        """

    @abstractmethod
    def add_best_head(
        self,
        projected: Tensor,
        output: Tensor,
        best_head: Tensor,
        merge: str,
        gamma: Tensor | None = None,
        in_place: bool = False,
    ) -> Tensor:
        """`rsattn.reference.add_best_head` into a new contiguous tensor, or `in_place` into `projected`."""

    @abstractmethod
    def best_head_gradient(self, grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str) -> Tensor:
        """merge^T: the gradient (B, N, E) of the best head's output from `grad` (B, N, D)."""

    @abstractmethod
    def gate_gradients(
        self, grad: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor, merge: str
    ) -> tuple[Tensor, Tensor]:
        """The gradients of a gated sum from `grad` (B, N, D).

        Returns:
            merge^T(gamma * grad), (B, N, E) in output's dtype, contiguous; and the gradient of gamma, (D,) in its
            dtype: the sum of grad * merge(O_h*) over samples and tokens, with the same bits on every run.
        """


def _traced() -> bool:
    """Whether the call is being traced; asked first, because `is_in_onnx_export` is slow."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
