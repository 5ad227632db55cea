"""`record`: every block's norms and best heads, for the forward passes inside a `with` block."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from .contract import ResidualAttention, check_module
from .module import Recorder, Residual


def residual_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of `model` that computes residual self-attention: ours, and those that `rsattn.patch` changed."""
    return {name: cast(nn.Module, module) for name, module in model.named_modules() if isinstance(module, Residual)}


@dataclass
class BlockRecord:
    """The record of one block: lists with one tensor per forward pass, detached, on the model's device.

    Attributes:
        norms: (B, H) float32 each, as in `rsattn.ResidualAttention`.
        best_head: (B,) int64 each, as in `rsattn.ResidualAttention`.
        received: (B, H, M) float32 each, the attention each token receives from all queries: sum_i P_ij, before
            dropout. Empty without `record(model, received=True)`.

    Example:
        >>> import torch
        >>> import rsattn
        >>> attention = rsattn.ResidualSelfAttention(dim=64, num_heads=4)
        >>> with rsattn.record(attention) as record:
        ...     for tokens in (10, 12):  # two forward passes of different lengths
        ...         _ = attention(torch.randn(2, tokens, 64))
        >>> block = record.blocks[""]  # the model itself is the block; its name is empty
        >>> [tuple(norms.shape) for norms in block.norms]
        [(2, 4), (2, 4)]
    """

    norms: list[Tensor] = field(default_factory=list)
    best_head: list[Tensor] = field(default_factory=list)
    received: list[Tensor] = field(default_factory=list)


class _Noting:
    """A `rsattn.module.Recorder` that fills a `BlockRecord`."""

    def __init__(self, block: BlockRecord, wants_received: bool) -> None:
        self.block, self.wants_received = block, wants_received

    def note(self, attention: ResidualAttention) -> None:
        self.block.norms.append(attention.norms.detach())
        self.block.best_head.append(attention.best_head.detach())
        if self.wants_received and attention.received is not None:
            self.block.received.append(attention.received.detach())


@dataclass(repr=False)
class Record:
    """What `rsattn.record` collected.

    Attributes:
        blocks: name of the module in the model -> its `BlockRecord`, in the model's order.

    Example:
        >>> import torch
        >>> import rsattn
        >>> attention = rsattn.ResidualSelfAttention(dim=64, num_heads=4)
        >>> with rsattn.record(attention, received=True) as record:
        ...     for batch in torch.randn(3, 2, 10, 64):  # 3 batches of 2 samples
        ...         _ = attention(batch)
        >>> record.norms.shape, record.best_head.shape, record.received.shape
        (torch.Size([1, 6, 4]), torch.Size([1, 6]), torch.Size([1, 6, 4, 10]))
        >>> torch.allclose(record.received.amax(dim=-1), record.norms)  # the induced norm
        True
    """

    blocks: dict[str, BlockRecord]

    def __repr__(self) -> str:
        """What there is, not its numbers."""
        passes = sorted({len(block.norms) for block in self.blocks.values()})
        counts = " or ".join(map(str, passes)) or "0"
        received = any(block.received for block in self.blocks.values())
        return f"<Record of {len(self.blocks)} blocks, {counts} forward passes{', received' if received else ''}>"

    @property
    def norms(self) -> Tensor:
        """The norms, (blocks, B, H) float32, with the samples of all forward passes concatenated.

        Raises:
            RuntimeError: nothing was recorded, or the blocks or forward passes differ in shape; the message says what
                to read instead.
        """
        return self._stack("norms")

    @property
    def best_head(self) -> Tensor:
        """The best heads, (blocks, B) int64, with the samples of all forward passes concatenated.

        Raises:
            RuntimeError: as `norms`.
        """
        return self._stack("best_head")

    @property
    def received(self) -> Tensor:
        """The attention received, (blocks, B, H, M) float32, with the samples of all forward passes concatenated.

        It is sum_i P_ij, before dropout. Its largest value along M is the induced norm.

        Raises:
            RuntimeError: as `norms`, or the record was made without `received=True`.
        """
        if any(block.norms and not block.received for block in self.blocks.values()):
            raise RuntimeError(
                "the attention received was not recorded: it is computed only inside "
                "`with rsattn.record(model, received=True) as record:`"
            )
        return self._stack("received")

    def _stack(self, name: str) -> Tensor:
        check_complete(self)
        columns = [cast(list[Tensor], getattr(block, name)) for block in self.blocks.values()]
        shapes = list(dict.fromkeys(shape for column in columns for shape in _joined_shapes(column)))
        if len(shapes) > 1:
            tokens = " or tokens" if name == "received" else ""
            raise RuntimeError(
                f"the blocks or forward passes differ in batch or number of heads{tokens} "
                f"({', '.join(map(str, shapes))}; a window counts as a sample); read record.blocks[name].{name} instead"
            )
        return torch.stack([torch.cat(column) for column in columns])


