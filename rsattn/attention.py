"""`residual_attention` and its packed form: checks, autocast, choice of backend, dropout seed; then `rsattn.ops`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops, philox
from .backends.base import Backend
from .backends.dispatch import choose
from .call import Call
from .contract import Norm, ResidualAttention, Scope, check_packed


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
    return_received: bool = False,
) -> ResidualAttention:
    """Compute softmax attention, a norm of each head's probabilities, and the best head of each sample.

    For each head h of H::

        P_h = softmax(scale * Q_h K_h^T + mask)     (N, M), rows sum to 1
        O_h = dropout(P_h) V_h                      (N, E)
        s_h = a norm of P_h                         one number
        h*  = argmax_h s_h                          the lowest index among equals

    Source: Sharma & Verma, arXiv 2306.01594. The paper's norm is "entrywise", which ties without dropout; the default
    is "induced". `rsattn.add_best_head` adds the best head's output O_h* to the projected output;
    `rsattn.ResidualSelfAttention` does both. The first six arguments mean what they mean in
    `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        query: (B, H, N, E) float16, bfloat16, float32 or (reference only) float64; any strides. Under autocast it is
            cast to autocast's dtype, unless it is float64. Differentiable.
        key: (B, H, M, E), dtype and device of `query`. Differentiable.
        value: (B, H, M, E), dtype and device of `query`. Differentiable.
        attn_mask: broadcastable to (B, H, N, M). Bool: True takes part. Floating point: added to the scaled scores;
            differentiable, with a gradient summed in float32 and in a fixed order to the mask's own shape (pass the
            mask that you learn, not an expanded copy). The batch axis may also have a length that divides B: it
            repeats, and sample b uses entry b % length. A query whose keys are all masked gets output 0.
        dropout_p: probability of dropping an attention probability, in evaluation too: pass 0 there. The seed comes
            from the device's default generator, which `torch.manual_seed` sets.
        scale: factor of the scores; None for 1 / sqrt(E).
        norm: "induced": max_j sum_i P_ij, before dropout. "confidence": mean_i max_j P_ij, before dropout.
            "entrywise": the sum of all probabilities after dropout; without dropout all heads tie and head 0 wins,
            unless a mask differs between heads.
        scope: "sample": each sample has its own best head. "batch": one head for all samples, by the sum of the norms.
        backend: name of a backend (see `rsattn.backends`), or None for the fastest one that supports the call.
        return_received: whether to return the attention that each key receives, `ResidualAttention.received`. The
            induced norm needs these sums anyway. With another norm, long sequences on a GPU take a second pass over
            the scores.

    Returns:
        ResidualAttention: `output` (B, H, N, E) in the inputs' dtype, differentiable; `norms` (B, H) float32,
        `best_head` (B,) int64 and, if asked for, `received` (B, H, M) float32, without gradient. Only the reference
        has second derivatives.

    Raises:
        ValueError: a shape, device, probability or choice is not allowed; the message says what was expected.
        TypeError: a dtype is not allowed, an input is not a tensor, or `scale` requires a gradient.
        BackendError: the named backend, or every backend, refuses this call; the message lists the reasons.

    Examples:
        In head 0 every query attends to all keys alike; in head 1 every query attends to key 0. The induced norm is
        what the most attended key receives, so head 1 is best:

        >>> import torch
        >>> import rsattn
        >>> query, key = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8)
        >>> query[:, 1, :, 0] = key[:, 1, 0, 0] = 10.0
        >>> value = torch.randn(1, 2, 4, 8)
        >>> attention = rsattn.residual_attention(query, key, value)
        >>> attention.norms.round()
        tensor([[1., 4.]])
        >>> attention.best_head
        tensor([1])

        The output is that of PyTorch's own attention:

        >>> expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        >>> torch.allclose(attention.output, expected, atol=1e-5)
        True

        A mask hides key 0, for instance a padding token. Nothing sets head 1 apart now, and head 0 wins the tie:

        >>> keep = torch.tensor([False, True, True, True])
        >>> rsattn.residual_attention(query, key, value, keep).best_head
        tensor([0])
    """
    call = Call((query, key, value), attn_mask, None, dropout_p, scale, norm, scope, return_received)
    return attend(call, backend).result


def residual_attention_qkvpacked(
    qkv: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *,
    scale: float | None = None,
    norm: Norm = "induced",
    scope: Scope = "sample",
    backend: str | None = None,
    return_received: bool = False,
) -> ResidualAttention:
    """Compute `residual_attention` of query, key and value packed in one tensor, as flash-attention packs them.

    The backward pass writes one (B, N, 3, H, E) gradient in the layout that the projection reads: nothing is stacked
    or copied. Results and gradients are those of `residual_attention`, bit for bit.

    Args:
        qkv: (B, N, 3, H, E): query, key, value, such as `projection(x).view(B, N, 3, H, E)`. Dtypes as in
            `residual_attention`. Differentiable.
        attn_mask: as in `residual_attention`; broadcastable to (B, H, N, N).
        dropout_p: as in `residual_attention`.
        scale: as in `residual_attention`.
        norm: as in `residual_attention`.
        scope: as in `residual_attention`.
        backend: as in `residual_attention`.
        return_received: as in `residual_attention`.

    Returns:
        ResidualAttention: as from `residual_attention`; `output` is (B, H, N, E).

    Raises:
        ValueError: a shape, device, probability or choice is not allowed; the message says what was expected.
        TypeError: a dtype is not allowed, `qkv` is not a tensor, or `scale` requires a gradient.
        BackendError: the named backend, or every backend, refuses this call; the message lists the reasons.

    Example:
        >>> import torch
        >>> import rsattn
        >>> projection = torch.nn.Linear(24, 3 * 24)
        >>> qkv = projection(torch.randn(2, 5, 24)).view(2, 5, 3, 4, 6)  # 5 tokens, 4 heads of 6 channels
        >>> packed = rsattn.residual_attention_qkvpacked(qkv)
        >>> packed.output.shape
        torch.Size([2, 4, 5, 6])
        >>> query, key, value = qkv.permute(2, 0, 3, 1, 4)
        >>> torch.equal(packed.output, rsattn.residual_attention(query, key, value).output)
        True
    """
    check_packed(qkv)
    return attend(Call((qkv,), attn_mask, None, dropout_p, scale, norm, scope, return_received), backend).result


class Attended(NamedTuple):
    """What `attend` returns.

    Attributes:
        result: what the caller of `residual_attention` sees.
        handle: stands for the best head's output in the autograd graph (see `rsattn.ops`); None unless it was asked
            for and a gradient is recorded.
        backend: the backend that computed it.
    """

    result: ResidualAttention
    handle: Tensor | None
    backend: Backend


def attend(call: Call, backend: str | None, linked: bool = False) -> Attended:
    """Check a call, complete it (autocast's dtype, the mask's axes, the dropout seed) and compute it.

    Args:
        linked: whether `rsattn.epilogue.join` will add the best head; it uses the handle.

    Raises:
        ValueError, TypeError, rsattn.BackendError: as `residual_attention`.
    """
    chosen, autocast = prepare(call, backend)
    if call.dropout_p > 0.0:
        call.seed = philox.draw_seed(call.query.device)
    if chosen.differentiable:
        with float32_scores(call, autocast):
            output, norms, best_head, _, received = chosen.forward(call)
        return Attended(ResidualAttention(output, norms, best_head, received), None, chosen)
    attention, handle = ops.attention(call, chosen, linked)
    return Attended(attention, handle, chosen)


def prepare(call: Call, backend: str | None) -> tuple[Backend, bool]:
    """Cast the inputs as autocast does, floating-point ones below float64; check the call; give its mask four axes.

    Returns:
        The backend for the call, and whether autocast is on for the call's device.
    """
    # "meta" has no autocast. (torch.amp.is_autocast_available says so, but PyTorch 2.11 cannot compile it.)
    autocast = call.device_type != "meta" and torch.is_autocast_enabled(call.device_type)
    if autocast and call.query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(call.device_type)
        call.take(tuple([tensor.to(dtype) if _is_cast(tensor) else tensor for tensor in call.inputs]))
    call.check()
    chosen = choose(call, backend)
    call.expand_to_four_dimensions()
    return chosen, autocast


def _is_cast(tensor: Tensor) -> bool:
    """Whether autocast casts the tensor, as it does for torch.nn.functional.scaled_dot_product_attention."""
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def float32_scores(call: Call, autocast: bool) -> AbstractContextManager[Any]:
    """A context in which autocast rounds no scores of the reference, as in the kernels."""
    return torch.autocast(call.device_type, enabled=False) if autocast else nullcontext()
