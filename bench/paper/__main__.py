"""`python -m bench.paper`: see experiment.py."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from . import sets, tables
from .experiment import Run, do, everything, two_cores
from .side_by_side import locked


def chosen(grid: Iterable[Run], patterns: Sequence[str]) -> list[Run]:
    """The runs of `grid` whose file name has a match of a pattern: all of the first pattern, then of the next."""
    runs = list(grid)
    return list(dict.fromkeys(run for pattern in patterns for run in runs if re.search(pattern, run.file.stem)))


def pattern(text: str) -> str:
    """A regular expression, as argparse asks for it."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description="Redo the paper's experiment.")
    parser.add_argument("data", type=Path, nargs="?", help="folder of the images and their tables (README.md)")
    parser.add_argument(
        "--weights", type=Path, help="file of `python -m bench.paper.weights` (default: DATA/vit_s14.pt)"
    )
    parser.add_argument("--tables", action="store_true", help="only write README.md's tables from the result files")
    parser.add_argument("--full", action="store_true", help="the whole grid, for a GPU")
    parser.add_argument(
        "--only",
        nargs="+",
        type=pattern,
        default=[""],
        metavar="PATTERN",
        help="runs whose file name has a match of this regular expression; of several the runs of the first come first",
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "rsattn-paper", help="scratch folder"
    )
    given = parser.parse_args()
    if given.tables:
        tables.write()
        return
    if given.data is None:
        parser.error("DATA is missing; --tables does without")
    if not given.data.is_dir():
        parser.error(f"{given.data}: no such folder")
    weights = given.weights or given.data / "vit_s14.pt"
    console = Console(highlight=False, soft_wrap=True)
    grid = chosen(everything() if given.full else two_cores(), given.only)
    if not grid:
        parser.error("no run has a match of --only: names are as bench/paper/results/mri has them")
    given.work.mkdir(parents=True, exist_ok=True)
    images = {"mri": sets.mri(given.data, given.work), "blood": sets.blood(given.data, given.work)}
    started, failed = time.monotonic(), 0
    for number, run in enumerate(grid, start=1):
        with locked(given.work / "run" / f"{run.file.stem}.lock", wait=False) as ours:
            if not ours or run.file.exists():
                continue
            console.print(
                f"[{time.monotonic() - started:.0f} s] run {number} of {len(grid)}: {run.file.stem}", markup=False
            )
            try:
                do(run, sets.thinned(images[run.set], run.every), weights, given.work, console)
            except torch.AcceleratorError:  # no later run of this process could use the GPU
                raise
            except Exception:  # the others may do
                traceback.print_exc()
                failed += 1
    if failed:
        sys.exit(f"failed: {failed} of {len(grid)} runs")


if __name__ == "__main__":
    main()
