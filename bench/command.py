"""`rsattn bench`: the suite with a progress bar, its tables in the terminal, its times and pictures in a folder."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsattn.cli.command import CommandError, finished_file, require, writing

PACKAGES = ("matplotlib", "pytorch_pretrained_vit", "rich", "scipy")

DESCRIPTION = """\
Time residual attention on this machine, beside PyTorch's own attention and eager and compiled PyTorch.

The cases: attention at the shapes of real vision transformers, time against the number of tokens and the
head_dim, the residual alone, its gate, the attention block, a whole ViT-B/16, peak memory, packed query, key and
value, and the time the host takes to make a call. Every variant is verified in float64 first. Then the variants take
turns, and medians are compared. PyTorch's attention (SDPA) computes no norms and chooses no head, so it does
less work. DIR gets report.md with all tables, results.json with every raw time, time.png and memory.png."""

EPILOG = """\
examples:
  rsattn bench                       every case: about five minutes, on a machine that runs nothing else
  rsattn bench --only length         the cases with this word in their name
  rsattn bench --only overhead       what a call costs the host: some ten seconds
  rsattn bench --list                the names of the cases
  rsattn bench --seconds 5           more rounds of each case

exit code: 0 when everything was timed, 1 when rsattn was wrong or could not run in some case, which is named and not
timed, 2 when something asked for cannot be done."""


@dataclass(frozen=True)
class BenchOptions:
    """The command line of `rsattn bench`, argument by argument."""

    only: str
    device: str | None
    seconds: float
    out: Path
    compile: bool
    list: bool


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="time it on this machine beside PyTorch's attention, and draw the curves",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose name contains this (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: the GPU, where there is one")
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=0.6,
        metavar="S",
        help="timed calls of one case, together; a case has 3 to 30 rounds (default: 0.6)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("rsattn-bench"), metavar="DIR", help="folder (default: rsattn-bench)"
    )
    parser.add_argument(
        "--no-compile",
        dest="compile",
        action="store_false",
        help="leave out what torch.compile has to make first (compiled eager, FlexAttention): minutes less",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def run(options: BenchOptions) -> int:
    """Time what was asked for; 0, or 1 where rsattn was wrong or could not run.

    Raises:
        CommandError: there is no such case or no such device, or the folder cannot be written.
    """
    require("bench", "bench", *PACKAGES)
    from rich.console import Console
    from rich.markdown import Markdown

    from . import kinds, plots, results
    from .machine import about
    from .report import everything, summary

    device = _device(options.device)
    cases = [case for case in kinds.cases(device) if options.only in case.title]
    if not cases:
        raise CommandError(f"no case has {options.only!r} in its name: rsattn bench --list prints them")
    if options.list:
        print(*(case.title for case in cases), sep="\n")
        return 0
    console = Console(highlight=False)
    with finished_file(options.out / "results.json") as partial:
        measured = results.Run(about(device), [])
        for record in _records(cases, device, options, console):
            measured.records.append(record)
            with writing(options.out / "results.json"):
                results.write(partial, measured)  # case by case: a time limit from outside loses only one
    report = options.out / "report.md"
    with writing(options.out):
        report.write_text(everything([measured]))
        pictures = plots.write([measured], options.out)
    console.print(Markdown(everything([measured]) if options.only else summary([measured])))
    for path in (options.out / "results.json", report, *pictures):
        console.print(str(path), markup=False)
    return 0 if len(measured.records) == len(cases) else 1


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda: PyTorch finds no GPU here (rsattn info says what it sees)")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _records(cases: list[Any], device: torch.device, options: BenchOptions, console: Any) -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .baselines import COMPILED, FLEX
    from .measure import measure

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.title)
            try:
                yield measure(case, device, options.seconds, () if options.compile else (COMPILED, FLEX))
            except torch.AcceleratorError:  # nothing more can run in this process
                raise
            except Exception as error:  # rsattn is wrong or cannot run; Triton's errors are of classes of their own
                console.print(f"not timed: {case.title}: {error}", markup=False)
            progress.advance(task)
