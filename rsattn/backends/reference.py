"""backend="reference": eager PyTorch. It runs every call that the contract allows, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..call import Call, Forward, Gradients
from .base import Backend, Limits


class ReferenceBackend(Backend):
    """Autograd differentiates the forward pass; `backward` computes the same derivative as a function."""

    name = "reference"
    limits = Limits(
        dtypes=(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        transforms=True,
        onnx=True,
    )
    differentiable = True

    def missing(self, device_type: str, index: int | None = None) -> list[str]:
        return []

    def forward(self, call: Call) -> Forward:
        output, norms, best_head, received = reference.attention(call)
        return Forward(output, norms, best_head, None, received)

    def received(self, call: Call) -> Tensor:
        return reference.attention_received(call)

    def backward(self, call: Call, forward: Forward, grad_output: Tensor, grad_best: Tensor | None) -> Gradients:
        if grad_best is not None:
            grad_output = grad_output.clone()
            grad_output[torch.arange(len(grad_output), device=grad_output.device), forward.best_head] += grad_best
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in call.inputs]
            same = call.on(*leaves)
            if call.mask_gradient and call.attn_mask is not None:
                same.attn_mask = call.attn_mask.detach().requires_grad_()
                leaves.append(same.attn_mask)
            grads = torch.autograd.grad(reference.attention(same).output, leaves, grad_output)
        inputs = len(call.inputs)
        return Gradients.of(grads[:inputs], grads[inputs] if call.mask_gradient else None)

    def add_best_head(
        self,
        projected: Tensor,
        output: Tensor,
        best_head: Tensor,
        merge: str,
        gamma: Tensor | None = None,
        in_place: bool = False,
    ) -> Tensor:
        result = reference.add_best_head(projected, output, best_head, merge, gamma)
        return projected.copy_(result) if in_place else result

    def best_head_gradient(self, grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str) -> Tensor:
        if merge == "tile":
            return grad.unflatten(2, (-1, width)).sum(2)
        own_channels = best_head[:, None, None, None].expand(-1, grad.shape[1], 1, width)
        return grad.unflatten(2, (heads, width)).gather(2, own_channels).squeeze(2)

    def gate_gradients(
        self, grad: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor, merge: str
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaves = output.detach().requires_grad_(), gamma.detach().requires_grad_()
            joined = reference.add_best_head(torch.zeros_like(grad), leaves[0], best_head, merge, leaves[1])
        grad_output, grad_gamma = torch.autograd.grad(joined, leaves, grad)
        return grad_output[torch.arange(len(grad), device=grad.device), best_head].contiguous(), grad_gamma
