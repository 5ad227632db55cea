"""`attention_received`: the column sums of each head's probabilities alone, without the output."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops
from .attention import float32_scores, prepare
from .call import Call


def attention_received(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute how much attention each key receives from all queries together: sum_i P_ij, without the N x N matrix.

    Token pruning, cache eviction and saliency maps rank tokens by it. Over the keys of a head, its maximum is the
    induced norm and its sum the number of queries that see a key. The output is not computed; where it is wanted too,
    `rsattn.residual_attention(..., return_received=True)` returns the same sums, up to rounding.

    Args:
        query: (B, H, N, E), as in `rsattn.residual_attention`.
        key: (B, H, M, E), dtype and device of `query`.
        attn_mask: as in `rsattn.residual_attention`. A query whose keys are all masked adds 0.
        scale: as in `rsattn.residual_attention`.
        backend: as in `rsattn.residual_attention`.

    Returns:
        (B, H, M) float32, summed in a fixed order: the same bits on every run. No gradient.

    Raises:
        ValueError: a shape or device is not allowed; the message says what was expected.
        TypeError: a dtype is not allowed, an input is not a tensor, or `scale` requires a gradient.
        BackendError: the named backend, or every backend, refuses this call; the message lists the reasons.

    Example:
        Every query attends to key 0:

        >>> import torch
        >>> import rsattn
        >>> query, key = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8)
        >>> query[..., 0] = key[:, :, 0, 0] = 10.0
        >>> rsattn.attention_received(query, key).round()
        tensor([[[4., 0., 0., 0.]]])

        Keep the half of the tokens that receive most, over all heads:

        >>> query, key = torch.randn(2, 1, 4, 10, 8)
        >>> rsattn.attention_received(query, key).sum(dim=1).topk(5).indices.shape
        torch.Size([1, 5])
    """
    with torch.no_grad():
        call = Call((query, key, key), attn_mask, scale=scale)
        chosen, autocast = prepare(call, backend)
        if not chosen.differentiable:
            return ops.attention_received(call, chosen)
        with float32_scores(call, autocast):
            return chosen.received(call)
