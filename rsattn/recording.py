"""`record`: every block's norms and best head for the forward passes inside a `with`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from .contract import ResidualAttention
from .module import Recorder, Residual


def residual_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of `model` that computes residual attention: ours, and those `rsattn.patch` changed."""
    return {name: cast(nn.Module, module) for name, module in model.named_modules() if isinstance(module, Residual)}


@dataclass
class BlockRecord:
    """One block's record, a list entry per forward pass, detached and left on the model's device.

    Attributes:
        norms: (B, H) float32 each.
        best_head: (B,) int64 each.
        received: (B, H, M) float32 each, the attention each of the M tokens receives from all of them together,
            sum_i P_ij before dropout. Empty unless it was asked for.
    """

    norms: list[Tensor] = field(default_factory=list)
    best_head: list[Tensor] = field(default_factory=list)
    received: list[Tensor] = field(default_factory=list)

    def note(self, attention: ResidualAttention, received: Callable[[], Tensor]) -> None:
        """A module's recorder that leaves the attention received uncomputed."""
        self.norms.append(attention.norms.detach())
        self.best_head.append(attention.best_head.detach())

    def note_received(self, attention: ResidualAttention, received: Callable[[], Tensor]) -> None:
        """A module's recorder that has it computed."""
        self.note(attention, received)
        self.received.append(received().float())


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

    @property
    def received(self) -> Tensor:
        """(blocks, B, H, M) float32, the samples of every forward pass one after the other.

        Where a head was ranked by its induced norm, its largest along M is that norm, to float32's rounding.

        Raises:
            RuntimeError: it was not asked for, or the number of tokens differs between blocks or forward passes.
        """
        if any(block.norms and not block.received for block in self.blocks.values()):
            raise RuntimeError(
                "the attention received was not recorded: it is computed only inside "
                "`with rsattn.record(model, received=True) as record:`"
            )
        return self._stack("received")

    def _stack(self, name: str) -> Tensor:
        columns = [cast(list[Tensor], getattr(block, name)) for block in self.blocks.values()]
        if not any(columns):
            raise RuntimeError(
                "nothing was recorded: run the model inside `with rsattn.record(model) as record:`, in the same thread"
            )
        shapes = {shape for column in columns for shape in _joined_shapes(column)}
        if len(shapes) > 1:
            tokens = " or tokens" if name == "received" else ""
            raise RuntimeError(
                f"the blocks or forward passes differ in batch or number of heads{tokens} ({shapes}); "
                f"read record.blocks[name].{name} instead"
            )
        return torch.stack([torch.cat(column) for column in columns])


def _joined_shapes(column: list[Tensor]) -> set[tuple[int, ...] | None]:
    """The shape of all samples of a block together: several where its forward passes do not fit each other."""
    samples = sum(len(noted) for noted in column)
    return {(samples, *noted.shape[1:]) for noted in column} or {None}


@contextmanager
def record(model: nn.Module, received: bool = False) -> Iterator[Record]:
    """Record every block's norms and best head, and with `received=True` the attention each token receives.

        with rsattn.record(model) as record:
            model(pictures)
        record.best_head        # (blocks, B)

    Recording adds no computation and keeps (B, H) numbers per block, never an (N, N) tensor. With `received=True`
    each block computes its probabilities once more in float32, a few rows at a time, and keeps (B, H, M) numbers.

    Any number of records may be open at once and end in any order. Each collects the forward passes that run while it
    is open, in the thread that opened it: not those of other threads (`nn.DataParallel` starts some), nor those of a
    copy of the model.

    Args:
        model: with residual self-attention in it.
        received: whether to collect `Record.received`, which `rsattn.plot.attention_overlay` draws.

    Raises:
        ValueError: the model has no residual self-attention in it.
    """
    modules = residual_modules(model)
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no residual self-attention to record; call rsattn.patch(model) first"
        )
    collected = Record({name: BlockRecord() for name in modules})
    opened: list[tuple[list[Recorder], Recorder]] = []
    for name, module in modules.items():
        block = collected.blocks[name]
        opened.append((recorders_here(module), block.note_received if received else block.note))
    for recorders, recorder in opened:
        recorders.append(recorder)
    try:
        yield collected
    finally:
        for recorders, recorder in opened:  # the garbage collector may get here in another thread
            recorders.remove(recorder)


def recorders_here(module: nn.Module) -> list[Recorder]:
    """Those of a residual module that are called in this thread."""
    of_all_threads: threading.local = vars(module).setdefault("_rsattn_recorders", threading.local())
    recorders: list[Recorder] = vars(of_all_threads).setdefault("here", [])
    return recorders
