"""What PyTorch sees: autograd functions, and under them two ways to the kernels.

A call in eager mode goes straight to its backend (`Direct`). Where something traces or intercepts PyTorch
(torch.compile, torch.export, FakeTensor, a dispatch mode, a tensor subclass) it goes through the operators `rsattn::*`
(`Dispatched`), which have schemas and fakes and are opaque to all of these. Both ways share the same two
`torch.autograd.Function`s.

An attention whose best head a module adds to its projection returns one extra tensor: `handle` (B, N, E), which holds
no data (one number, expanded) and stands for the best head's output in the autograd graph.
`add_best_head` takes it as an input, so the residual's gradient comes back to the attention as (B, N, E), beside the
projection's (B, H, N, E), and the backward kernel reads both at once. Without it autograd would build a (B, H, N, E)
tensor that is zero in all heads but one, and add it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends.base import Backend
from .backends.dispatch import BACKENDS, check_backend, for_backward
from .call import Call, Forward, empty_forward, empty_gradients
from .contract import ResidualAttention, brief, check_best_head, check_gamma, check_merge

SECOND_DERIVATIVE = "rsattn's kernels have no second derivative; use backend='reference', which is differentiable twice"

_LIBRARY = torch.library.Library("rsattn", "DEF")
_SCHEMAS = (
    "attention(Tensor query, Tensor? key, Tensor? value, Tensor? attn_mask, Tensor? seed, float dropout_p, "
    "float scale, str norm, str scope, bool return_received, str backend, bool linked) "
    "-> (Tensor output, Tensor norms, Tensor best_head, Tensor statistics, Tensor received, Tensor handle)",
    "attention_backward(Tensor query, Tensor? key, Tensor? value, Tensor? attn_mask, Tensor? seed, float dropout_p, "
    "float scale, str norm, str scope, bool return_received, str backend, Tensor output, Tensor best_head, "
    "Tensor statistics, Tensor grad_output, Tensor? grad_best, bool mask_gradient) -> (Tensor, Tensor, Tensor, Tensor)",
    "attention_received(Tensor query, Tensor key, Tensor? attn_mask, float scale, str backend) -> Tensor",
    "add_best_head(Tensor projected, Tensor output, Tensor best_head, Tensor? handle, Tensor? gamma, str merge, "
    "str backend) -> Tensor",
    "add_best_head_(Tensor(a!) projected, Tensor output, Tensor best_head, Tensor? gamma, str merge, str backend) "
    "-> ()",
    "best_head_gradient(Tensor grad, Tensor best_head, SymInt heads, SymInt width, str merge, str backend) -> Tensor",
    "gate_gradients(Tensor grad, Tensor output, Tensor best_head, Tensor gamma, str merge, str backend) "
    "-> (Tensor grad_best, Tensor grad_gamma)",
)
for _schema in _SCHEMAS:
    _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def attention(call: Call, backend: Backend, linked: bool) -> tuple[ResidualAttention, Tensor | None]:
    """The result of a checked call and, if `linked`, its handle.

    Autograd records the call if it wants a gradient; otherwise there is no handle.
    """
    recorded = call.wants_gradient()
    way = _way(*call.inputs, call.attn_mask)
    if not recorded or way is Dispatched:  # the operator has its own autograd function
        (output, norms, best_head, _, received), handle = way.forward(call, backend, linked and recorded)
    else:
        output, norms, best_head, _, received, handle = _Attention.apply(way, call, backend, linked, *call.leaves())
    return ResidualAttention(output, norms, best_head, received), handle


def attention_received(call: Call, backend: Backend) -> Tensor:
    """The attention received alone of a checked call, (B, H, M)."""
    return _way(*call.inputs, call.attn_mask).received(call, backend)


def add_best_head(
    projected: Tensor,
    output: Tensor,
    best_head: Tensor,
    handle: Tensor | None,
    gamma: Tensor | None,
    merge: str,
    backend: Backend,
) -> Tensor:
    """A new (B, N, D) tensor, recorded by autograd where a gradient is wanted."""
    way = _way(projected, output, best_head, handle, gamma)
    if way is Dispatched or not wants_gradient(projected, output, gamma):
        return way.add_best_head(projected, output, best_head, handle, gamma, merge, backend)
    joined: Tensor = _AddBestHead.apply(way, merge, backend, projected, output, best_head, handle, gamma)
    return joined


def add_best_head_(
    projected: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor | None, merge: str, backend: Backend
) -> Tensor:
    """Write into `projected` and return it; it must not need a gradient."""
    _way(projected, output, best_head, gamma).add_best_head_(projected, output, best_head, gamma, merge, backend)
    return projected


def wants_gradient(projected: Tensor, output: Tensor, gamma: Tensor | None) -> bool:
    """Whether autograd has to record the sum."""
    wanted = projected.requires_grad or output.requires_grad or (gamma is not None and gamma.requires_grad)
    return wanted and torch.is_grad_enabled()


class Direct:
    """Straight to the backend."""

    @staticmethod
    def forward(call: Call, backend: Backend, linked: bool) -> tuple[Forward, Tensor | None]:
        result = backend.forward(call)
        if not linked:
            return result, None
        batch, _, length, width = result.output.shape
        # Never read, so never written: on a GPU that saves a launch.
        handle = torch.empty_strided(
            (batch, length, width), (0, 0, 0), dtype=result.output.dtype, device=result.output.device
        )
        return result, handle

    @staticmethod
    def received(call: Call, backend: Backend) -> Tensor:
        return backend.received(call)

    @staticmethod
    def backward(
        call: Call, backend: Backend, forward: Forward, grad_output: Tensor, grad_best: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The gradients of `call.inputs`, and that of the mask or None."""
        mask = call.attn_mask if call.mask_gradient else None
        if mask is not None:  # a number added to all scores of a query does not change their softmax
            call.mask_gradient = mask.shape[3] > 1
        grads = for_backward(backend, call).backward(call, forward, grad_output, grad_best)
        if mask is None:
            return (*grads.of_inputs(), None)
        if grads.mask is None:
            return (*grads.of_inputs(), torch.zeros(mask.shape, dtype=mask.dtype, device=mask.device))
        return (*grads.of_inputs(), grads.mask.to(mask.dtype))

    @staticmethod
    def add_best_head(
        projected: Tensor,
        output: Tensor,
        best_head: Tensor,
        handle: Tensor | None,
        gamma: Tensor | None,
        merge: str,
        backend: Backend,
    ) -> Tensor:
        return backend.add_best_head(projected, output, best_head, merge, gamma)

    @staticmethod
    def add_best_head_(
        projected: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor | None, merge: str, backend: Backend
    ) -> None:
        backend.add_best_head(projected, output, best_head, merge, gamma, in_place=True)

    @staticmethod
    def best_head_gradient(
        grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str, backend: Backend
    ) -> Tensor:
        return backend.best_head_gradient(grad, best_head, heads, width, merge)

    @staticmethod
    def gate_gradients(
        grad: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor, merge: str, backend: Backend
    ) -> tuple[Tensor, Tensor]:
        return backend.gate_gradients(grad, output, best_head, gamma, merge)


