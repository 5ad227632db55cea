"""`add_best_head`: the residual joins the projected output, Y = projected + merge(O_h*)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops, reference
from .attention import Attended
from .backends.dispatch import choose
from .call import Call
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
    output, best_head = attention.output, attention.best_head
    check_merge(projected, output, merge)
    backend = choose(Call((output, output, output), scale=1.0), None)
    if backend.differentiable or projected.dtype not in backend.limits.dtypes:
        return reference.add_best_head(projected, output, best_head, merge)
    return ops.add_best_head(projected, output, best_head, None, merge, backend)


def join(projected: Tensor, attended: Attended, merge: str) -> Tensor:
    """`add_best_head` for a caller that owns `projected`: written in place when no gradient is recorded."""
    (output, _, best_head), handle, backend = attended
    if backend.differentiable or projected.dtype not in backend.limits.dtypes:
        return reference.add_best_head(projected, output, best_head, merge)
    if torch.is_grad_enabled() and (projected.requires_grad or output.requires_grad):
        return ops.add_best_head(projected, output, best_head, handle, merge, backend)
    return ops.add_best_head_(projected, output, best_head, merge, backend)
