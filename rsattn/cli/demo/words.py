"""What the demo says in the terminal: the setting, a row per block, and what to make of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..command import shown
from .blocks import REPEATS, BlockReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

RANDOM = """\
[bold yellow]Random weights: the maps mean nothing yet.[/] For real ones:
  rsattn demo --pretrained        downloads them once (about 350 MB)
  rsattn demo --weights PATH      B_16_imagenet1k.pth, from
                                  https://github.com/lukemelas/PyTorch-Pretrained-ViT/releases"""


@dataclass(frozen=True)
class Setting:
    """What is run on what, in words and numbers for the terminal and the figure.

    Attributes:
        source: where the picture is from.
        grid: patches along a side.
        weights: where the weights are from; `random` when from nowhere.
        backend: the one that does the blocks' attention.
    """

    source: str
    image_size: int
    grid: int
    weights: str
    random: bool
    norm: str
    scope: str
    merge: str
    backend: str
    device: str

    @property
    def tokens(self) -> int:
        return self.grid**2 + 1

    @property
    def eager(self) -> bool:
        return self.backend == "reference"


def tell_setting(console: Console, setting: Setting) -> None:
    from rich.markup import escape

    size, grid = setting.image_size, setting.grid
    eager = ": eager PyTorch, not a fused kernel (rsattn info says what runs here)"
    lines = {
        "picture": f"{setting.source}; centre square at {size}x{size}",
        "model": f"ViT-B/16, {setting.weights}, N = {setting.tokens} ({grid}x{grid} patches, class token)",
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
    if setting.random:
        console.print(RANDOM)
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
        yield "         rows of P sum to one, so all heads tie by definition and head 0 is added by rule"
    undecided = sum(not block.decided for block in reports)
    if undecided:
        yield f"?        first two heads closer than float32 can tell: not compared in {undecided} blocks"
    yield "error    of the block's output against float64: largest of all, and overall (2-norm, relative)"
    yield "budget   eager float32 rounds too: twice its error for the same block, plus one rounding"
    library, ours = sum(block.library_ms for block in reports), sum(block.our_ms for block in reports)
    yield f"ms       medians of {REPEATS}, run in turns with the same weights, batch 1"
    yield f"         library: its own block, plain attention with no best head, {library:.0f} ms in all"
    yield f"         rsattn: the patched block, backend {setting.backend}, {ours:.0f} ms in all"


def _verdict(reports: Sequence[BlockReport]) -> str:
    failed = ", ".join(str(index) for index, block in enumerate(reports) if not block.passed)
    if not failed:
        return f"[bold green]All {len(reports)} blocks are within budget.[/]"
    return (
        f"[bold red]WARNING: over budget, or another best head than float64's, in block {failed}.[/]\n"
        "Do not trust this backend on this machine, and please report it with the output of rsattn info."
    )
