"""`python -m bench.paper`: see experiment.py."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from rich.console import Console

from . import sets, tables
from .experiment import do, everything, two_cores


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description="Redo the paper's experiment.")
    parser.add_argument("data", type=Path, nargs="?", help="folder of the pictures and their tables (README.md)")
    parser.add_argument(
        "--weights", type=Path, help="file of `python -m bench.paper.weights` (default: DATA/vit_s14.pt)"
    )
    parser.add_argument("--tables", action="store_true", help="only write README.md's tables from the result files")
    parser.add_argument("--full", action="store_true", help="the whole grid, for a GPU")
    parser.add_argument("--only", default="", help="runs whose file name contains this")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "rsattn-paper", help="scratch folder"
    )
    given = parser.parse_args()
    if given.tables:
        tables.write()
        return
    if given.data is None:
        parser.error("DATA is missing; --tables does without")
    weights = given.weights or given.data / "vit_s14.pt"
    console = Console(highlight=False, soft_wrap=True)
    grid = [run for run in (everything() if given.full else two_cores()) if given.only in run.file.stem]
    given.work.mkdir(parents=True, exist_ok=True)
    pictures = {"mri": sets.mri(given.data, given.work), "blood": sets.blood(given.data, given.work)}
    started = time.monotonic()
    for number, run in enumerate(grid, start=1):
        if run.file.exists():
            continue
        console.print(
            f"[{time.monotonic() - started:.0f} s] run {number} of {len(grid)}: {run.file.stem}", markup=False
        )
        do(run, sets.thinned(pictures[run.set], run.every), weights, given.work, console)


if __name__ == "__main__":
    main()
