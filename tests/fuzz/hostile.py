"""Calls of every operator with invalid arguments, which must be rejected with an error message.

The operators are public (`torch.ops.rsattn.*`, and under them `torch.ops.rsattn_C.cpu_*`), so anyone could cause a
crash if they read or wrote beyond a tensor's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import rsattn
from rsattn.backends import extension
from rsattn.contract import ResidualAttention

REFUSALS = (ValueError, TypeError, IndexError, RuntimeError)

# One less than any of them is neither 1, which would broadcast, nor a divisor of another.
BATCH, HEADS, QUERIES, KEYS, WIDTH = 3, 4, 6, 7, 8
DIM = HEADS * WIDTH


def _arguments(operator: str, seed: int) -> dict[str, Any]:
    """Valid arguments by name, in the operator's order; an odd seed merges by slot, an even one by tile."""
    draws = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws)

    def heads(length: int) -> Tensor:
        return random(BATCH, length, HEADS, WIDTH).transpose(1, 2)

    best_head = torch.randint(HEADS, (BATCH,), generator=draws)
    query, key, value = heads(QUERIES), heads(KEYS), heads(KEYS)
    mask, word = random(BATCH, HEADS, QUERIES, KEYS) > 0, torch.tensor([seed])
    output, statistics = heads(QUERIES), random(BATCH, HEADS, 2, QUERIES)
    projected, gamma, residual = random(BATCH, QUERIES, DIM), random(DIM), random(BATCH, QUERIES, WIDTH)
    inputs = dict(query=query, key=key, value=value, attn_mask=mask, seed=word)
    results = dict(output=output, best_head=best_head, statistics=statistics)
    joining = dict(projected=projected, output=output, best_head=best_head)
    gradient = dict(grad=projected, output=output, best_head=best_head, gamma=gamma)
    choices = dict(dropout_p=0.1, scale=0.3, norm="induced", scope="sample", return_received=False, backend="cpu")
    upstream = dict(grad_output=heads(QUERIES), grad_best=residual)
    merge = "slot" if seed % 2 else "tile"
    joined = dict(merge=merge, backend="cpu")
    last = dict(tile=merge == "tile", variant=0)
    every: dict[str, dict[str, Any]] = {
        "attention": inputs | choices | dict(linked=False),
        "attention_backward": inputs | choices | results | upstream | dict(mask_gradient=False),
        "attention_received": dict(query=query, key=key, attn_mask=mask, scale=0.3, backend="cpu"),
        "add_best_head": joining | dict(handle=None, gamma=gamma) | joined,
        "add_best_head_": joining | dict(gamma=gamma) | joined,
        "best_head_gradient": dict(grad=projected, best_head=best_head, heads=HEADS, width=WIDTH) | joined,
        "gate_gradients": gradient | joined,
        "cpu_forward": inputs
        | dict(dropout_p=0.1, scale=0.3, norm=0, per_sample=True, return_received=True, variant=0),
        "cpu_received": dict(query=query, key=key, attn_mask=mask, scale=0.3, variant=0),
        "cpu_backward": upstream
        | inputs
        | dict(attn_mask=random(BATCH, HEADS, QUERIES, KEYS))
        | results
        | dict(dropout_p=0.1, scale=0.3, packed=False, learned=random(BATCH, HEADS, QUERIES, KEYS), variant=0),
        "cpu_add_best_head": joining | dict(gamma=gamma) | last,
        "cpu_add_best_head_": joining | dict(gamma=gamma) | last,
        "cpu_best_head_gradient": dict(grad=projected, best_head=best_head, width=WIDTH) | last,
        "cpu_gate_gradients": gradient | last,
        "public": joining | dict(merge=merge, gamma=gamma),
    }
    return every[operator]


OPERATORS = (
    "attention",
    "attention_backward",
    "attention_received",
    "add_best_head",
    "add_best_head_",
    "best_head_gradient",
    "gate_gradients",
    "cpu_forward",
    "cpu_received",
    "cpu_backward",
    "cpu_add_best_head",
    "cpu_add_best_head_",
    "cpu_best_head_gradient",
    "cpu_gate_gradients",
    "public",
)

