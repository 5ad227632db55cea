"""`residual_attention`: checks, autocast, dropout seed and choice of backend, then one operator."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from . import dispatch, philox, reference
from .contract import Norm, ResidualAttention, Scope, check_attention_inputs, default_scale


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
        query: (B, H, N, E) float16, bfloat16, float32 or (reference only) float64; any strides, such as a view
            of packed (B, N, 3, H, E) projections. Under autocast, cast to autocast's dtype. Differentiable.
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
    attention, _, _ = attend(query, key, value, attn_mask, dropout_p, scale, norm, scope, backend)
    return attention


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    scale: float | None,
    norm: str,
    scope: str,
    backend: str | None,
) -> tuple[ResidualAttention, Tensor | None, str]:
    """`residual_attention`, with the handle of the best head (see `rsattn.op`) and the backend chosen.

    The handle is None for the reference, whose best head is selected by differentiable indexing.
    """
    kind = query.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # not available on "meta"
    if autocast and query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    check_attention_inputs(query, key, value, attn_mask, dropout_p, norm, scope)
    chosen = dispatch.choose(query, attn_mask, backend, key, value)
    if scale is None:
        scale = default_scale(query.shape[-1])
    seed = philox.draw_seed(query.device) if dropout_p > 0.0 else None
    with torch.autocast(kind, enabled=False) if autocast else nullcontext():
        if chosen == "reference":
            result = reference.attention(query, key, value, attn_mask, seed, dropout_p, scale, norm, scope)
            return result, None, chosen
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
        output, norms, best_head, _, handle = torch.ops.rsattn.attention(
            query, key, value, attn_mask, seed, dropout_p, scale, norm, scope, chosen
        )
        return ResidualAttention(output, norms, best_head), handle, chosen
