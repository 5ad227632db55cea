"""Runs a plan's call on its backend through the library's functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rsattn
from rsattn.attention import attend
from rsattn.backends.cpu import CpuBackend
from rsattn.backends.dispatch import BACKENDS
from rsattn.call import Call
from rsattn.contract import ResidualAttention
from rsattn.epilogue import join

from .inputs import Inputs
from .plan import Plan


@dataclass(frozen=True)
class Ran:
    """The results of a call.

    Attributes:
        joined: (B, N, D), or None if nothing is added.
        grads: of "query", "key" and "value" (B, H, N or M, E), and if they exist of "projected", "gamma" and "mask".
        received, alone: the attention received (B, H, M), beside the output and alone, or None.
    """

    output: Tensor
    norms: Tensor
    best_head: Tensor
    joined: Tensor | None
    grads: dict[str, Tensor]
    received: Tensor | None = None
    alone: Tensor | None = None

    def all(self) -> dict[str, Tensor]:
        found = dict(output=self.output, norms=self.norms, best_head=self.best_head) | self.grads
        others = dict(joined=self.joined, received=self.received, alone=self.alone)
        return found | {name: tensor for name, tensor in others.items() if tensor is not None}


class Watching(TorchDispatchMode):
    """Intercepts every operator, as tracers do, and calls it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Use this instruction set for backend="cpu" while the context is open; "" is the fastest."""
    before = BACKENDS["cpu"]
    BACKENDS["cpu"] = CpuBackend(name or None)
    try:
        yield
    finally:
        BACKENDS["cpu"] = before


@contextmanager
def interpreter(backend: str) -> Iterator[None]:
    """Let Triton's interpreter compute bfloat16 and round tl.fma once while the context is open. No effect on a GPU."""
    if backend != "triton" or torch.cuda.is_available():
        yield
        return
    import interpreter_bfloat16

    with interpreter_bfloat16.enabled():
        yield


def run(plan: Plan, inputs: Inputs, threads: int = 1) -> Ran:
    """Run the call, with gradients if the plan has them."""
    torch.set_num_threads(threads)
    torch.manual_seed(plan.seed)
    watching = Watching() if plan.watched else nullcontext()
    computing = torch.set_grad_enabled(plan.backward)
    with instruction_set(plan.instructions), interpreter(plan.backend), computing, watching:
        leaves = dict(enumerate(tensor.detach().requires_grad_(plan.backward) for tensor in inputs.tensors))
        more = {name: getattr(inputs, name) for name in ("projected", "gamma")}
        more = {k: t.detach().requires_grad_(plan.backward) for k, t in more.items() if t is not None}
        mask = inputs.mask
        if plan.mask_learned and mask is not None:
            more["mask"] = mask = mask.detach().requires_grad_()
        tensors = tuple(leaves.values())
        result, joined = _forward(plan, tensors, mask, more.get("projected"), more.get("gamma"))
        grads = _backward(plan, inputs, result, joined, leaves | more) if plan.backward else {}
        alone = _alone(plan, inputs) if plan.received else None
    summed = None if joined is None else joined.detach()
    return Ran(result.output.detach(), result.norms, result.best_head, summed, grads, result.received, alone)


def _alone(plan: Plan, inputs: Inputs) -> Tensor:
    query, key, _ = inputs.three()
    return rsattn.attention_received(query, key, inputs.mask, scale=plan.scale, backend=plan.backend)


def _forward(
    plan: Plan,
    leaves: tuple[Tensor, ...],
    mask: Tensor | None,
    projected: Tensor | None,
    gamma: Tensor | None,
) -> tuple[ResidualAttention, Tensor | None]:
    options: Any = dict(scale=plan.scale, norm=plan.norm, scope=plan.scope, return_received=plan.received)
    if plan.linked and projected is not None:
        call = Call(leaves, mask, None, plan.dropout, **options)
        attended = attend(call, plan.backend, linked=True)
        # It writes to its input if no gradient is recorded.
        return attended.result, join(projected if plan.backward else projected.clone(), attended, plan.merge, gamma)
    function: Any = rsattn.residual_attention_qkvpacked if plan.packed else rsattn.residual_attention
    result = function(*leaves, mask, plan.dropout, **options, backend=plan.backend)
    if projected is None:
        return result, None
    merge: Any = plan.merge
    return result, rsattn.add_best_head(projected, result, merge=merge, gamma=gamma)


def _backward(
    plan: Plan, inputs: Inputs, result: ResidualAttention, joined: Tensor | None, leaves: dict[Any, Tensor]
) -> dict[str, Tensor]:
    roots: list[Tensor] = []
    grads: list[Tensor | None] = []
    if joined is None or plan.upstream != "joined":
        roots, grads = [result.output], [inputs.grad_output]
    if joined is not None and plan.upstream != "output":
        roots, grads = [*roots, joined], [*grads, inputs.grad_joined]
    found: Any = torch.autograd.grad(roots, list(leaves.values()), grads, allow_unused=True)
    named = {name: grad for name, grad in zip(leaves, found) if grad is not None}
    packed = named.pop(0) if plan.packed else None
    three = packed.permute(2, 0, 3, 1, 4).unbind(0) if packed is not None else [named.pop(i) for i in range(3)]
    return dict(zip(("query", "key", "value"), three)) | {str(name): grad for name, grad in named.items()}
