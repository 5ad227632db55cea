"""`record`: every block's norms and best head for the forward passes inside a `with`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from .contract import ResidualAttention
from .module import ResidualOptions


def residual_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of `model` that computes residual attention: ours, and those `rsattn.patch` changed."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "options", None), ResidualOptions)
    }


@dataclass
class BlockRecord:
    """One block's record, a list entry per forward pass, detached and left on the model's device.

    Attributes:
        norms: (B, H) float32 each.
        best_head: (B,) int64 each.
    """

    norms: list[Tensor] = field(default_factory=list)
    best_head: list[Tensor] = field(default_factory=list)

    def note(self, attention: ResidualAttention) -> None:
        self.norms.append(attention.norms.detach())
        self.best_head.append(attention.best_head.detach())


@dataclass
class Record:
    """What `rsattn.record` collected.

    Attributes:
        blocks: name of the module in the model -> its `BlockRecord`, in the model's order.
    """

    blocks: dict[str, BlockRecord]

    @property
    def norms(self) -> Tensor:
        """(blocks, B, H) float32, the samples of every forward pass one after the other."""
        return self._stack("norms")

    @property
    def best_head(self) -> Tensor:
        """(blocks, B) int64, the samples of every forward pass one after the other."""
        return self._stack("best_head")

    def _stack(self, name: str) -> Tensor:
        columns = [cast(list[Tensor], getattr(block, name)) for block in self.blocks.values()]
        if not any(columns):
            raise RuntimeError("nothing was recorded: run the model inside `with rsattn.record(model) as record:`")
        joined = [torch.cat(column) if column else None for column in columns]
        shapes = {None if column is None else tuple(column.shape) for column in joined}
        if len(shapes) > 1:
            raise RuntimeError(
                f"the blocks differ in batch or number of heads ({shapes}); read record.blocks[name].{name} instead"
            )
        return torch.stack(cast(list[Tensor], joined))


@contextmanager
def record(model: nn.Module) -> Iterator[Record]:
    """Record every block's norms and best head.

        with rsattn.record(model) as record:
            model(pictures)
        record.best_head        # (blocks, B)

    Recording adds no computation and keeps (B, H) numbers per block, never an (N, N) tensor.

    Raises:
        ValueError: the model has no residual self-attention in it.
    """
    modules = residual_modules(model)
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no residual self-attention to record; call rsattn.patch(model) first"
        )
    collected = Record({name: BlockRecord() for name in modules})
    previous = {name: module.sink for name, module in modules.items()}
    for name, module in modules.items():
        module.sink = collected.blocks[name].note  # type: ignore[assignment]
    try:
        yield collected
    finally:
        for name, module in modules.items():
            if hasattr(module, "sink"):  # not when the patch was undone inside the `with`
                module.sink = previous[name]
