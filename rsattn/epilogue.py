"""`add_best_head`: the residual joins the projected output, Y = projected + merge(O_h*)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch, reference
from .contract import Merge, ResidualAttention, check_merge


def add_best_head(projected: Tensor, attention: ResidualAttention, *, merge: Merge = "tile") -> Tensor:
    """Add the best head's output to the projected output.

    Args:
        projected: (B, N, D), what the output projection and its dropout made of `attention.output`; not
            modified. Differentiable.
        attention: what `rsattn.residual_attention` returned; `attention.output` is differentiable. Its gradient
            is built as a (B, H, N, E) tensor here; `rsattn.ResidualSelfAttention` avoids that.
        merge: "tile" repeats the best head's E channels D/E times along the channels; "slot" adds it to the
            best head's own E channels (needs D = H * E).

    Returns:
        (B, N, D) in projected's dtype.

    Raises:
        ValueError: shapes or a merge that do not fit.
    """
    check_merge(projected, attention.output, merge)
    chosen = dispatch.choose(attention.output, None, None)
    return join(projected, attention, None, merge, chosen)


def join(projected: Tensor, attention: ResidualAttention, handle: Tensor | None, merge: str, backend: str) -> Tensor:
    """`add_best_head` for a caller that owns `projected`: written in place when no gradient is recorded."""
    output, _, best_head = attention
    if backend == "reference" or projected.dtype not in dispatch.BACKENDS[backend].limits.dtypes:
        return reference.add_best_head(projected, output, best_head, merge)
    recording = torch.is_grad_enabled() and (projected.requires_grad or output.requires_grad)
    if handle is not None and not recording:
        torch.ops.rsattn.add_best_head_(projected, output, best_head, merge, backend)
        return projected
    return torch.ops.rsattn.add_best_head(projected, output, best_head, handle, merge, backend)
