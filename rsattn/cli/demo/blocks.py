"""One block of the demo's model: our output against float64, the best head and what it looks at, the time."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ... import reference
from ...module import ResidualOptions
from ...recording import Record, record

if TYPE_CHECKING:
    from ...integrations.pytorch_pretrained_vit import ResidualBlock

EPS = torch.finfo(torch.float32).eps
REPEATS = 5


@dataclass(frozen=True)
class Error:
    """How far an output is from float64's: the largest difference, and their 2-norm over the output's."""

    largest: float
    relative: float

    def within(self, budget: Error) -> bool:
        """False for NaN as well."""
        return self.largest <= budget.largest and self.relative <= budget.relative


@dataclass(frozen=True)
class BlockReport:
    """What the demo says of one block.

    Attributes:
        norms: (H,) the norm of each head, as recorded.
        best_head: the head that was added.
        oracle_head: the head that float64 adds.
        decided: whether float64's winner leads by more than float32 can blur; only then must the heads agree.
        error: of our output.
        budget: what `error` may be: twice the error of the same block in eager float32, plus one rounding.
        received: (N,) the attention each token receives from the best head, as recorded.
        library_ms, our_ms: median time of the library's own block and of ours.
    """

    norms: Tensor
    best_head: int
    oracle_head: int
    decided: bool
    error: Error
    budget: Error
    received: Tensor
    library_ms: float
    our_ms: float

    @property
    def spread(self) -> float:
        """Largest norm minus smallest, as a share of the largest."""
        return float((self.norms.max() - self.norms.min()) / self.norms.max())

    @property
    def head_agrees(self) -> bool:
        return self.best_head == self.oracle_head or not self.decided

    @property
    def passed(self) -> bool:
        return self.head_agrees and self.error.within(self.budget)


class Float64Block:
    """A block in float64, written out from `rsattn.reference`: what ours is held against."""

    def __init__(self, block: ResidualBlock, x: Tensor) -> None:
        self.options = block.options
        self.block = copy.deepcopy(block).double()
        self.x = x.double()
        attn = self.block.attn
        normed = self.block.norm1(self.x)
        projections = (attn.proj_q, attn.proj_k, attn.proj_v)
        inputs = [proj(normed).unflatten(2, (attn.n_heads, -1)).transpose(1, 2) for proj in projections]
        self.call = self.options.call(*inputs)
        self.attention = reference.attention(self.call)
        self._outputs: dict[int, Tensor] = {}

    def output(self, best_head: int) -> Tensor:
        """The block's output (1, N, D) had `best_head` won."""
        if best_head not in self._outputs:
            self._outputs[best_head] = self._finish(self.attention.best_head.new_tensor([best_head]))
        return self._outputs[best_head]

    def _finish(self, best_head: Tensor) -> Tensor:
        block, heads = self.block, self.attention.output
        projected = block.proj(heads.transpose(1, 2).flatten(2))
        x = self.x + reference.add_best_head(projected, heads, best_head, self.options.merge, block.gamma)
        result: Tensor = x + block.pwff(block.norm2(x))
        return result

    def winner(self, rounding: float) -> tuple[int, bool]:
        """The best head, and whether it leads by more than two norms that are each off by `rounding`."""
        first, second = self.attention.norms[0].topk(2).values.tolist()
        # Entrywise norms are counts of rows, exact in any precision, and their ties are broken by rule.
        decided = self.options.norm == "entrywise" or first - second > 2.0 * rounding
        return int(self.attention.best_head), decided


def report(
    block: ResidualBlock, x: Tensor, ours: Tensor, norms: Tensor, best_head: Tensor, received: Tensor
) -> BlockReport:
    """Hold a block's output `ours` for the input `x` (1, N, D) against float64, and time it.

    `norms` (1, H), `best_head` (1,) and `received` (1, H, N) are what `rsattn.record` noted when `ours` was computed.
    """
    oracle = Float64Block(block, x)
    eager, noted = _eager(block, x)
    length = x.shape[1]
    exact = oracle.attention.norms
    rounding = 2.0 * float((noted.norms[0] - exact).abs().max()) + length * EPS * float(exact.max())
    oracle_head, decided = oracle.winner(rounding)

    def error(output: Tensor, head: Tensor) -> Error:
        return _error(output, oracle.output(oracle_head if decided else int(head)))

    eager_error = error(eager, noted.best_head[0])
    rounded = EPS * float(ours.abs().max())
    budget = Error(2.0 * eager_error.largest + rounded, 2.0 * eager_error.relative + EPS)
    library_ms, our_ms = _interleaved_ms(lambda: _library_block(block)(x, None), lambda: block(x, None), x.device)
    block.attn.scores = None
    return BlockReport(
        norms=norms[0].cpu(),
        best_head=int(best_head),
        oracle_head=oracle_head,
        decided=decided,
        error=error(ours, best_head),
        budget=budget,
        received=received[0, int(best_head)].cpu(),
        library_ms=library_ms,
        our_ms=our_ms,
    )


def _eager(block: ResidualBlock, x: Tensor) -> tuple[Tensor, Record]:
    """The block in eager float32, and its record."""
    twin = copy.copy(block)
    twin.options = ResidualOptions(block.options.norm, block.options.scope, block.options.merge, "reference")
    with record(twin) as seen:
        output = twin(x, None)
    return output, seen


def _library_block(block: ResidualBlock) -> Callable[..., Tensor]:
    """The library's own block around the same weights."""
    from pytorch_pretrained_vit.transformer import Block

    twin = copy.copy(block)
    twin.__class__ = Block
    return twin


def _error(output: Tensor, expected: Tensor) -> Error:
    difference = output.double() - expected
    return Error(float(difference.abs().max()), float(difference.norm() / expected.norm()))


def _interleaved_ms(
    library: Callable[[], Tensor], ours: Callable[[], Tensor], device: torch.device
) -> tuple[float, float]:
    """Median milliseconds of both, run in turns so that a busy machine slows both alike.

    Nothing is left to warm up: our block has run before, and so have the library's layers and sizes.
    """
    pairs = [(_milliseconds(library, device), _milliseconds(ours, device)) for _ in range(REPEATS)]
    return statistics.median(first for first, _ in pairs), statistics.median(second for _, second in pairs)


def _milliseconds(run: Callable[[], Tensor], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return 1e3 * (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