# A size that may be any: (argument, dimension) of operators. Tiles are of as many heads as there are.
FREE = {
    "attention": {("query", 2)},
    "attention_received": {("query", 2)},
    "cpu_forward": {("query", 2)},
    "cpu_received": {("query", 2)},
    "best_head_gradient": {("grad", 1)},
    "cpu_best_head_gradient": {("grad", 1)},
    "add_best_head": {("output", 1)},
    "add_best_head_": {("output", 1)},
    "gate_gradients": {("output", 1)},
    "cpu_add_best_head": {("output", 1)},
    "cpu_add_best_head_": {("output", 1)},
    "cpu_gate_gradients": {("output", 1)},
    "public": {("output", 1)},
}

# Invalid values for arguments of these names.
WRONG_NUMBERS: dict[str, tuple[Any, ...]] = {
    "dropout_p": (-0.5, 2.0, float("nan")),
    "norm": ("largest", -1, 3),
    "scope": ("head",),
    "merge": ("stack",),
    "backend": ("tpu",),
    "variant": (-1, 99),
    "width": (0, -8, 7, 2**40),
    "heads": (0, -1),
}
WRONG_HEADS = (-1, HEADS, 2**20, 2**40, -(2**62))


def call(operator: str, seed: int) -> Any:
    """The operator with valid arguments."""
    return _call(operator, _arguments(operator, seed))


def _call(operator: str, arguments: dict[str, Any]) -> Any:
    if operator == "public":
        output, best_head = arguments["output"], arguments["best_head"]
        attention = ResidualAttention(output, torch.zeros(BATCH, HEADS), best_head)
        merge, gamma = arguments["merge"], arguments["gamma"]
        return rsattn.add_best_head(arguments["projected"], attention, merge=merge, gamma=gamma)
    library = extension.operators() if operator.startswith("cpu_") else torch.ops.rsattn
    return getattr(library, operator)(*arguments.values())


def _tiles(operator: str) -> bool:
    """Whether the gradient is the same for every head, so that the head is not read."""
    arguments = _arguments(operator, 0)
    return arguments.get("tile", arguments.get("merge") == "tile")


def _changed(operator: str, name: str, change: Callable[[Any], Any], seed: int) -> None:
    arguments = _arguments(operator, seed)
    arguments[name] = change(arguments[name])
    _call(operator, arguments)


def _wrong(operator: str) -> Iterator[tuple[str, Callable[[int], None]]]:
    """Every change of one argument that must be rejected."""
    for name, value in _arguments(operator, 0).items():
        changes: dict[str, Callable[[Any], Any]] = {}
        if isinstance(value, Tensor):
            changes = _wrong_tensors(operator, name, value)
        elif name in WRONG_NUMBERS:
            kind = type(value)
            changes = {f"is {w!r}": partial(_other, w) for w in WRONG_NUMBERS[name] if isinstance(w, kind)}
        if name == "best_head" and not (operator.endswith("best_head_gradient") and _tiles(operator)):
            changes |= {f"has {head}": partial(_with_head, head) for head in WRONG_HEADS}
        for words, change in changes.items():
            yield f"{operator}: {name} {words}", partial(_changed, operator, name, change)


def _wrong_tensors(operator: str, name: str, value: Tensor) -> dict[str, Callable[[Any], Any]]:
    free = FREE.get(operator, set())
    changes: dict[str, Callable[[Any], Any]] = {
        f"is short along {d}": partial(_shortened, d) for d in range(value.dim()) if (name, d) not in free
    }
    if name not in ("seed", "attn_mask"):  # a single element, which broadcasts as a mask
        changes["has a dimension less"] = lambda tensor: tensor[0]
    if value.dtype.is_floating_point:
        changes["is complex"] = lambda tensor: tensor.to(torch.complex64)
    if name in ("best_head", "statistics", "seed"):
        changes["has half as many bytes"] = lambda t: t.to(torch.int32 if t.dtype == torch.int64 else torch.float16)
    return changes


def _other(wrong: Any, value: Any) -> Any:
    return wrong


def _shortened(dimension: int, tensor: Tensor) -> Tensor:
    """The tensor shortened by one along the dimension, with no memory beyond its end."""
    return tensor.narrow(dimension, 0, tensor.shape[dimension] - 1).clone()


def _with_head(head: int, best_head: Tensor) -> Tensor:
    best_head[-1] = head
    return best_head


# Name -> a function that makes the call, given a seed.
CALLS: dict[str, Callable[[int], None]] = {name: call for operator in OPERATORS for name, call in _wrong(operator)}