def check_complete(record: Record) -> None:
    """Check that every block has run.

    Raises:
        RuntimeError: one has not; the message says what to do.
    """
    missing = [name for name, block in record.blocks.items() if not block.norms]
    if len(missing) == len(record.blocks):
        raise RuntimeError(
            "nothing was recorded: run the model inside `with rsattn.record(model) as record:`, in the same thread"
        )
    if missing:
        raise RuntimeError(
            f"nothing was recorded of {', '.join(map(repr, missing))}, which did not run; read record.blocks[name] of "
            "the other blocks"
        )


def _joined_shapes(column: list[Tensor]) -> list[tuple[int, ...]]:
    """The shape of all samples of a block concatenated; several shapes where its forward passes differ."""
    samples = sum(len(noted) for noted in column)
    return [(samples, *noted.shape[1:]) for noted in column]


@contextmanager
def record(model: nn.Module, received: bool = False) -> Iterator[Record]:
    """Record every block's norms and best heads, and with `received=True` the attention each token receives.

    A context manager. Recording adds no computation and keeps (B, H) numbers per block, never an N x N tensor. With
    `received=True` each block also keeps (B, H, M) numbers. The induced norm needs these sums anyway; with another
    norm, long sequences on a GPU take a second pass over the scores. Nothing recorded carries a gradient.

    Several records may be open at once and end in any order. Each collects the forward passes that run while it is
    open, in the thread that opened it. It does not collect those of other threads (`torch.nn.DataParallel` starts
    some) or of a copy of the model.

    Args:
        model: a module that contains residual self-attention, from `rsattn.patch` or `rsattn.ResidualSelfAttention`.
        received: whether to collect `Record.received`, which `rsattn.plot.attention_overlay` draws.

    Yields:
        Record: filled as the model runs.

    Raises:
        ValueError: the model contains no residual self-attention.
        TypeError: `model` is no module.

    Example:
        >>> import torch
        >>> import rsattn
        >>> layer = torch.nn.TransformerEncoderLayer(64, nhead=4, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
        >>> patch = rsattn.patch(model)
        >>> with rsattn.record(model) as record:
        ...     output = model(torch.randn(2, 10, 64))  # 2 samples, 10 tokens, 64 channels
        >>> record.best_head.shape  # blocks, samples
        torch.Size([3, 2])
        >>> record.norms.shape  # blocks, samples, heads
        torch.Size([3, 2, 4])
        >>> list(record.blocks)
        ['layers.0.self_attn', 'layers.1.self_attn', 'layers.2.self_attn']
    """
    check_module(model)
    modules = residual_modules(model)
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no residual self-attention to record; call rsattn.patch(model) first"
        )
    collected = Record({name: BlockRecord() for name in modules})
    opened: list[tuple[list[Recorder], Recorder]] = []
    for name, module in modules.items():
        opened.append((recorders_here(module), _Noting(collected.blocks[name], received)))
    for recorders, recorder in opened:
        recorders.append(recorder)
    try:
        yield collected
    finally:
        for recorders, recorder in opened:  # these lists, because the garbage collector may run this in another thread
            recorders.remove(recorder)


def recorders_here(module: nn.Module) -> list[Recorder]:
    """The recorders of a residual module that are called in this thread."""
    of_all_threads: threading.local = vars(module).setdefault("_rsattn_recorders", threading.local())
    recorders: list[Recorder] = vars(of_all_threads).setdefault("here", [])
    return recorders
