"""The specification in eager PyTorch: any device, any floating dtype, differentiable twice.

The tests compare everything else in rsattn with this file run in float64. It stores the (N, M)
probabilities of every head, which the kernels never do.

    P_h = softmax(scale * Q_h K_h^T + mask)              `probabilities`
    O_h = dropout(P_h) V_h                               `attention`
    s_h = a norm of P_h                                  `head_norms`
    h*  = argmax_h s_h                                   `best_heads`
    Y   = projected + gamma * merge(O_h*)                `add_best_head`, with gamma = 1 where there is no gate
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import philox
from .call import Call
from .contract import ResidualAttention

# Queries at a time in `attention_received`: at N = 4096, a thirty-second of one N x N matrix.
ROWS = 128


def probabilities(query: Tensor, key: Tensor, attn_mask: Tensor | None, scale: float) -> Tensor:
    """P (B, H, N, M), at least float32. A row whose keys are all masked is zero, not NaN."""
    scores = (query @ key.transpose(-2, -1)) * scale
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if attn_mask is None:
        return scores.softmax(dim=-1)
    batch = scores.shape[0]
    repeat = attn_mask.shape[0] if attn_mask.dim() == 4 else 1
    if repeat != 1 and repeat != batch:
        scores = scores.unflatten(0, (batch // repeat, repeat))
    scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    if scores.dim() == 5:
        scores = scores.flatten(0, 1)
    blind = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return scores.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)


def head_norms(probs: Tensor, dropped: Tensor, norm: str) -> Tensor:
    """s (B, H): the norm of P before dropout, or after it for "entrywise".

    Without dropout (`dropped is probs`) every row that sees a key sums to one, so the entrywise norm is
    *defined* as the number of such rows: the tie is exact, and rounding does not choose the head.
    """
    if norm == "induced":
        # torch.linalg.matrix_norm(probs, ord=1), which would fix the batch size of a compiled graph.
        return probs.sum(dim=-2).amax(dim=-1)
    if norm == "confidence":
        return probs.amax(dim=-1).mean(dim=-1)
    if dropped is probs:
        return (probs != 0).any(dim=-1).sum(dim=-1).to(probs.dtype)
    return dropped.abs().sum(dim=(-2, -1))


def best_heads(norms: Tensor, scope: str) -> Tensor:
    """h* (B,): each sample's own, or one for the whole batch from the norms summed over it."""
    if scope == "batch":
        # float32 sums of equal numbers may differ: PyTorch adds the last columns in another order than the others.
        return norms.sum(dim=0, dtype=torch.float64).argmax().repeat(norms.shape[0])
    return norms.argmax(dim=1)


def attention(call: Call) -> ResidualAttention:
    """`rsattn.residual_attention` with an explicit dropout seed."""
    probs = probabilities(call.query, call.key, call.attn_mask, call.scale)
    dropped = probs
    if call.seed is not None:
        keep = philox.keep_mask(call.seed, call.dropout_p, (*probs.shape,))
        dropped = probs.masked_fill(~keep, 0.0) * philox.keep_scale(call.dropout_p)
    output = dropped.to(call.value.dtype) @ call.value
    with torch.no_grad():
        norms = head_norms(probs, dropped, call.norm).float()
        best_head = best_heads(norms, call.scope)
        received = probs.sum(dim=-2).float() if call.return_received else None
    return ResidualAttention(output.transpose(1, 2).contiguous().transpose(1, 2), norms, best_head, received)


def attention_received(call: Call, rows: int = ROWS) -> Tensor:
    """sum_i P_ij (B, H, M) float32, P before dropout; computed a block of `rows` queries at a time, without V."""
    query, key, mask = call.query, call.key, call.attn_mask
    dtype = torch.promote_types(query.dtype, torch.float32)
    masks = None
    if torch.compiler.is_compiling():  # the number of blocks would fix that of the queries
        rows = query.shape[2]
    if mask is not None:
        masks = mask.expand(*mask.shape[:-2], query.shape[2], mask.shape[-1]).split(rows, dim=-2)
    with torch.no_grad():
        key = key.to(dtype)
        received = torch.zeros_like(key[..., 0])
        for block, some in enumerate(query.split(rows, dim=2)):
            probs = probabilities(some.to(dtype), key, None if masks is None else masks[block], call.scale)
            received = received + probs.sum(dim=-2)
    return received.float()


def add_best_head(
    projected: Tensor, output: Tensor, best_head: Tensor, merge: str, gamma: Tensor | None = None
) -> Tensor:
    """projected (B, N, D) plus the best head's O (B, N, E), tiled along D or in the head's own channels.

    With a gate, gamma (D,), the product and the sum are computed in float32 at least and rounded once.
    """
    _, heads, length, width = output.shape
    dtype = projected.dtype if gamma is None else torch.promote_types(projected.dtype, torch.float32)
    # Unlike indexing, gather refuses a negative head.
    best = output.gather(1, best_head[:, None, None, None].expand(-1, 1, length, width)).squeeze(1).to(dtype)
    added = best.repeat(1, 1, projected.shape[2] // width)
    if merge == "slot":
        own_channels = torch.nn.functional.one_hot(best_head, heads).bool()[:, None, :, None]
        own_channels = own_channels.expand(-1, -1, -1, width).flatten(2)
        added = torch.where(own_channels, added, 0.0)
        gamma = gamma if gamma is None else torch.where(own_channels, gamma.to(dtype), 0.0)
    if gamma is None:
        return projected + added
    return (projected.to(dtype) + gamma.to(dtype) * added).to(projected.dtype)
