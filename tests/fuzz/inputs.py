"""The tensors of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from . import layouts, masks, values
from .plan import DTYPES, Plan


@dataclass(frozen=True)
class Inputs:
    """The inputs of a call and of its backward pass.

    Attributes:
        tensors: query (B, H, N, E), key and value (B, H, M, E), or one packed (B, N, 3, H, E).
        mask: broadcastable to (B, H, N, M) or with a batch axis that repeats, or None.
        projected: (B, N, D), or None.
        gamma: (D,), or None.
        grad_output: (B, H, N, E).
        grad_joined: (B, N, D), or None.
    """

    tensors: tuple[Tensor, ...]
    mask: Tensor | None
    projected: Tensor | None
    gamma: Tensor | None
    grad_output: Tensor
    grad_joined: Tensor | None

    def all(self) -> list[Tensor]:
        every = [*self.tensors, self.mask, self.projected, self.gamma, self.grad_output, self.grad_joined]
        return [tensor for tensor in every if tensor is not None]

    def three(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, packed or not."""
        if len(self.tensors) == 3:
            return self.tensors
        query, key, value = self.tensors[0].permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value


def inputs_of(plan: Plan, device: torch.device) -> Inputs:
    """The tensors; they depend only on the plan."""
    draws, layout_draws = torch.Generator().manual_seed(plan.seed), Random(plan.seed)
    dtype = DTYPES[plan.dtype]
    rows = [(plan.batch, plan.heads, n, plan.width) for n in (plan.queries, plan.keys, plan.keys)]

    def random(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
        return layouts.laid(torch.randn(shape, generator=draws).to(dtype), layout, layout_draws)

    tensors: tuple[Tensor, ...] = values.numbers(plan.values, tuple(rows), dtype, draws)
    if plan.packed:
        tensors = (torch.stack(tensors).permute(1, 3, 0, 2, 4).contiguous(),)
    tensors = tuple(layouts.laid(tensor, name, layout_draws) for tensor, name in zip(tensors, plan.layouts))
    mask = masks.mask_of(plan, draws, layout_draws)
    grad_output = random(rows[0], dtype, plan.layouts[3])
    projected = gamma = grad_joined = None
    if plan.merge:
        joined, kind = (plan.batch, plan.queries, plan.dim), DTYPES[plan.projected]
        # Laid out like query and like the gradient; overlapping memory cannot be written to.
        projected = random(joined, kind, "contiguous" if plan.linked else plan.layouts[0])
        grad_joined = random(joined, kind, plan.layouts[3])
        gamma = random((plan.dim,), DTYPES[plan.gamma], plan.layouts[1]) if plan.gamma else None
    made = Inputs(tensors, mask, projected, gamma, grad_output, grad_joined)
    return made if device.type == "cpu" else _moved(made, device)


def _moved(made: Inputs, device: torch.device) -> Inputs:
    """The tensors on another device, with the same memory layout."""

    def there(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.is_neg() or tensor.data_ptr() % tensor.element_size():
            return None if tensor is None else tensor.to(device)
        storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).to(device)
        return torch.as_strided(storage, tensor.shape, tensor.stride(), tensor.storage_offset())

    moved = [there(tensor) for tensor in made.tensors]
    others = [there(t) for t in (made.mask, made.projected, made.gamma, made.grad_output, made.grad_joined)]
    return Inputs(tuple(moved), *others)  # type: ignore[arg-type]
