"""What a library's own attention computes inside, seen without reading its source: probabilities and heads' outputs.

Libraries call either `scaled_dot_product_attention`, whose arguments are enough to compute both in float64, or a
softmax and then a product with the values. `watching` notes these calls; nothing here uses rsattn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from oracle import naive_attention
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Seen:
    """One attention: P (B, H, N, M) before dropout, and every head's output (B, H, N, E)."""

    probs: Tensor
    output: Tensor

    def best(self, norm: str, scope: str) -> list[int]:
        """The best head of each sample by the definitions; entrywise norms tie without dropout, and head 0 wins."""
        batch, heads, _, _ = self.probs.shape
        if norm == "entrywise":
            return [0] * batch
        norms = self.probs.sum(-2).amax(-1) if norm == "induced" else self.probs.amax(-1).mean(-1)
        if scope == "batch":
            norms = norms.sum(0).expand(batch, heads)
        return norms.argmax(1).tolist()


@contextmanager
def watching() -> Iterator[list[Seen]]:
    """Every attention computed inside the `with`, in order; models in float64 and evaluation, please."""
    seen: list[Seen] = []
    last: list[Tensor] = []

    def sdpa(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        output: Tensor = originals[functional, "scaled_dot_product_attention"](query, key, value, *args, **options)
        mask = args[0] if args else options.get("attn_mask")
        if options.get("is_causal"):
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        probs = naive_attention(query, key, value, mask, scale=options.get("scale")).probs
        seen.append(Seen(probs, output.detach()))
        return output

    def softmax(self: Tensor, *args: Any, **options: Any) -> Tensor:
        probs: Tensor = originals[torch.Tensor, "softmax"](self, *args, **options)
        last[:] = [probs]
        return probs

    def product(name: tuple[Any, str]) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            result: Tensor = originals[name](*args)
            first = next(argument for argument in args if isinstance(argument, Tensor))
            if last and first.data_ptr() == last[0].data_ptr():
                seen.append(Seen(last.pop().detach(), result.detach()))
            return result

        return call

    products = [(torch, "matmul"), (torch, "einsum"), (torch.Tensor, "matmul"), (torch.Tensor, "__matmul__")]
    places = [(functional, "scaled_dot_product_attention"), (torch.Tensor, "softmax"), *products]
    originals = {(owner, name): getattr(owner, name) for owner, name in places}
    replacements = {places[0]: sdpa, places[1]: softmax, **{place: product(place) for place in products}}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for (owner, name), replacement in replacements.items():
            setattr(owner, name, replacement)
        yield seen
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


@dataclass
class Call:
    """One call of one attention module: its name, what it was given, what it gave, and what went on inside."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    seen: Seen


def calls_of(model: nn.Module, names: list[str], run: Callable[[nn.Module], Any]) -> list[Call]:
    """The calls that `run(model)` makes of these modules of a plain model, each of which computes one attention."""
    calls: list[Call] = []
    with watching() as seen, torch.no_grad():

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                (inside,) = seen
                seen.clear()
                calls.append(Call(name, args, kwargs, first(output), inside))

            return hook

        handles = [model.get_submodule(name).register_forward_hook(note(name), with_kwargs=True) for name in names]
        run(model)
    for handle in handles:
        handle.remove()
    return calls


def first(output: Any) -> Tensor:
    """The tensor of a module that returns one alone or before others."""
    return output if isinstance(output, Tensor) else output[0]