class Dispatched:
    """Through the operators `rsattn::*`."""

    @staticmethod
    def forward(call: Call, backend: Backend, linked: bool) -> tuple[Forward, Tensor | None]:
        *result, handle = torch.ops.rsattn.attention(*_arguments(call, backend), linked)
        forward = Forward(*result)
        return forward if call.return_received else forward._replace(received=None), handle if linked else None

    @staticmethod
    def received(call: Call, backend: Backend) -> Tensor:
        operator = torch.ops.rsattn.attention_received
        received: Tensor = operator(call.query, call.key, call.attn_mask, call.scale, backend.name)
        return received

    @staticmethod
    def backward(
        call: Call, backend: Backend, forward: Forward, grad_output: Tensor, grad_best: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        kept = forward.output, forward.best_head, forward.statistics
        *grads, grad_mask = torch.ops.rsattn.attention_backward(
            *_arguments(call, backend), *kept, grad_output, grad_best, call.mask_gradient
        )
        return (*grads[: len(call.inputs)], grad_mask if call.mask_gradient else None)

    @staticmethod
    def add_best_head(
        projected: Tensor,
        output: Tensor,
        best_head: Tensor,
        handle: Tensor | None,
        gamma: Tensor | None,
        merge: str,
        backend: Backend,
    ) -> Tensor:
        operator = torch.ops.rsattn.add_best_head
        joined: Tensor = operator(projected, output, best_head, handle, gamma, merge, backend.name)
        return joined

    @staticmethod
    def add_best_head_(
        projected: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor | None, merge: str, backend: Backend
    ) -> None:
        torch.ops.rsattn.add_best_head_(projected, output, best_head, gamma, merge, backend.name)

    @staticmethod
    def best_head_gradient(
        grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str, backend: Backend
    ) -> Tensor:
        gradient: Tensor = torch.ops.rsattn.best_head_gradient(grad, best_head, heads, width, merge, backend.name)
        return gradient

    @staticmethod
    def gate_gradients(
        grad: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor, merge: str, backend: Backend
    ) -> tuple[Tensor, Tensor]:
        operator = torch.ops.rsattn.gate_gradients
        grads: tuple[Tensor, Tensor] = operator(grad, output, best_head, gamma, merge, backend.name)
        return grads


Way = type[Direct] | type[Dispatched]


def _way(*tensors: Tensor | None) -> Way:
    """`Direct` where nothing traces or intercepts PyTorch's calls and every tensor is a plain one."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state():
        return Dispatched
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_neg()):
            return Dispatched
    return Direct


_PLAIN = (Tensor, torch.nn.Parameter)


def _way_back(way: Way, *grads: Tensor | None) -> Way:
    """A backward pass goes the way of its forward pass, unless it needs the operators.

    They raise the error for a second derivative, and run once for each gradient of a batch of gradients
    (`is_grads_batched` of torch.autograd.grad, vmap over a backward pass).
    """
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return Dispatched
    for grad in grads:
        if grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad):
            return Dispatched
    return way if _way(*grads) is Direct else Dispatched


# No backward pass reads the norms. They are not saved for it, so a caller may change them in place.
_NO_NORMS = torch.empty(0)


class _Attention(torch.autograd.Function):
    """Output, norms, best head, rows' statistics and handle of a call, with the backward kernel as their gradient."""

    @staticmethod
    def forward(ctx: Any, way: Way, call: Call, backend: Backend, linked: bool, *leaves: Tensor) -> tuple[Any, ...]:
        result, handle = way.forward(call, backend, linked)
        kept = result.output, result.best_head, result.statistics
        ctx.save_for_backward(*leaves[: len(call.inputs)], call.attn_mask, call.seed, *kept)
        ctx.learned = len(leaves) > len(call.inputs)
        ctx.choices = call.dropout_p, call.scale, call.norm, call.scope
        ctx.way, ctx.backend = way, backend
        ctx.mark_non_differentiable(*(result[1:] if call.return_received else result[1:4]))
        ctx.set_materialize_grads(False)
        return (*result, handle)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_output, grad_best = grads[0], grads[-1]
        *inputs, attn_mask, seed, output, best_head, statistics = ctx.saved_tensors
        if grad_output is None and grad_best is None:
            return (None,) * len(ctx.needs_input_grad)
        call = Call(tuple(inputs), attn_mask, seed, *ctx.choices)
        call.mask_gradient = ctx.learned
        result = Forward(output, _NO_NORMS, best_head, statistics)
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        way = _way_back(ctx.way, grad_output, grad_best)
        *of_inputs, of_mask = way.backward(call, ctx.backend, result, grad_output, grad_best)
        wanted = (*of_inputs, of_mask) if ctx.learned else of_inputs
        return (None, None, None, None, *wanted)


class _AddBestHead(torch.autograd.Function):
    """projected + gamma * merge(the best head of output), or the sum without gamma where that is None.

    The best head's gradient goes to `handle` if there is one, else to `output`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        way: Way,
        merge: str,
        backend: Backend,
        projected: Tensor,
        output: Tensor,
        best_head: Tensor,
        handle: Tensor | None,
        gamma: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(best_head, gamma, None if gamma is None else output)
        ctx.way, ctx.merge, ctx.backend = way, merge, backend
        ctx.shape, ctx.dtype = output.shape, output.dtype
        return way.add_best_head(projected, output, best_head, handle, gamma, merge, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *_, wants_output, _, wants_handle, wants_gamma = ctx.needs_input_grad
        if not (wants_output or wants_handle or wants_gamma):
            return None, None, None, grad, None, None, None, None
        best_head, gamma, output = ctx.saved_tensors
        _, heads, _, width = ctx.shape
        grad_best, grad_gamma = grad, None
        if gamma is not None:
            way = _way_back(ctx.way, grad)
            grad_best, grad_gamma = way.gate_gradients(grad, output, best_head, gamma, ctx.merge, ctx.backend)
        elif ctx.merge == "slot" or grad.shape[2] != width:
            way = _way_back(ctx.way, grad)
            grad_best = way.best_head_gradient(grad, best_head, heads, width, ctx.merge, ctx.backend)
        grad_best = grad_best.to(ctx.dtype)
        if wants_handle or not wants_output:
            return None, None, None, grad, None, None, grad_best if wants_handle else None, grad_gamma
        is_best = torch.arange(heads, device=grad.device) == best_head[:, None]
        grad_output = torch.where(is_best[:, :, None, None], grad_best[:, None], 0.0)
        return None, None, None, grad, grad_output, None, None, grad_gamma


# The operators. Their arguments are positional, in the order of their schemas.


def _arguments(call: Call, backend: Backend) -> tuple[Any, ...]:
    """A call as the operators' first arguments; a packed tensor comes first, with None as key and value."""
    inputs = (*call.inputs, None, None) if call.packed else call.inputs
    choices = (call.dropout_p, call.scale, call.norm, call.scope, call.return_received)
    return (*inputs, call.attn_mask, call.seed, *choices, backend.name)


def _parsed(arguments: tuple[Any, ...]) -> tuple[Call, Backend]:
    """The inverse of `_arguments`."""
    query, key, value, *rest, backend = arguments
    inputs = (query,) if key is None else (query, key, value)
    return Call(inputs, *rest), _backend(backend)


def _backend(name: str) -> Backend:
    check_backend(name)
    return BACKENDS[name]


def _checked(arguments: tuple[Any, ...]) -> tuple[Call, Backend]:
    """`_parsed` with all checks, since anyone may call an operator."""
    call, backend = _parsed(arguments)
    call.check()
    call.expand_to_four_dimensions()
    if call.dropout_p > 0.0 and call.seed is None:
        raise ValueError(f"dropout_p={call.dropout_p} needs a seed: (1,) int64")
    if call.seed is not None:
        _check_like("seed", call.seed, (1,), torch.int64, call.query.device)
    return call, backend


def _check_kept(call: Call, forward: Forward, grad_output: Tensor, grad_best: Tensor | None) -> None:
    """Check the results of the call's forward pass and their gradients."""
    batch, heads, length, width = size = call.query.shape
    dtype, device = call.query.dtype, call.query.device
    if forward.statistics is None:
        raise ValueError("the backward pass needs the statistics that the forward pass returned")
    _check_like("output", forward.output, size, dtype, device)
    _check_like("best_head", forward.best_head, (batch,), torch.int64, device)
    _check_like("statistics", forward.statistics, (batch, heads, 2, length), torch.float32, device)
    _check_like("the gradient of output", grad_output, size, dtype, device)
    if grad_best is not None:
        _check_like("the gradient of the best head", grad_best, (batch, length, width), dtype, device)


def _check_like(name: str, tensor: Tensor, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if tensor.shape != size or tensor.dtype != dtype or tensor.device != device:
        raise ValueError(
            f"{name} must be {tuple(size)}, {dtype}, on {device}; got {tuple(tensor.shape)}, {tensor.dtype}, on "
            f"{tensor.device}"
        )


def _attention_op(*arguments: Any) -> tuple[Tensor | None, ...]:
    call, backend = _checked(arguments[:-1])
    return _attention_results(backend.forward(call), arguments[-1])


def _attention_fake(*arguments: Any) -> tuple[Tensor | None, ...]:
    call, _ = _parsed(arguments[:-1])
    return _attention_results(empty_forward(call), arguments[-1])


def _attention_results(result: Forward, linked: bool) -> tuple[Tensor | None, ...]:
    """What the operator returns: an empty tensor where the attention received was not asked for."""
    output, *others, received = result
    return (output, *others, output.new_empty(0) if received is None else received, _handle(output, linked))


def _handle(output: Tensor, linked: bool) -> Tensor:
    """The handle an operator returns: zeros, so that all its results are the same on every run."""
    batch, _, length, width = output.shape
    return output.new_zeros(()).expand(batch, length, width) if linked else output.new_empty(0)


def _attention_autograd(*arguments: Any) -> Any:
    call, backend = _parsed(arguments[:-1])
    with torch._C._AutoDispatchBelowAutograd():
        if not call.wants_gradient():
            return torch.ops.rsattn.attention(*arguments)
        return _Attention.apply(Dispatched, call, backend, arguments[-1], *call.leaves())


def _attention_backward_op(*arguments: Any) -> tuple[Tensor | None, ...]:
    *arguments, output, best_head, statistics, grad_output, grad_best, mask_gradient = arguments  # type: ignore[assignment]
    call, backend = _checked(arguments)
    if mask_gradient and (call.attn_mask is None or not call.attn_mask.dtype.is_floating_point):
        raise ValueError(f"mask_gradient=True needs a float attn_mask; got {brief(call.attn_mask)}")
    call.mask_gradient = mask_gradient
    result = Forward(output, _NO_NORMS, best_head, statistics)
    _check_kept(call, result, grad_output, grad_best)
    result = result._replace(best_head=best_head.contiguous(), statistics=statistics.contiguous())
    *grads, grad_mask = Direct.backward(call, backend, result, grad_output, grad_best)
    return _padded_gradients(grads, None if grad_mask is None else grad_mask.view(arguments[3].shape))


def _attention_backward_fake(*arguments: Any) -> tuple[Tensor | None, ...]:
    *arguments, mask_gradient = arguments  # type: ignore[assignment]
    call = _parsed(arguments[:-5])[0]
    mask = call.attn_mask if mask_gradient else None
    grad_mask = None if mask is None else torch.empty_like(mask, memory_format=torch.contiguous_format)
    return _padded_gradients(empty_gradients(call).of_inputs(), grad_mask)


def _padded_gradients(grads: Sequence[Tensor | None], grad_mask: Tensor | None) -> tuple[Tensor | None, ...]:
    """Pad with empty tensors: an operator returns the gradients of three inputs and a mask. (vmap takes no lists.)"""
    first, *others = grads
    assert first is not None
    padding = [first.new_empty(0) for _ in range(3 - len(grads))]
    return (first, *others, *padding, first.new_empty(0) if grad_mask is None else grad_mask)


def _attention_received_op(query: Tensor, key: Tensor, attn_mask: Tensor | None, scale: float, backend: str) -> Tensor:
    call = Call((query, key, key), attn_mask, scale=scale)
    call.check()
    call.expand_to_four_dimensions()
    return _backend(backend).received(call)


def _attention_received_fake(query: Tensor, key: Tensor, *others: Any) -> Tensor:
    return key.new_empty(key.shape[:3], dtype=torch.float32)


def _add_best_head_op(
    projected: Tensor,
    output: Tensor,
    best_head: Tensor,
    handle: Tensor | None,
    gamma: Tensor | None,
    merge: str,
    backend: str,
) -> Tensor:
    _check_operands(projected, output, best_head, gamma, merge)
    return _backend(backend).add_best_head(projected, output, best_head.contiguous(), merge, gamma)


def _add_best_head_fake(projected: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(projected, memory_format=torch.contiguous_format)


def _add_best_head_autograd(
    projected: Tensor,
    output: Tensor,
    best_head: Tensor,
    handle: Tensor | None,
    gamma: Tensor | None,
    merge: str,
    backend: str,
) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        joined: Tensor = _AddBestHead.apply(
            Dispatched, merge, _backend(backend), projected, output, best_head, handle, gamma
        )
    return joined


def _add_best_head_in_place_op(
    projected: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor | None, merge: str, backend: str
) -> None:
    _check_operands(projected, output, best_head, gamma, merge)
    _backend(backend).add_best_head(projected, output, best_head.contiguous(), merge, gamma, in_place=True)
    torch.autograd.graph.increment_version(projected)


def _best_head_gradient_op(grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str, backend: str) -> Tensor:
    output = grad.new_empty(()).expand(len(grad), heads, grad.shape[1], width)
    _check_operands(grad, output, best_head, None, merge)
    return _backend(backend).best_head_gradient(grad, best_head.contiguous(), heads, width, merge)


def _best_head_gradient_fake(grad: Tensor, best_head: Tensor, heads: int, width: int, *others: Any) -> Tensor:
    return grad.new_empty((grad.shape[0], grad.shape[1], width))


def _gate_gradients_op(
    grad: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor, merge: str, backend: str
) -> tuple[Tensor, Tensor]:
    _check_operands(grad, output, best_head, gamma, merge)
    return _backend(backend).gate_gradients(grad, output, best_head.contiguous(), gamma, merge)


def _check_operands(projected: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor | None, merge: str) -> None:
    """Check an operator's arguments, since anyone may call it; direct calls were checked before and skip this."""
    check_merge(projected, output, merge)
    if gamma is not None:
        check_gamma(gamma, projected)
    check_best_head(best_head, output)


def _gate_gradients_fake(
    grad: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    size = output.shape[0], output.shape[2], output.shape[3]
    return output.new_empty(size), gamma.new_empty(gamma.shape)


def _refuse_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise NotImplementedError(SECOND_DERIVATIVE)


_IMPLEMENTATIONS: tuple[tuple[str, Any, Any], ...] = (
    ("attention", _attention_op, _attention_fake),
    ("attention_backward", _attention_backward_op, _attention_backward_fake),
    ("attention_received", _attention_received_op, _attention_received_fake),
    ("add_best_head", _add_best_head_op, _add_best_head_fake),
    ("add_best_head_", _add_best_head_in_place_op, lambda *arguments: None),
    ("best_head_gradient", _best_head_gradient_op, _best_head_gradient_fake),
    ("gate_gradients", _gate_gradients_op, _gate_gradients_fake),
)
for _name, _op, _fake in _IMPLEMENTATIONS:
    _LIBRARY.impl(_name, _op, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rsattn::{_name}", _fake, lib=_LIBRARY)
_LIBRARY.impl("attention", _attention_autograd, "Autograd")
_LIBRARY.impl("add_best_head", _add_best_head_autograd, "Autograd")
for _name in ("attention_backward", "best_head_gradient", "gate_gradients"):
    torch.library.register_autograd(f"rsattn::{_name}", _refuse_second_derivative, lib=_LIBRARY)
