"""`add_best_head`: adds the residual to the projected output, Y = projected + gamma * merge(O_h*)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from . import ops, reference
from .attention import Attended
from .backends.base import Backend
from .backends.dispatch import choose
from .call import Call, has_tangent
from .contract import Merge, ResidualAttention, brief, check_best_head, check_gamma, check_merge, check_tensor


def add_best_head(
    projected: Tensor, attention: ResidualAttention, *, merge: Merge = "tile", gamma: Tensor | None = None
) -> Tensor:
    """Add the best head's output to the projected output: Y = projected + gamma * merge(O_h*).

    The residual of Sharma & Verma, arXiv 2306.01594; the gate `gamma` is LayerScale's (arXiv 2103.17239).

    Args:
        projected: (B, N, D), the output of the projection and its dropout; not modified. Differentiable.
        attention: result of `rsattn.residual_attention`; `attention.output` is differentiable. Its gradient is built
            as a (B, H, N, E) tensor here; `rsattn.ResidualSelfAttention` avoids that.
        merge: "tile" repeats the best head's E channels D / E times (D must be a multiple of E). "slot" adds them to
            the best head's own E channels only (D must be H * E).
        gamma: (D,) of any floating dtype: the gate, which multiplies each channel of the best head before it is
            added. None for no gate. Differentiable; its gradient is summed in a fixed order, so it has the same bits
            on every run. Gated sums are computed in float32 at least and rounded once.

    Returns:
        (B, N, D) in the dtype of `projected`. It has second derivatives in float64 only;
        `rsattn.ResidualSelfAttention(backend="reference")` has them in every dtype.

    Raises:
        ValueError: shapes, devices, `merge`, `best_head` or `gamma` do not fit.
        TypeError: `projected` or `gamma` is not a floating-point tensor, or `attention` is something else.
        RuntimeError: on a CPU, an entry of `best_head` is not the index of a head. On a GPU that sample becomes NaN.

    Example:
        >>> import torch
        >>> import rsattn
        >>> query, key, value = torch.randn(3, 2, 4, 5, 6)  # 2 samples, 4 heads, 5 tokens, 6 channels
        >>> attention = rsattn.residual_attention(query, key, value)
        >>> projection = torch.nn.Linear(24, 24)
        >>> projected = projection(attention.output.transpose(1, 2).flatten(2))
        >>> y = rsattn.add_best_head(projected, attention)
        >>> best = attention.output[torch.arange(2), attention.best_head]  # (2, 5, 6)
        >>> torch.allclose(y, projected + best.repeat(1, 1, 4))
        True
        >>> closed = torch.zeros(24, requires_grad=True)  # a gate that starts at zero
        >>> torch.equal(rsattn.add_best_head(projected, attention, gamma=closed), projected)
        True
    """
    check_tensor("projected", projected)
    if not isinstance(attention, ResidualAttention):
        raise TypeError(f"attention must be the result of rsattn.residual_attention; got {brief(attention)}")
    output, best_head = attention.output, attention.best_head
    check_merge(projected, output, merge)
    check_best_head(best_head, output)
    if gamma is not None:
        check_gamma(gamma, projected)
    backend = choose(Call((output, output, output), scale=1.0), None)
    if not _in_one_pass(backend, projected, output, gamma):
        return reference.add_best_head(projected, output, best_head, merge, gamma)
    # A caller's may be a slice, or one head expanded over a batch. Kernels read it without strides.
    return ops.add_best_head(projected, output, best_head.contiguous(), None, gamma, merge, backend)


def run_projection(joined: Tensor, *layers: nn.Module) -> Tensor:
    """Run the layers of an output projection, one after the other, for `join`.

    Args:
        joined: (B, N, H*E), the outputs of all heads.
        layers: such as a linear layer and its dropout.

    Returns:
        (B, N, D). Where no gradient is recorded, a tensor that no other code holds: a copy if a hook or a layer of an
        unknown class may have kept the last layer's output.
    """
    unshared = False
    for layer in layers:
        joined = layer(joined)
        unshared = _returns_unshared(layer, unshared)
    if unshared or (joined.requires_grad and torch.is_grad_enabled()):
        return joined
    return joined.clone()


def _returns_unshared(layer: nn.Module, given: bool) -> bool:
    """Whether no other code holds the layer's output; `given` says the same of its input."""
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

    `projected` must then be a tensor that no other code holds, as `run_projection` returns it.
    """
    (output, _, best_head, _), handle, backend = attended
    if not _in_one_pass(backend, projected, output, gamma):
        return reference.add_best_head(projected, output, best_head, merge, gamma)
    if ops.wants_gradient(projected, output, gamma):
        return ops.add_best_head(projected, output, best_head, handle, gamma, merge, backend)
    return ops.add_best_head_(projected, output, best_head, gamma, merge, backend)


def _in_one_pass(backend: Backend, projected: Tensor, output: Tensor, gamma: Tensor | None) -> bool:
    """Whether the backend has a kernel for these tensors."""
    dtypes = backend.limits.dtypes
    fits = projected.dtype in dtypes and (gamma is None or gamma.dtype in dtypes)
    return fits and not backend.differentiable and not has_tangent(projected, output, gamma)
