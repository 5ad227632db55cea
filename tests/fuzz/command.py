"""`.ci/fuzz`: random calls with a progress bar, failures with the commands to repeat them, and a summary."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator
from random import randrange

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from rsattn import backends
from rsattn.backends.cpu import variants

from .draw import HALVES, Target, draw
from .judging import device_of
from .plan import Plan
from .smaller import smaller
from .workers import PATIENCE, Outcome, Pool, pool

# The number of failures that are printed in full; the summary counts all.
PRINTED = 20

EXAMPLES = """\
  .ci/fuzz                          2,000 calls
  .ci/fuzz --calls 100000           some ten minutes on two cores
  .ci/fuzz --seed 5 --only 123      one call again; if it fails, also the plainest call that fails the same way
  .ci/fuzz --plan '{"queries": 2}'  one call, as failures print it
  .ci/fuzz --backend triton         in Triton's interpreter, or on the GPU where there is one
"""


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 1 if a call failed."""
    options = _options(arguments)
    console = Console(highlight=False, soft_wrap=True)
    with pool(options.workers, patience=options.patience) as workers:
        if options.only is not None or options.plan:
            plan = options.plan or draw(options.seed, options.only, _target(options))
            return _one(console, workers, plan)
        return _campaign(console, workers, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=".ci/fuzz",
        description="Calls rsattn at random (sizes, layouts, masks, dropout, special numbers, wrong arguments) and "
        "compares outputs, norms, best heads and gradients with float64. Exits with 1 if a call fails.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--calls", type=_count, default=2000, metavar="N", help="number of calls (default: 2000)")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the calls (default: random)")
    parser.add_argument("--time", type=float, metavar="SECONDS", help="stop after this time")
    parser.add_argument("--only", type=int, metavar="K", help="run only the call with this number; needs --seed")
    parser.add_argument("--plan", type=_plan, metavar="JSON", help="run only this call")
    parser.add_argument("--backend", default="cpu", choices=("cpu", "triton", "cuda"), help="default: cpu")
    parser.add_argument("--instructions", metavar="SET", help="use only this instruction set of the CPU, such as avx2")
    workers = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers", type=_count, default=workers, metavar="W", help="processes (default: one per core)"
    )
    parser.add_argument(
        "--patience",
        type=_count,
        default=PATIENCE,
        metavar="SECONDS",
        help=f"time after which a call counts as a hang (default: {PATIENCE})",
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _plan(text: str) -> Plan:
    try:
        return Plan.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.only is not None and options.seed is None:
        parser.error("--only needs the --seed that was printed with it")
    if options.plan:
        options.backend = options.plan.backend
    if options.backend == "triton" and not _gpu():
        os.environ["TRITON_INTERPRET"] = "1"
    if reasons := backends(device_of(options.backend))[options.backend].reasons:
        parser.error(f"backend {options.backend} cannot run here: {'; '.join(reasons)}")
    if options.instructions and options.instructions not in variants():
        parser.error(f"this processor has no {options.instructions}; it can run: {', '.join(variants())}")
    if options.seed is None:
        options.seed = randrange(2**31)
    return options


def _target(options: argparse.Namespace) -> Target:
    """The calls that the backend supports on this machine."""
    if options.backend == "cuda":
        return Target("cuda", dtypes=HALVES, width_multiple=8, widest=128)
    if options.backend == "triton":
        # The interpreter is slow.
        return Target("triton", widest=1024) if _gpu() else Target("triton", longest=40, widest=40)
    return Target("cpu", (options.instructions,) if options.instructions else variants())


def _gpu() -> bool:
    return torch.cuda.is_available()


def _campaign(console: Console, workers: Pool, options: argparse.Namespace) -> int:
    target, began = _target(options), time.monotonic()

    def jobs() -> Iterator[tuple[int, Plan]]:
        for number in range(options.calls):
            if options.time is None or time.monotonic() - began < options.time:
                yield number, draw(options.seed, number, target)

    failures: list[Outcome] = []
    done = 0
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("calls", total=options.calls)
        for outcome in workers.judge(jobs()):
            done += 1
            progress.advance(bar)
            if outcome.findings:
                failures.append(outcome)
                if len(failures) <= PRINTED:
                    _print(console, outcome, options)
    _summary(console, failures, done, time.monotonic() - began, options)
    return 1 if failures else 0


def _print(console: Console, outcome: Outcome, options: argparse.Namespace | None = None) -> None:
    """Print a failure and the commands that repeat it. `options` are those of a campaign."""
    where = f"call {outcome.number}: " if options else ""
    for finding in outcome.findings:
        console.print(f"{where}{finding.kind}: {finding.text}", markup=False)
    if options:
        more = "" if options.backend == "cpu" else f" --backend {options.backend}"
        more += f" --instructions {options.instructions}" if options.instructions else ""
        console.print(f"    .ci/fuzz --seed {options.seed} --only {outcome.number}{more}", markup=False)
    console.print(f"    .ci/fuzz --plan '{outcome.plan.text()}'", markup=False)


def _summary(console: Console, failures: list[Outcome], done: int, seconds: float, options: argparse.Namespace) -> None:
    if len(failures) > PRINTED:
        console.print(f"{len(failures) - PRINTED} more failures are not printed")
    kinds = Counter(kind for failure in failures for kind in {finding.kind for finding in failure.findings})
    console.print(
        f"seed {options.seed}, backend {options.backend}: {done} calls in {seconds:.0f} s, {len(failures)} failed"
    )
    for kind, count in kinds.most_common():
        numbers = [f.number for f in failures if any(finding.kind == kind for finding in f.findings)]
        console.print(f"  {count:5d}  {kind}: calls {', '.join(map(str, numbers[:8]))}", markup=False)


def _one(console: Console, workers: Pool, plan: Plan) -> int:
    """Run one plan. If it fails, print the simplest plan that fails in the same way."""
    outcome = workers.one(plan)
    if not outcome.findings:
        console.print("the call is correct")
        return 0
    _print(console, outcome)
    kind = outcome.findings[0].kind
    plainest = smaller(plan, lambda other: any(f.kind == kind for f in workers.one(other).findings))
    if plainest != plan:
        console.print("the simplest call that fails in the same way:")
        _print(console, workers.one(plainest))
    return 1
