"""backend="cuda": the CUDA C++ kernels of csrc/cuda, loaded when a call first considers them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..call import Call, Forward, Gradients, empty_forward, empty_gradients
from ..contract import NORMS
from ..slices import walk_of
from . import extension
from .base import Backend, Limits

NO_KERNELS = (
    "the compiled extension was installed without CUDA kernels: it came with a wheel from PyPI, or no nvcc was found "
    "that can compile them. Put CUDA's nvcc on PATH, or name it in CUDACXX, and build rsattn from source with "
    "pip install -v --force-reinstall --no-deps --no-binary rsattn, which shows the compiler's output"
)

# Queries and keys of a tile (ROWS and COLUMNS in csrc/cuda/tile.h).
TILE = 64

# Compute capabilities on which the tests and repeats of `bash bench/gpu_visit.sh` passed. They passed on sm_90, before
# logits of any size (kernels/README.md), the attention received, the mask's gradient and masks that repeat.
VERIFIED: frozenset[tuple[int, int]] = frozenset()
# Those of them on which these kernels were also the fastest at the shapes of vision transformers. Only there may
# backend=None choose them. On an H100 they are not the fastest (bench/README.md, "First measurements on an H100").
FASTEST: frozenset[tuple[int, int]] = frozenset()


class CudaBackend(Backend):
    """The forward pass at any length; the backward pass where a whole head fits on chip, otherwise Triton's."""

    name = "cuda"
    limits = Limits(dtypes=(torch.float16, torch.bfloat16), devices=("cuda",), max_head_dim=128, head_dim_multiple=8)

    @property
    def operators(self) -> Any:
        return extension.operators()

    def missing(self, device_type: str, index: int | None = None) -> list[str]:
        if device_type != "cuda":
            return [f"runs on CUDA tensors, not {device_type}"]
        if torch.version.hip is not None:
            return ["runs on NVIDIA GPUs, and this PyTorch is built for ROCm"]
        if not torch.cuda.is_available():
            return ["no CUDA device is available"]
        if reason := extension.load():
            return [reason]
        if extension.cuda_build() is None:
            return [NO_KERNELS]
        reason = self.operators.cuda_missing(torch.cuda.current_device() if index is None else index)
        return [reason] if reason else []

    def automatic(self, device_type: str, index: int | None = None) -> bool:
        return bool(FASTEST) and device_type == "cuda" and torch.cuda.get_device_capability(index) in FASTEST

    def caveat(self, device_type: str, index: int | None = None) -> str:
        if device_type != "cuda":
            return ""
        capability = torch.cuda.get_device_capability(index)
        if capability not in VERIFIED:
            return "never verified on this architecture"
        return "" if capability in FASTEST else "not faster than backend='triton' on this architecture"

    def backward_by(self, call: Call) -> str:
        queries, keys, width = call.query.shape[2], call.key.shape[2], call.query.shape[3]
        most = self.backward_length(width, call.query.device.index or 0)
        return self.name if max(queries, keys) <= most else "triton"

    def backward_length(self, width: int, device: int) -> int:
        """The largest number of queries and keys, for heads of that dimension, whose backward pass fits on chip."""
        return int(self.operators.cuda_backward_length(width, device))

    def forward(self, call: Call) -> Forward:
        result = empty_forward(call)
        self.operators.cuda_forward(
            call.query,
            call.key,
            call.value,
            call.expanded_mask(),
            call.seed,
            call.dropout_p,
            call.scale,
            NORMS.index(call.norm),
            call.scope == "sample",
            *result,
        )
        return result

    def received(self, call: Call) -> Tensor:
        batch, heads, keys, _ = call.key.shape
        received = call.key.new_empty((batch, heads, keys), dtype=torch.float32)
        self.operators.cuda_received(call.query, call.key, call.expanded_mask(), call.scale, received)
        return received

    def backward(self, call: Call, forward: Forward, grad_output: Tensor, grad_best: Tensor | None) -> Gradients:
        grads = empty_gradients(call)
        self.operators.cuda_backward(*_of_backward(call, forward, grad_output, grad_best), *grads[:3])
        if call.mask_gradient:
            return grads._replace(mask=self.mask_gradient(call, forward, grad_output, grad_best))
        return grads

    def mask_gradient(self, call: Call, forward: Forward, grad_output: Tensor, grad_best: Tensor | None) -> Tensor:
        """`Gradients.mask` alone, of calls of any length."""
        mask = call.attn_mask
        assert mask is not None
        tiles = [-(-length // TILE) for length in (call.query.shape[2], call.key.shape[2])]
        slices = walk_of(call, *tiles).slices
        partial = mask.new_empty((slices, *mask.shape), dtype=torch.float32)
        arguments = _of_backward(call, forward, grad_output, grad_best)
        self.operators.cuda_mask_gradient(*arguments, partial.flatten(0, 1))
        return partial[0] if slices == 1 else partial.sum(0)  # in a fixed order

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
        self.operators.cuda_add_best_head(projected, output, best_head, gamma, merge == "tile", out)
        return out

    def best_head_gradient(self, grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str) -> Tensor:
        grad_best = grad.new_empty((grad.shape[0], grad.shape[1], width))
        self.operators.cuda_best_head_gradient(grad, best_head, merge == "tile", grad_best)
        return grad_best

    def gate_gradients(
        self, grad: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor, merge: str
    ) -> tuple[Tensor, Tensor]:
        batch, _, length, width = output.shape
        grad_best = output.new_empty((batch, length, width))
        grad_gamma = gamma.new_empty(gamma.shape)
        self.operators.cuda_gate_gradients(grad, output, best_head, gamma, merge == "tile", grad_best, grad_gamma)
        return grad_best, grad_gamma


def _of_backward(call: Call, forward: Forward, grad_output: Tensor, grad_best: Tensor | None) -> tuple[Any, ...]:
    """The first arguments of the operators of the backward pass."""
    inputs = call.query, call.key, call.value, call.expanded_mask(), call.seed
    kept = forward.output, forward.best_head, forward.statistics
    return grad_output, grad_best, *inputs, *kept, call.dropout_p, call.scale


# As for TritonBackend: the answers hold for the whole process, and torch.compile cannot trace these functions.
CudaBackend.missing._dynamo_marked_constant = True  # type: ignore[attr-defined]
CudaBackend.automatic._dynamo_marked_constant = True  # type: ignore[attr-defined]
CudaBackend.backward_length._dynamo_marked_constant = True  # type: ignore[attr-defined]
