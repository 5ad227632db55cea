"""Times that can be compared on a noisy machine: variants take turns, round after round, and medians are compared.

On a GPU what is timed is the replay of a CUDA graph that holds one call on each of several sets of inputs, together
larger than twice the L2 cache: launches cost nothing, and no call finds its inputs in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Times = dict[str, list[float]]

FEWEST, MOST = 3, 30  # rounds
LARGEST_ROTATION = 16


@dataclass(frozen=True)
class Variant:
    """One way to compute something.

    Attributes:
        call: computes it on the inputs of that index, below `copies`.
        before: not timed; runs before each timed call.
    """

    call: Callable[[int], object]
    before: Callable[[], object] = lambda: None


def copies(device: torch.device, bytes_each: int) -> int:
    """How many sets of inputs a variant's calls go round."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(LARGEST_ROTATION, -(-2 * cache // bytes_each)))


def interleave(variants: Mapping[str, Variant], device: torch.device, inputs: int, seconds: float) -> Times:
    """Seconds of single calls: as many rounds as fit into `seconds`, within limits.

    Each variant has run before, so that nothing is compiled or grown in what is timed.
    """
    timers = {name: _timer(variant, device, inputs) for name, variant in variants.items()}
    times: Times = {name: [] for name in variants}

    def one_round() -> float:
        for name, timer in timers.items():
            variants[name].before()
            times[name].append(timer() / inputs)
        return inputs * sum(own[-1] for own in times.values())

    rounds = max(FEWEST, min(MOST, int(seconds / max(one_round(), 1e-9))))
    for _ in range(rounds - 1):
        one_round()
    return times


def _timer(variant: Variant, device: torch.device, inputs: int) -> Callable[[], float]:
    """A function that runs the variant once on every set of inputs and returns the seconds that took."""
    return _replay(variant, inputs) if device.type == "cuda" else lambda: _host_seconds(variant, inputs)


def _host_seconds(variant: Variant, inputs: int) -> float:
    begin = time.perf_counter()
    for index in range(inputs):
        variant.call(index)
    return time.perf_counter() - begin


def _replay(variant: Variant, inputs: int) -> Callable[[], float]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for index in range(inputs):
                variant.call(index)
    torch.cuda.current_stream().wait_stream(side)
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
