"""`attention_received`: the column sums of each head's probabilities, computed a block of rows at a time."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from . import reference
from .call import default_scale

# At N = 197 two blocks; at N = 4096 a block is a thirty-second of one N x N matrix.
ROWS = 128


def attention_received(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, scale: float | None, rows: int = ROWS
) -> Tensor:
    """How much attention each key receives from all queries together: sum_i P_ij, P before dropout.

    Over the keys of a head, the maximum is its induced norm and the sum is the number of queries that see a key.

    Args:
        query: (B, H, N, E), any floating dtype and strides.
        key: (B, H, M, E), dtype and device of `query`.
        attn_mask: broadcastable to (B, H, N, M), as in `rsattn.residual_attention`: bool, True takes part, or
            floating, added to the scaled scores. A query whose keys are all masked adds 0.
        scale: factor of the scores; None for 1 / sqrt(E).
        rows: number of queries at a time; memory grows with B * H * rows * M.

    Returns:
        (B, H, M) float32, or float64 for float64 inputs; computed in that dtype, without gradient.

    Raises:
        RuntimeError: `rows` is less than 1, or shapes that do not fit (from PyTorch).
    """
    kind = query.device.type
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    scale = default_scale(query) if scale is None else scale
    dtype = torch.promote_types(query.dtype, torch.float32)
    masks = None if attn_mask is None else attn_mask.expand(batch, heads, queries, keys).split(rows, dim=2)
    # Autocast would round the scores, which the kernels keep in float32.
    exact = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with torch.no_grad(), exact:
        key = key.to(dtype)
        received = key.new_zeros(batch, heads, keys)
        for block, some in enumerate(query.split(rows, dim=2)):
            mask = None if masks is None else masks[block]
            received += reference.probabilities(some.to(dtype), key, mask, scale).sum(dim=-2)
    return received
