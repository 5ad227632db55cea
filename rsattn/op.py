"""The operators PyTorch sees: schema, fake, autograd. One boundary per hot path, whichever kernels run.

`rsattn::attention` returns one tensor more than the mathematics needs: `handle` (B, N, E), which holds no data
(one zero, expanded) and stands for the best head's output in the autograd graph. `rsattn::add_best_head` takes
it as an input, so the residual's gradient comes back to the attention as (B, N, E), beside the projection's
(B, H, N, E), and the backward kernel reads both at once. Without it autograd would build a (B, H, N, E) tensor
that is zero in all heads but one, and add it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .contract import heads_buffer
from .dispatch import backward_kernels, kernels_of

_TAGS = (torch.Tag.pt2_compliant_tag,)
SECOND_DERIVATIVE = "rsattn's kernels have no second derivative; use backend='reference', which is differentiable twice"

torch.library.define(
    "rsattn::attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? seed, float dropout_p, float scale, "
    "str norm, str scope, str backend) "
    "-> (Tensor output, Tensor norms, Tensor best_head, Tensor logsumexp, Tensor handle)",
    tags=_TAGS,
)
torch.library.define(
    "rsattn::attention_backward",
    "(Tensor grad_output, Tensor? grad_best, Tensor query, Tensor key, Tensor value, Tensor? attn_mask, "
    "Tensor? seed, Tensor output, Tensor best_head, Tensor logsumexp, float dropout_p, float scale, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
torch.library.define(
    "rsattn::add_best_head",
    "(Tensor projected, Tensor output, Tensor best_head, Tensor? handle, str merge, str backend) -> Tensor",
    tags=_TAGS,
)
torch.library.define(
    "rsattn::add_best_head_",
    "(Tensor(a!) projected, Tensor output, Tensor best_head, str merge, str backend) -> ()",
    tags=_TAGS,
)
torch.library.define(
    "rsattn::best_head_gradient",
    "(Tensor grad, Tensor best_head, SymInt heads, SymInt width, str merge, str backend) -> Tensor",
    tags=_TAGS,
)


def _handle(output: Tensor) -> Tensor:
    batch, _, length, width = output.shape
    return output.new_zeros(()).expand(batch, length, width)


@torch.library.impl("rsattn::attention", "default")
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
    norm: str,
    scope: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    result = kernels_of(backend).forward(query, key, value, attn_mask, seed, dropout_p, scale, norm, scope)
    return (*result, _handle(result.output))


@torch.library.register_fake("rsattn::attention")
def _attention_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
    norm: str,
    scope: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, length, _ = query.shape
    output = heads_buffer(query)
    return (
        output,
        query.new_empty((batch, heads), dtype=torch.float32),
        query.new_empty((batch,), dtype=torch.int64),
        query.new_empty((batch, heads, length), dtype=torch.float32),
        _handle(output),
    )


def _attention_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, attn_mask, seed, ctx.dropout_p, ctx.scale, _, _, ctx.backend = inputs
    attended, norms, best_head, logsumexp, _ = output
    ctx.save_for_backward(query, key, value, attn_mask, seed, attended, best_head, logsumexp)
    ctx.mark_non_differentiable(norms, best_head, logsumexp)
    ctx.set_materialize_grads(False)


def _attention_gradient(ctx: Any, grad_output: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
    grad_best = others[-1]
    query, key, value, attn_mask, seed, output, best_head, logsumexp = ctx.saved_tensors
    if grad_output is None and grad_best is None:
        return (None,) * 10
    if grad_output is None:
        grad_output = torch.zeros_like(output)
    grads = torch.ops.rsattn.attention_backward(
        grad_output,
        grad_best,
        query,
        key,
        value,
        attn_mask,
        seed,
        output,
        best_head,
        logsumexp,
        ctx.dropout_p,
        ctx.scale,
        ctx.backend,
    )
    return (*grads, None, None, None, None, None, None, None)


torch.library.register_autograd("rsattn::attention", _attention_gradient, setup_context=_attention_context)


@torch.library.impl("rsattn::attention_backward", "default")
def _attention_backward(
    grad_output: Tensor,
    grad_best: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    seed: Tensor | None,
    output: Tensor,
    best_head: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return backward_kernels(backend, query, key).backward(
        grad_output,
        grad_best,
        query,
        key,
        value,
        attn_mask,
        seed,
        output,
        best_head,
        logsumexp,
        dropout_p,
        scale,
    )


@torch.library.register_fake("rsattn::attention_backward")
def _attention_backward_fake(
    grad_output: Tensor, grad_best: Tensor | None, query: Tensor, key: Tensor, value: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return heads_buffer(query), heads_buffer(key), heads_buffer(value)


@torch.library.impl("rsattn::add_best_head", "default")
def _add_best_head(
    projected: Tensor, output: Tensor, best_head: Tensor, handle: Tensor | None, merge: str, backend: str
) -> Tensor:
    out = torch.empty_like(projected, memory_format=torch.contiguous_format)
    kernels_of(backend).add_best_head(projected, output, best_head, merge, out)
    return out


@torch.library.register_fake("rsattn::add_best_head")
def _add_best_head_fake(
    projected: Tensor, output: Tensor, best_head: Tensor, handle: Tensor | None, merge: str, backend: str
) -> Tensor:
    return torch.empty_like(projected, memory_format=torch.contiguous_format)


def _add_best_head_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, attended, best_head, handle, ctx.merge, ctx.backend = inputs
    _, ctx.heads, _, ctx.width = attended.shape
    ctx.has_handle = handle is not None
    ctx.dtype = attended.dtype
    ctx.save_for_backward(best_head)


def _add_best_head_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (best_head,) = ctx.saved_tensors
    if ctx.merge == "tile" and grad.shape[2] == ctx.width:
        grad_best = grad
    else:
        grad_best = torch.ops.rsattn.best_head_gradient(grad, best_head, ctx.heads, ctx.width, ctx.merge, ctx.backend)
    grad_best = grad_best.to(ctx.dtype)
    if ctx.has_handle:
        return grad, None, None, grad_best, None, None
    heads = torch.arange(ctx.heads, device=grad.device)
    chosen = (heads == best_head[:, None])[:, :, None, None]
    return grad, torch.where(chosen, grad_best[:, None], 0.0), None, None, None, None


torch.library.register_autograd("rsattn::add_best_head", _add_best_head_gradient, setup_context=_add_best_head_context)


@torch.library.impl("rsattn::add_best_head_", "default")
def _add_best_head_in_place(projected: Tensor, output: Tensor, best_head: Tensor, merge: str, backend: str) -> None:
    kernels_of(backend).add_best_head(projected, output, best_head, merge, projected)


@torch.library.register_fake("rsattn::add_best_head_")
def _add_best_head_in_place_fake(
    projected: Tensor, output: Tensor, best_head: Tensor, merge: str, backend: str
) -> None:
    return None


@torch.library.impl("rsattn::best_head_gradient", "default")
def _best_head_gradient(grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str, backend: str) -> Tensor:
    return kernels_of(backend).best_head_gradient(grad, best_head, heads, width, merge)


@torch.library.register_fake("rsattn::best_head_gradient")
def _best_head_gradient_fake(
    grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str, backend: str
) -> Tensor:
    return grad.new_empty((grad.shape[0], grad.shape[1], width))


def _refuse_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError(SECOND_DERIVATIVE)


def _nothing_saved(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    return None


for _name in ("rsattn::attention_backward", "rsattn::best_head_gradient"):
    torch.library.register_autograd(_name, _refuse_second_derivative, setup_context=_nothing_saved)
