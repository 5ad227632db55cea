"""What the demo says in the terminal: the setting, a row per block, and what to make of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..command import shown
from .blocks import REPEATS, BlockReport
from .reader import TESTED, Reading, share_on_digit

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class Setting:
    """What is run on what, in words and numbers for the terminal and the figure.

    Attributes:
        source: what the image is, or where it is from.
        grid: patches along a side.
        weights: where the weights are from.
        backend: the one that does the blocks' attention.
        reading: what the demo's own model makes of the image; None for ViT-B/16.
    """

    source: str
    image_size: int
    grid: int
    model: str
    weights: str
    norm: str
    scope: str
    merge: str
    backend: str
    device: str
    reading: Reading | None

    @property
    def tokens(self) -> int:
        return self.grid**2 + 1

    @property
    def eager(self) -> bool:
        return self.backend == "reference"


def tell_setting(console: Console, setting: Setting) -> None:
    from rich.markup import escape

    size, grid = setting.image_size, setting.grid
    eager = ": eager PyTorch, not a fused kernel (rsattn info lists the backends)"
    lines = {
        "image": f"{setting.source}, {size}x{size} pixels",
        "model": f"{setting.model}, {setting.weights}",
        "tokens": f"N = {setting.tokens} ({grid}x{grid} patches, class token)",
        "rsattn": f"norm={setting.norm} scope={setting.scope} merge={setting.merge}",
        "backend": f"{setting.backend} on {setting.device}, float32{eager if setting.eager else ''}",
    }
    for name, words in lines.items():
        console.print(f"[bold]{name:8}[/] {escape(words)}")
    console.print()


def tell_results(console: Console, setting: Setting, reports: Sequence[BlockReport], figure: Path) -> None:
    console.print(_table(reports))
    for line in _notes(setting, reports):
        console.print(line)
    console.print()
    console.print(_verdict(reports))
    if setting.reading is not None:
        for line in _outcome(setting.reading, reports):
            console.print(line)
    console.print(f"wrote {shown(str(figure))}", markup=False)


def _table(reports: Sequence[BlockReport]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (
        "block",
        "best\nhead",
        "its\nnorm",
        "norms'\nspread",
        "largest\nerror",
        "overall\nerror",
        "its\nbudget",
        "library\nms",
        "rsattn\nms",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for index, block in enumerate(reports):
        table.add_row(
            str(index),
            _head(block),
            f"{float(block.norms[block.best_head]):.4g}",
            f"{block.spread:.1%}",
            f"{block.error.largest:.1e}",
            f"{block.error.relative:.1e}",
            f"{block.budget.relative:.1e}",
            f"{block.library_ms:.1f}",
            f"{block.our_ms:.1f}",
            style=None if block.passed else "bold red",
        )
    return table


def _head(block: BlockReport) -> str:
    if not block.head_agrees:
        return f"{block.best_head} not {block.oracle_head}"
    return str(block.best_head) if block.decided else f"{block.best_head}?"


def _notes(setting: Setting, reports: Sequence[BlockReport]) -> Iterator[str]:
    yield "spread   largest norm minus smallest, over the largest"
    if setting.norm == "entrywise":
        yield "         rows of P sum to one, so heads tie by definition; head 0 is added"
    undecided = sum(not block.decided for block in reports)
    if undecided:
        yield f"?        two heads are too close for float32 to compare in {undecided} blocks"
    yield "error    of the block's output against float64: the largest one, and overall"
    yield "         (2-norm, relative)"
    yield "budget   twice the error of the same block in eager float32, plus one rounding"
    library, ours = sum(block.library_ms for block in reports), sum(block.our_ms for block in reports)
    yield f"ms       medians of {REPEATS}, run in turns with the same weights, batch 1"
    yield f"         library: its own block, attention without a best head, {library:.0f} ms in all"
    yield f"         rsattn: the patched block, backend {setting.backend}, {ours:.0f} ms in all"


def _outcome(reading: Reading, reports: Sequence[BlockReport]) -> Iterator[str]:
    """What the trained model can do, which heads won, and whether they look at the digit."""
    trained = reading.trained
    here = [float(share_on_digit(block.received, reading.on_digit)) for block in reports]
    yield (
        f"reads    {trained.accuracy:.1%} of {TESTED} test digits, in fonts it was not trained on;\n"
        f"         here it reads {reading.answer} ({reading.probability:.1%}), and the digit is {reading.digit}"
    )
    yield f"best     heads of blocks 0 to {len(reports) - 1}: {', '.join(str(block.best_head) for block in reports)}"
    yield f"looks    the digit covers {reading.area:.0%} of the image; of the best heads' attention,"
    yield f"         it receives {_percents(here)} in this image,"
    yield f"         {_percents(trained.best_on_digit)} in test images on average"
    yield f"         (all heads, not just the best: {_percents(trained.all_on_digit)})"


def _percents(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)


def _verdict(reports: Sequence[BlockReport]) -> str:
    failed = ", ".join(str(index) for index, block in enumerate(reports) if not block.passed)
    if not failed:
        return f"[bold green]All {len(reports)} blocks agree with float64 within their error budgets.[/]"
    return (
        f"[bold red]WARNING: over budget, or another best head than float64's, in block {failed}.[/]\n"
        "Do not trust this backend on this machine, and please report it with the output of rsattn info."
    )
