"""`python -m bench.plans`: on a GPU, time the calls that more than one kernel can compute, with each of them.

Each plan changes one decision of kernels/launch.py: the whole-row kernel or the two streaming kernels for the backward
pass up to 256 keys, with several tile sizes; the same for the forward pass; or the number of row blocks in a program.
The CUDA C++ kernels and PyTorch's SDPA are timed too. Every plan is checked against float64 first.

    python -m bench.plans --out plans.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from rsattn.kernels import configs, launch
from rsattn.kernels.configs import Config

from . import baselines, clock
from .candidates import TARGET, first_in_the_table
from .cases import Case
from .inputs import Inputs, checker
from .shapes import Shape

SECONDS = 1.0
Within = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Plan:
    """A way to compute a call: a context to enter, and the function to call in it."""

    within: Within = nullcontext
    compute: baselines.Baseline = baselines.rsattn_default


@contextmanager
def without(*kernels: str, rows: tuple[Config, ...] = ()) -> Iterator[None]:
    """Hide these kernels from launches and put `rows` first in the table while the context is open."""

    def find(kernel: str, *arguments: Any) -> Config | None:
        return None if kernel in kernels else configs.find(kernel, *arguments)

    with first_in_the_table(rows), mock.patch.object(launch, "find", find):
        yield


def _row(kernel: str, block_m: int, block_n: int, warps: int, stages: int) -> Config:
    return Config(kernel, TARGET, 2, 64, 0, "no", block_m, block_n, 64, warps, stages)


def streaming_pairs() -> dict[str, Plan]:
    """The backward pass by the two streaming kernels, with several tile sizes."""
    others = ("row_backward", "square_backward")
    plans = {"streaming pair, shipped tiles": Plan(partial(without, *others))}
    for first in ((64, 32, 4, 3), (64, 64, 4, 3)):
        for second in ((64, 64, 4, 2), (64, 64, 4, 3), (32, 64, 4, 3), (32, 128, 8, 3)):
            rows = (_row("query_gradient", *first), _row("key_value_gradient", *second))
            plans[f"streaming pair, dQ {first}, dK dV {second}"] = Plan(partial(without, *others, rows=rows))
    return plans


def streaming_forwards() -> dict[str, Plan]:
    """The output by the streaming kernel and the column sums by a second kernel, with several tile sizes."""
    plans = {"streaming forward, shipped tiles": Plan(partial(without, "row_forward"))}
    for first in ((64, 32, 4, 3), (64, 64, 4, 3), (128, 32, 4, 3), (128, 64, 8, 3)):
        for second in ((64, 64, 4, 3), (64, 128, 4, 3)):
            rows = (_row("stream_forward", *first), _row("column_sums", *second))
            plans[f"streaming, output {first}, norms {second}"] = Plan(partial(without, "row_forward", rows=rows))
    return plans


def shared_by(blocks: int) -> Plan:
    return Plan(lambda: mock.patch.object(launch, "BLOCKS_PER_PROGRAM", blocks))


CUDA = {"the CUDA C++ kernels": Plan(compute=baselines.rsattn_cuda)}
SHIPPED = {"shipped": Plan()}
SDPA = {name: Plan(compute=baselines.baseline(name)) for name in ("SDPA flash", "SDPA cuDNN", "SDPA efficient")}
SHAPES = (
    *(Shape(256, 12, 65, 64), Shape(64, 12, 197, 64), Shape(64, 12, 257, 64), Shape(32, 12, 577, 64)),
    *(Shape(32, 16, 1025, 64), Shape(16, 12, 1370, 64), Shape(4, 12, 4096, 64)),
    *(Shape(16, 4, 65, 768), Shape(64, 6, 197, 128), Shape(32, 6, 577, 128)),
)


def comparisons() -> dict[Case, dict[str, Plan]]:
    """Case -> its plans by name, the shipped one first."""
    backward = SHIPPED | streaming_pairs() | CUDA
    blocks = SHIPPED | {f"{n} row blocks a program": shared_by(n) for n in (1, 2, 4)} | CUDA
    beside_sdpa = {
        Case("attention", shape, "bfloat16", train): SHIPPED | CUDA | SDPA
        for train in (False, True)
        for shape in SHAPES
    }
    return beside_sdpa | {
        Case("attention", Shape(64, 12, 197, 64), "bfloat16", True): backward | SDPA,
        Case("attention", Shape(256, 12, 65, 64), "bfloat16", True): backward | SDPA,
        Case("attention", Shape(64, 12, 197, 64), "bfloat16"): blocks | streaming_forwards() | SDPA,
        Case("attention", Shape(256, 12, 65, 64), "bfloat16"): blocks | streaming_forwards() | SDPA,
        Case("attention", Shape(8, 12, 197, 64), "bfloat16"): blocks,
        Case("attention", Shape(1, 12, 197, 64), "bfloat16"): blocks,
    }


def medians(case: Case, plans: dict[str, Plan], device: torch.device) -> dict[str, float | str]:
    """Plan -> its median seconds, or the reason why it was left out."""
    inputs = Inputs.random(case, device)
    check = checker(inputs.oracle(), case.train)
    timers: dict[str, clock.Timer] = {}
    found: dict[str, float | str] = {}
    for name, plan in plans.items():
        step = inputs.step(plan.compute)

        def call(index: int, step: Callable[[int], Any] = step, plan: Plan = plan) -> Any:
            with plan.within():
                return step(index)

        try:
            check(name, call(0))
            timers[name] = clock.timer(clock.Variant(call), device, len(inputs.sets))
        except Exception as error:  # Triton's errors have no common base class
            found[name] = f"left out: {str(error).strip().splitlines()[0]}"
    times = clock.interleave(timers, len(inputs.sets), SECONDS)
    return found | {name: statistics.median(own) for name, own in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.plans", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="append a line of JSON for each case to this file")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("python -m bench.plans times GPU kernels, and PyTorch finds no GPU here")
    for case, plans in comparisons().items():
        found = medians(case, plans, torch.device("cuda"))
        print(case.title)
        for name, seconds in sorted(found.items(), key=lambda item: (isinstance(item[1], str), item[1])):
            words = seconds if isinstance(seconds, str) else f"{1e6 * seconds:9.1f} us"
            print(f"  {words}  {name}", flush=True)
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps({"case": case.as_json(), "seconds": found}) + "\n")


if __name__ == "__main__":
    main()
