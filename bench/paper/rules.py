"""Other rules for choosing the head: three that discount attention sinks.

The induced norm ranks a head by the key that receives the most attention. In a pretrained ViT that key is mostly the
class token, an attention sink: its value vector is shorter than the median patch's (best_head.py measures it).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rsattn.call import Call
from rsattn.received import attention_received

Rule = Literal["patches", "value-weighted", "centered"]
"""patches: the induced norm over patch tokens only, max_j sum_i P_ij without the prefix tokens among the keys j.
value-weighted: attention weighted by the length of the value, max_j (sum_i P_ij) * ||v_j|| (Kobayashi et al. 2020,
"Attention is Not Only a Weight", arXiv 2004.10102).
centered: how much the head's output differs from token to token, the Frobenius norm of O_h - mean_i O_h."""


def scores(rule: Rule, call: Call, output: Tensor, prefix_tokens: int) -> Tensor:
    """(B, H): a score per head, without a gradient; the head with the largest is chosen.

    Args:
        call: P is computed from its query and key, in float32 at least and before dropout.
        output: (B, H, N, E), what the call returned.
        prefix_tokens: number of tokens before the patches, such as the class token.
    """
    if rule == "centered":
        return centered(output)
    received = attention_received(call.query, call.key, call.attn_mask, scale=call.scale)
    return over_patches(received, prefix_tokens) if rule == "patches" else value_weighted(received, lengths(call.value))


def over_patches(received: Tensor, prefix_tokens: int) -> Tensor:
    """(B, H) from the attention that each key receives, (B, H, M)."""
    return received[..., prefix_tokens:].amax(-1)


def value_weighted(received: Tensor, value_lengths: Tensor) -> Tensor:
    """(B, H) from the attention that each key receives and the length of its value, (B, H, M) each."""
    return (received * value_lengths).amax(-1)


def centered(output: Tensor) -> Tensor:
    """(B, H) from the heads' outputs (B, H, N, E)."""
    output = _detached(output)
    return lengths((output - output.mean(2, keepdim=True)).flatten(2))


def lengths(vectors: Tensor) -> Tensor:
    """(...) Euclidean lengths of (..., E), without a gradient."""
    return torch.linalg.vector_norm(_detached(vectors), dim=-1)


def _detached(tensor: Tensor) -> Tensor:
    """In float32 at least: in autocast's bfloat16, close scores would tie."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
