"""`residual_attention` and its packed form: checks, autocast, choice of backend, dropout seed; then `rsattn.ops`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import ops, philox
from .backends.base import Backend
from .backends.dispatch import choose
from .call import Call
from .contract import Norm, ResidualAttention, Scope, check_packed


def residual_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *,
    scale: float | None = None,
    norm: Norm = "induced",
    scope: Scope = "sample",
    backend: str | None = None,
) -> ResidualAttention:
    """Softmax attention, a norm of each head's probabilities, and the head whose norm is largest.

    The first six arguments mean what they mean in `torch.nn.functional.scaled_dot_product_attention`. Joining
    the best head to the projected output is `rsattn.add_best_head`; `rsattn.ResidualSelfAttention` does both.
    Sharma & Verma, arXiv 2306.01594; README.md says where the definition departs from the paper and why.

    Args:
        query: (B, H, N, E) float16, bfloat16, float32 or (reference only) float64; any strides. Under autocast,
            cast to autocast's dtype. Differentiable.
        key, value: (B, H, M, E), dtype and device of `query`. Differentiable.
        attn_mask: broadcastable to (B, H, N, M). Bool: True takes part. Floating: added to the scaled scores;
            its gradient is computed by the reference only. A row whose keys are all masked gives 0.
        dropout_p: probability with which a probability is dropped. It applies whenever it is not 0: pass 0 at
            inference. The seed is drawn from the device's default generator.
        scale: factor of the scores, default 1 / sqrt(E).
        norm: "induced" (max_j sum_i P_ij, before dropout), "entrywise" (the sum of |P| after dropout; without
            dropout every head ties and head 0 wins) or "confidence" (mean_i max_j P_ij, before dropout).
        scope: "sample" (each sample its own head) or "batch" (one head for all, by the norms' sum).
        backend: None for the fastest that can do the call, or the name of one (`rsattn.backends`).

    Returns:
        `ResidualAttention(output, norms, best_head)`.

    Raises:
        ValueError, TypeError: inputs the contract does not allow.
        rsattn.BackendError: the named backend, or every backend, cannot do this call.
    """
    call = Call((query, key, value), attn_mask, None, dropout_p, scale, norm, scope)
    return attend(call, backend).result


def residual_attention_qkvpacked(
    qkv: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *,
    scale: float | None = None,
    norm: Norm = "induced",
    scope: Scope = "sample",
    backend: str | None = None,
) -> ResidualAttention:
    """`residual_attention` of query, key and value in one tensor, named and shaped as in flash-attention.

    The backward pass writes one (B, N, 3, H, E) gradient, in which dQ, dK and dV lie as the projection wants them.
    The gradients are those of `residual_attention`, bit for bit, and three fewer tensors are written and read.

    Args:
        qkv: (B, N, 3, H, E), query before key before value, such as a projection of tokens
            `qkv(x).view(B, N, 3, H, E)`. Dtypes as in `residual_attention`. Differentiable.
        attn_mask, dropout_p, scale, norm, scope, backend: as in `residual_attention`.

    Returns:
        `ResidualAttention(output, norms, best_head)`, `output` being (B, H, N, E).

    Raises:
        ValueError, TypeError: inputs the contract does not allow.
        rsattn.BackendError: the named backend, or every backend, cannot do this call.
    """
    check_packed(qkv)
    return attend(Call((qkv,), attn_mask, None, dropout_p, scale, norm, scope), backend).result


class Attended(NamedTuple):
    """What `attend` returns.

    Attributes:
        result: what the caller of `residual_attention` sees.
        handle: the best head's output in the autograd graph (see `rsattn.ops`), where one was asked for and a gradient
            is recorded.
        backend: what computed it.
    """

    result: ResidualAttention
    handle: Tensor | None
    backend: Backend


def attend(call: Call, backend: str | None, linked: bool = False) -> Attended:
    """Check a call, complete it (autocast's dtype, the expanded mask, the dropout seed) and compute it.

    Args:
        linked: whether the best head will be joined by `rsattn.epilogue.join`, which makes use of the handle.

    Raises:
        ValueError, TypeError, rsattn.BackendError: as `residual_attention`.
    """
    device_type = call.device_type
    # "meta" has no autocast. (torch.amp.is_autocast_available says so, but PyTorch 2.11 cannot compile it.)
    autocast = device_type != "meta" and torch.is_autocast_enabled(device_type)
    if autocast and call.query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        call.take(tuple([tensor.to(dtype) for tensor in call.inputs]))
    call.check()
    chosen = choose(call, backend)
    if call.dropout_p > 0.0:
        call.seed = philox.draw_seed(call.query.device)
    if chosen.differentiable:
        if autocast:  # the kernels keep scores in float32 whatever they are made of
            with torch.autocast(device_type, enabled=False):
                result = chosen.forward(call)
        else:
            result = chosen.forward(call)
        output, norms, best_head, _ = result
        return Attended(ResidualAttention(output, norms, best_head), None, chosen)
    if call.attn_mask is not None:
        call.attn_mask = call.attn_mask.expand(*call.query.shape[:3], call.key.shape[2])
    output, norms, best_head, handle = ops.attention(call, chosen, linked)
    return Attended(ResidualAttention(output, norms, best_head), handle, chosen)
