"""Timing on a noisy machine: variants run in turns, in a new order each round, and their medians are compared.

On a GPU the replay of a CUDA graph is timed. The graph holds one call on each of up to 16 sets of inputs, so
launches cost nothing. Together the sets are larger than twice the L2 cache, except those of the shortest sequences, so
the calls of longer ones do not find their inputs in the cache. The host time of a call is measured without a graph
(`Variant.host_calls`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

Times = dict[str, list[float]]

FEWEST, MOST = 3, 30  # rounds
LARGEST_ROTATION = 16
SEED = 0  # of the order in each round


@dataclass(frozen=True)
class Variant:
    """One way to compute something.

    Attributes:
        call: computes it on the set of inputs with that index; there are `copies` sets.
        before: runs before each timed call and is not timed.
        host_calls: for a call that takes microseconds, the number of consecutive calls whose mean host time is kept. On
            a GPU the calls are launched without waiting for them. None: one call, on a GPU the replay of a graph.
    """

    call: Callable[[int], object]
    before: Callable[[], object] = lambda: None
    host_calls: int | None = None


def copies(device: torch.device, bytes_each: int) -> int:
    """The number of input sets through which a variant's calls rotate."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(LARGEST_ROTATION, -(-2 * cache // bytes_each)))


@dataclass(frozen=True)
class Timer:
    """A variant that is ready to be timed: `seconds` runs it `repeats` times on every set of inputs."""

    before: Callable[[], object]
    seconds: Callable[[], float]
    repeats: int = 1


def timer(variant: Variant, device: torch.device, inputs: int) -> Timer:
    """Prepare a variant that has run once, so that no compilation or memory allocation is timed."""
    repeats = variant.host_calls or 1
    if device.type == "cuda" and variant.host_calls is None:
        seconds = _replay(variant, inputs)
    else:
        seconds = partial(_host_seconds, variant, device, inputs, repeats)
    return Timer(variant.before, seconds, repeats)


def interleave(timers: Mapping[str, Timer], inputs: int, seconds: float) -> Times:
    """The seconds of each call, for as many rounds as fit into `seconds`, from `FEWEST` to `MOST`.

    Each round uses another order, because a variant that runs after one with the same inputs finds them in the cache.
    """
    times: Times = {name: [] for name in timers}
    order, shuffled = list(timers), random.Random(SEED)

    def one_round() -> float:
        shuffled.shuffle(order)
        spent = 0.0
        for name in order:
            timers[name].before()
            took = timers[name].seconds()
            times[name].append(took / (inputs * timers[name].repeats))
            spent += took
        return spent

    rounds = max(FEWEST, min(MOST, int(seconds / max(one_round(), 1e-9))))
    for _ in range(rounds - 1):
        one_round()
    return times


def _host_seconds(variant: Variant, device: torch.device, inputs: int, repeats: int) -> float:
    call = variant.call
    if device.type == "cuda":
        torch.cuda.synchronize()  # a full queue would block the launches
    begin = time.perf_counter()
    for index in range(inputs):
        for _ in range(repeats):
            call(index)
    return time.perf_counter() - begin


def _replay(variant: Variant, inputs: int) -> Callable[[], float]:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # a graph cannot use the memory that PyTorch has cached
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for index in range(inputs):
            variant.call(index)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(inputs):
            variant.call(index)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return seconds
