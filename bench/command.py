"""`rsattn bench`: run the suite with a progress bar, print its tables, and write its times and plots to a folder."""

from __future__ import annotations

import argparse
import difflib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsattn.cli.command import CommandError, finished_file, require, writing
from rsattn.cli.help import Help
from rsattn.cli.outputs import output_folder

PACKAGES = ("matplotlib", "pytorch_pretrained_vit", "rich", "scipy")

DESCRIPTION = """\
Time residual attention on this machine and compare it with PyTorch's
attention, eager PyTorch and compiled PyTorch.

The cases: attention at the shapes of real vision transformers, time against
the number of tokens and head_dim, the residual alone, its gate, the attention
block, a whole ViT-B/16, peak memory, packed query, key and value, and the host
time of a call. Every result is checked against float64 first. Then the
variants run in turns, and their medians are compared. PyTorch's attention
(SDPA) computes no norms and chooses no head, so it does less work.

DIR receives report.md with all tables, results.json with all raw times,
time.png and memory.png. Earlier results stay: the files of a second run are
report-2.md, results-2.json and so on."""

EPILOG = """\
examples:
  rsattn bench                  run every case; takes about five minutes on an
                                idle machine
  rsattn bench --only length    run only the cases whose name contains "length"
  rsattn bench --only overhead  measure the host time of a call; takes about
                                ten seconds
  rsattn bench --list           list the names of the cases
  rsattn bench --seconds 5      run more rounds of each case

exit codes: 0 every case was timed; 1 rsattn was wrong or failed in a case,
which is named and not timed; 2 an argument is invalid"""
FILES = {"results": "json", "report": "md", "time": "png", "memory": "png"}
TITLE = 36  # characters of a case's name beside the progress bar


@dataclass(frozen=True)
class BenchOptions:
    """The arguments of `rsattn bench`."""

    only: str
    device: str | None
    seconds: float
    out: Path
    compile: bool
    list: bool


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="time rsattn on this machine, compare it with PyTorch's attention and plot the results",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Help,
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="run only the cases whose name contains this text")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: the GPU if there is one")
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=0.6,
        metavar="S",
        help="time to spend on the timed calls of each case, within 3 to 30 rounds (default: 0.6)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("rsattn-bench"), metavar="DIR", help="output folder (default: rsattn-bench)"
    )
    parser.add_argument(
        "--no-compile",
        dest="compile",
        action="store_false",
        help="skip compiled eager and FlexAttention, which take minutes to compile",
    )
    parser.add_argument("--list", action="store_true", help="list the names of the cases and exit")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def run(options: BenchOptions) -> int:
    """Time the chosen cases and return the exit code: 0, or 1 if rsattn was wrong or failed in a case.

    Raises:
        CommandError: no such case, no such device, or the folder cannot be written.
    """
    require("bench", "bench", *PACKAGES)
    from rich.markdown import Markdown

    from rsattn.cli.terminal import Terminal

    from . import kinds, plots, results
    from .machine import about
    from .report import everything, summary

    device = _device(options.device)
    cases = [case for case in kinds.cases(device) if options.only in case.title]
    if not cases:
        raise CommandError(
            f"no case has {options.only!r} in its name{_nearest(options.only, kinds.cases(device))}; "
            "rsattn bench --list lists them"
        )
    if options.list:
        print(*(case.title for case in cases), sep="\n")
        return 0
    console = Terminal()
    ending = _ending(options.out)
    target, report = options.out / f"results{ending}.json", options.out / f"report{ending}.md"
    with output_folder(options.out), finished_file(target) as partial:
        measured = results.Run(about(device), [])
        for record in _records(cases, device, options, console):
            measured.records.append(record)
            with writing(target):
                results.write(partial, measured)  # after each case, so that an interruption loses only one
    with writing(options.out):
        report.write_text(everything([measured]))
        written = plots.write([measured], options.out, ending)
    console.print(Markdown(everything([measured]) if options.only else summary([measured])))
    for path in (target, report, *written):
        console.print(str(path), markup=False)
    return 0 if len(measured.records) == len(cases) else 1


def _ending(folder: Path) -> str:
    """What the names of this run's files end with: nothing, or -2, -3 and so on where earlier results exist."""
    endings = ("" if number == 1 else f"-{number}" for number in itertools.count(1))
    return next(
        ending
        for ending in endings
        if not any((folder / f"{name}{ending}.{suffix}").exists() for name, suffix in FILES.items())
    )


def _nearest(text: str, cases: Sequence[Any]) -> str:
    """Text that names the parts of the cases' names nearest to `text`; empty where none is near."""
    count = len(text.split())
    parts = {
        " ".join(words[start : start + count])
        for words in (case.title.split() for case in cases)
        for start in range(len(words) - count + 1)
    }
    near = difflib.get_close_matches(text, sorted(parts), n=3)
    return f" (the nearest: {'; '.join(near)})" if near else ""


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda: PyTorch finds no GPU here; rsattn info shows the devices it sees")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _records(cases: list[Any], device: torch.device, options: BenchOptions, console: Any) -> Iterator[Any]:
    from rsattn.cli.terminal import progress

    from .baselines import COMPILED, FLEX
    from .measure import measure

    with progress(console) as bar:
        task = bar.add_task("", total=len(cases))
        for case in cases:
            bar.update(task, description=f"{case.title[:TITLE]:{TITLE}}")
            try:
                yield measure(case, device, options.seconds, () if options.compile else (COMPILED, FLEX))
            except torch.AcceleratorError:  # the GPU cannot be used again in this process
                raise
            except Exception as error:  # rsattn is wrong or failed; Triton's errors have no common base class
                console.print(f"not timed: {case.title}: {error}", markup=False)
            bar.advance(task)
