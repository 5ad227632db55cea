"""`python -m bench.plans`: on a GPU, which kernels should do a call that several can do? They take turns.

Each plan changes one decision of kernels/launch.py: the backward pass up to 256 keys by the whole-row kernel or by the
streaming pair, in tiles of several sizes; how many programs share a head in the forward pass. The CUDA C++ kernels take
part where they can. Every plan is compared with float64 before it is timed.

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

from . import clock, peers
from .candidates import TARGET, first_in_the_table
from .cases import Case
from .inputs import Inputs, checker
from .shapes import Shape

SECONDS = 1.0
Within = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Plan:
    """A way to launch a call: what has to hold while it is launched, and the peer that launches it."""

    within: Within = nullcontext
    peer: peers.Peer = peers.rsattn_peer


@contextmanager
def without(*kernels: str, rows: tuple[Config, ...] = ()) -> Iterator[None]:
    """Inside, launches find no row of these kernels, and these `rows` before any other."""

    def find(kernel: str, *arguments: Any) -> Config | None:
        return None if kernel in kernels else configs.find(kernel, *arguments)

    with first_in_the_table(rows), mock.patch.object(launch, "find", find):
        yield


def _row(kernel: str, block_m: int, block_n: int, warps: int, stages: int, width: int = 64) -> Config:
    return Config(kernel, TARGET, 2, width, 0, "no", block_m, block_n, width, warps, stages)


def streaming_pairs() -> dict[str, Plan]:
    """dQ and dK, dV by the streaming kernels, in tiles of several sizes."""
    plans = {"streaming pair, shipped tiles": Plan(partial(without, "row_backward"))}
    for first in ((64, 64, 4, 2), (128, 64, 4, 2), (128, 64, 8, 2), (64, 32, 4, 2)):
        for second in ((64, 64, 4, 1), (64, 64, 4, 2), (64, 128, 8, 1), (64, 128, 8, 2), (32, 128, 8, 2)):
            rows = (_row("query_gradient", *first), _row("key_value_gradient", *second))
            name = f"streaming pair, dQ {first}, dK dV {second}"
            plans[name] = Plan(partial(without, "row_backward", rows=rows))
    return plans


def shared_heads(heads_each: int) -> Plan:
    return Plan(lambda: mock.patch.object(launch, "HEADS_PER_MULTIPROCESSOR", heads_each))


CUDA = {"the CUDA C++ kernels": Plan(peer=peers.cuda_peer)}
SHIPPED = {"shipped": Plan()}


def comparisons() -> dict[Case, dict[str, Plan]]:
    """Case -> its plans by name, the shipped one first."""
    backward = SHIPPED | streaming_pairs() | CUDA
    forward = SHIPPED | {f"{n} heads per multiprocessor": shared_heads(n) for n in (1, 4, 8)} | CUDA
    streamed = SHIPPED | {"streaming forward": Plan(partial(without, "row_forward"))} | CUDA
    return {
        Case("attention", Shape(64, 12, 197, 64), "bfloat16", True): backward,
        Case("attention", Shape(256, 12, 65, 64), "bfloat16", True): backward,
        Case("attention", Shape(64, 12, 197, 64), "bfloat16"): forward | streamed,
        Case("attention", Shape(8, 12, 197, 64), "bfloat16"): forward,
        Case("attention", Shape(256, 12, 65, 64), "bfloat16"): streamed,
        Case("attention", Shape(32, 12, 577, 64), "bfloat16"): SHIPPED | CUDA,
        Case("attention", Shape(32, 12, 577, 64), "bfloat16", True): SHIPPED | CUDA,
    }


def medians(case: Case, plans: dict[str, Plan], device: torch.device) -> dict[str, float | str]:
    """Seconds of each plan, or why it was left out."""
    inputs = Inputs.random(case, device)
    check = checker(inputs.oracle(), case.train)
    timers: dict[str, clock.Timer] = {}
    found: dict[str, float | str] = {}
    for name, plan in plans.items():
        step = inputs.step(plan.peer)

        def call(index: int, step: Callable[[int], Any] = step, plan: Plan = plan) -> Any:
            with plan.within():
                return step(index)

        try:
            check(name, call(0))
            timers[name] = clock.timer(clock.Variant(call), device, len(inputs.sets))
        except (AssertionError, RuntimeError, ImportError) as error:
            found[name] = f"left out: {str(error).strip().splitlines()[0]}"
    times = clock.interleave(timers, len(inputs.sets), SECONDS)
    return found | {name: statistics.median(own) for name, own in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.plans", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file that gets a line of JSON for each case")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("python -m bench.plans times a GPU's kernels, and PyTorch finds no GPU here")
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
