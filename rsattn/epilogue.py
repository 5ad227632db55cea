"""`add_best_head`: the residual joins the projected output, Y = projected + gamma * merge(O_h*)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from . import ops, reference
from .attention import Attended
from .backends.base import Backend
from .backends.dispatch import choose
from .call import Call, has_tangent
from .contract import Merge, ResidualAttention, check_best_head, check_gamma, check_merge


def add_best_head(
    projected: Tensor, attention: ResidualAttention, *, merge: Merge = "tile", gamma: Tensor | None = None
) -> Tensor:
    """Add the best head's output to the projected output.

    Args:
        projected: (B, N, D), what the output projection and its dropout made of `attention.output`; not
            modified. Differentiable.
        attention: what `rsattn.residual_attention` returned; `attention.output` is differentiable. Its gradient
            is built as a (B, H, N, E) tensor here; `rsattn.ResidualSelfAttention` avoids that.
        merge: "tile" repeats the best head's E channels D/E times along the channels; "slot" adds it to the
            best head's own E channels (needs D = H * E).
        gamma: (D,), any floating dtype, or None: a gate that the best head is multiplied by, channel by channel,
            before it is added. Differentiable; its gradient is the same bits on every run. Products and sums are
            float32 at least, and rounded once.

    Returns:
        (B, N, D) in projected's dtype.

    Raises:
        ValueError, TypeError: shapes, a merge, a best_head or a gamma that do not fit.
        RuntimeError, IndexError: on a CPU, a best_head that is none of the heads. On a GPU its sample becomes NaN.
    """
    output, best_head = attention.output, attention.best_head
    check_merge(projected, output, merge)
    check_best_head(best_head, output)
    if gamma is not None:
        check_gamma(gamma, projected)
    backend = choose(Call((output, output, output), scale=1.0), None)
    if not _in_one_pass(backend, projected, output, gamma):
        return reference.add_best_head(projected, output, best_head, merge, gamma)
    return ops.add_best_head(projected, output, best_head, None, gamma, merge, backend)


def run_projection(joined: Tensor, *layers: nn.Module) -> Tensor:
    """Run the layers of an output projection, one after the other, for `join`.

    Args:
        joined: (B, N, H*E), the outputs of all heads.
        layers: such as a linear layer and its dropout.

    Returns:
        (B, N, D). Where no gradient is recorded, a tensor that nobody else can see: a copy, if a hook or a layer of an
        unknown class may have kept what the last layer returned.
    """
    unshared = False
    for layer in layers:
        joined = layer(joined)
        unshared = _returns_unshared(layer, unshared)
    if unshared or (joined.requires_grad and torch.is_grad_enabled()):
        return joined
    return joined.clone()


def _returns_unshared(layer: nn.Module, given: bool) -> bool:
    """Whether nobody else can see what the layer returned; `given`: whether nobody else can see what it was given."""
    if layer._forward_hooks or hooks._global_forward_hooks or "forward" in vars(layer):
        return False
    kind = type(layer)
    if kind.forward is nn.Linear.forward:
        return True
    given = given and not (layer._forward_pre_hooks or hooks._global_forward_pre_hooks)
    if isinstance(layer, nn.Sequential) and kind.forward is nn.Sequential.forward:
        for inner in layer:
            given = _returns_unshared(inner, given)
        return given
    return given and kind in (nn.Dropout, nn.Identity)


def join(projected: Tensor, attended: Attended, merge: str, gamma: Tensor | None) -> Tensor:
    """`add_best_head` that writes into `projected` where no gradient is recorded.

    `projected` must then be a tensor that nobody else can see, as `run_projection` returns it.
    """
    (output, _, best_head), handle, backend = attended
    if not _in_one_pass(backend, projected, output, gamma):
        return reference.add_best_head(projected, output, best_head, merge, gamma)
    if ops.wants_gradient(projected, output, gamma):
        return ops.add_best_head(projected, output, best_head, handle, gamma, merge, backend)
    return ops.add_best_head_(projected, output, best_head, gamma, merge, backend)


def _in_one_pass(backend: Backend, projected: Tensor, output: Tensor, gamma: Tensor | None) -> bool:
    """Whether the backend has a kernel for it."""
    dtypes = backend.limits.dtypes
    fits = projected.dtype in dtypes and (gamma is None or gamma.dtype in dtypes)
    return fits and not backend.differentiable and not has_tangent(projected, output, gamma)
