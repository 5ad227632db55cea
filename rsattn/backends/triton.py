"""backend="triton": the fused kernels of `rsattn.kernels`, imported when a call first considers them."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..call import Call, Forward, Gradients
from .base import Backend, Limits

OLDEST_CAPABILITY = (8, 0)


def _interpreter_requested() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


class TritonBackend(Backend):
    name = "triton"
    limits = Limits(dtypes=(torch.float16, torch.bfloat16, torch.float32), max_head_dim=1024)

    def missing(self, device_type: str, index: int | None = None) -> list[str]:
        if importlib.util.find_spec("triton") is None:
            return ["Triton is not installed (pip install triton; Linux only)"]
        if device_type == "cpu":
            if not _interpreter_requested():
                return ["runs on CUDA tensors (for tests also on a CPU, slowly, with TRITON_INTERPRET=1)"]
        elif device_type != "cuda":
            return [f"runs on CUDA tensors, not {device_type}"]
        elif not torch.cuda.is_available():
            return ["no CUDA device is available"]
        if importlib.util.find_spec("rsattn.kernels") is None:
            return ["rsattn is imported from its source folder; run pip install there, which adds rsattn.kernels"]
        from .. import kernels

        if device_type == "cpu" and not kernels.interpreted():
            return ["TRITON_INTERPRET was set after the kernels were loaded; set it before Python starts"]
        if device_type == "cuda" and torch.version.hip is None:
            capability = torch.cuda.get_device_capability(index)
            if capability < OLDEST_CAPABILITY:
                return [f"needs compute capability {OLDEST_CAPABILITY}, this GPU has {capability}"]
        return []

    def automatic(self, device_type: str, index: int | None = None) -> bool:
        """Not on a CPU: only the interpreter runs there, which is slow and meant for tests."""
        return device_type == "cuda"

    def refusals(self, call: Call) -> list[str]:
        reasons = super().refusals(call)
        if call.device_type == "cpu" and call.query.dtype == torch.bfloat16 and _interpreter_requested():
            reasons.append("Triton's interpreter computes bfloat16 wrongly, without an error (3.6 to 3.9)")
        return reasons

    def forward(self, call: Call) -> Forward:
        return _launch().forward(call)

    def received(self, call: Call) -> Tensor:
        received: Tensor = _launch().received(call)
        return received

    def backward(self, call: Call, forward: Forward, grad_output: Tensor, grad_best: Tensor | None) -> Gradients:
        return _launch().backward(call, forward, grad_output, grad_best)

    def add_best_head(
        self,
        projected: Tensor,
        output: Tensor,
        best_head: Tensor,
        merge: str,
        gamma: Tensor | None = None,
        in_place: bool = False,
    ) -> Tensor:
        out = projected if in_place else torch.empty_like(projected, memory_format=torch.contiguous_format)
        _launch_residual().add_best_head(projected, output, best_head, merge, out, gamma)
        return out

    def best_head_gradient(self, grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str) -> Tensor:
        return _launch_residual().best_head_gradient(grad, best_head, width, merge)

    def gate_gradients(
        self, grad: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor, merge: str
    ) -> tuple[Tensor, Tensor]:
        grads: tuple[Tensor, Tensor] = _launch_residual().gate_gradients(grad, output, best_head, gamma, merge)
        return grads


@cache
def _launch() -> Any:
    """The launchers, imported on first use because they import Triton."""
    from ..kernels import launch

    return launch


@cache
def _launch_residual() -> Any:
    """The launchers of the residual."""
    from ..kernels import launch_residual

    return launch_residual


# The answer holds for the whole process, and torch.compile cannot trace imports. The decorator
# torch.compiler.assume_constant_result sets the same attribute, but imports the whole compiler.
TritonBackend.missing._dynamo_marked_constant = True  # type: ignore[attr-defined]
