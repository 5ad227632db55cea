"""Times that can be compared on a noisy machine: variants take turns, round after round, and medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Times = dict[str, list[float]]


def interleave(
    variants: Mapping[str, Callable[[], object]], rounds: int, tick: Callable[[], None] = lambda: None
) -> Times:
    """Seconds of every call, `rounds` for each variant after one to warm up; `tick` is called after each round."""
    times: Times = {name: [] for name in variants}
    for call in variants.values():
        call()
    for _ in range(rounds):
        for name, call in variants.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
        tick()
    return times


def median(times: Times, name: str) -> float:
    return statistics.median(times[name])


def fastest(times: Times, *names: str) -> float:
    """The median of the fastest of these variants."""
    return min(median(times, name) for name in names if name in times)
