"""What the window attention of the Swin family shares, in whatever library.

A window is a sample: it has norms and a best head of its own. The windows of an image follow each other in the batch,
so a mask with one entry per window repeats along the batch and is never expanded to it.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

WHY_NOT_FRESH = "a newly initialized attention would lose this one's position bias"

# The largest factor of the cosines in Swin v2, as a logarithm.
_LARGEST_LOGIT_SCALE = math.log(100.0)


def position_bias(table: Tensor, index: Tensor) -> Tensor:
    """The bias of each pair of tokens, (1, H, N, N).

    Args:
        table: (distances, H).
        index: (N, N), the row in `table` of each pair.
    """
    return table[index].permute(2, 0, 1).contiguous().unsqueeze(0)


def continuous_position_bias(network: nn.Module, coordinates: Tensor, index: Tensor) -> Tensor:
    """`position_bias` of Swin v2: a network computes the table from `coordinates` (1, ..., 2), one per distance."""
    return position_bias(16.0 * network(coordinates).sigmoid().flatten(0, -2), index)


def window_mask(bias: Tensor, shift_mask: Tensor | None) -> Tensor:
    """What is added to the scores: (1, H, N, N), or (windows, H, N, N) where the windows are shifted.

    Args:
        bias: (1, H, N, N).
        shift_mask: (windows, N, N), very negative between tokens that a shift brought together from opposite edges.
    """
    return bias if shift_mask is None else bias + shift_mask.unsqueeze(1)


def for_cosines(query: Tensor, key: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Q and K of Swin v2, for `scale=1.0`: their scores are cosines times a learned factor of each head.

    Args:
        query, key: (B, H, N, E).
        logit_scale: (H, 1, 1), the logarithm of the factors.
    """
    factor = logit_scale.clamp(max=_LARGEST_LOGIT_SCALE).exp()
    return functional.normalize(query, dim=-1) * factor, functional.normalize(key, dim=-1)
