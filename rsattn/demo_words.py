"""What the demo says in the terminal: the setting, a row per block, and what to make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .demo_blocks import REPEATS, BlockReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

RELEASES = "https://github.com/lukemelas/PyTorch-Pretrained-ViT/releases"


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


def tell_setting(console: Console, setting: Setting) -> None:
    from rich.markup import escape

    size, grid = setting.image_size, setting.grid
    eager = (
        ", the eager form: no fused kernel runs here, see rsattn info"
        if setting.backend == "reference"
        else ""
    )
    lines = {
        "picture": f"{setting.source}; centre square at {size} x {size}",
        "model": f"ViT-B/16, {setting.weights}, N = {setting.tokens} tokens ({grid} x {grid} patches + class token)",
        "rsattn": f"norm={setting.norm} scope={setting.scope} merge={setting.merge}",
        "backend": f"{setting.backend} on {setting.device} in float32{eager}",
    }
    for name, words in lines.items():
        console.print(f"[bold]{name:8}[/] {escape(words)}")
    console.print()


def tell_results(console: Console, setting: Setting, reports: Sequence[BlockReport], figure: Path) -> None:
    console.print(_table(setting, reports))
    _tell_heads(console, setting, reports)
    _tell_times(console, setting, reports)
    _tell_errors(console, reports)
    if setting.random:
        _tell_random(console)
    console.print(f"\nwrote {figure}", markup=False)


def _table(setting: Setting, reports: Sequence[BlockReport]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in (
        "block",
        "best\nhead",
        "its\nnorm",
        "norms'\nspread",
        "max\nerror",
        "relative\nerror",
        "budget",
    ):
        table.add_column(name, justify="right")
    table.add_column("library\nms", justify="right")
    table.add_column("rsattn\nms", justify="right")
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


def _tell_heads(console: Console, setting: Setting, reports: Sequence[BlockReport]) -> None:
    console.print("spread: largest norm minus smallest, over the largest.")
    if all(block.spread == 0 for block in reports):
        console.print(
            f"Every {setting.norm} norm ties, so head 0 is added by rule: this norm tells no heads apart."
        )
    undecided = sum(not block.decided for block in reports)
    if undecided:
        console.print(
            f"?: in {undecided} of {len(reports)} blocks the first two heads are closer than float32 can tell; the "
            "heads are not compared there."
        )


def _tell_times(console: Console, setting: Setting, reports: Sequence[BlockReport]) -> None:
    library = sum(block.library_ms for block in reports)
    ours = sum(block.our_ms for block in reports)
    console.print(
        f"times: median of {REPEATS}, in turns. library: its own block, same weights, plain attention, no best head "
        f"({library:.0f} ms in all). rsattn: the patched block, backend {setting.backend} ({ours:.0f} ms)."
    )


def _tell_errors(console: Console, reports: Sequence[BlockReport]) -> None:
    console.print(
        "error: the block's output against the same block in float64; relative is in the 2-norm. Budget: eager "
        "float32 rounds too, so\n  twice its own error plus one float32 rounding is allowed, for both errors."
    )
    failed = [index for index, block in enumerate(reports) if not block.passed]
    console.print()
    if failed:
        console.print(
            f"[bold red]WARNING[/] blocks {', '.join(map(str, failed))} differ from float64 by more than their "
            "budget or add another head: do not trust this backend here, and please report it."
        )
    else:
        console.print(f"[bold green]All {len(reports)} blocks are within budget.[/]")


def _tell_random(console: Console) -> None:
    console.print(
        "[bold yellow]Random weights: the maps mean nothing yet.[/] For real ones: rsattn demo --pretrained downloads "
        "them (about 350 MB),\n  or fetch B_16_imagenet1k.pth from "
        f"{RELEASES}\n  and run rsattn demo --weights B_16_imagenet1k.pth"
    )
