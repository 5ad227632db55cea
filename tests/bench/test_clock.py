"""Turns are taken, limits kept, and nothing is timed that should not be."""

import pytest
import torch

from rsattn.bench import clock
from rsattn.bench.clock import Variant, interleave

CPU = torch.device("cpu")


@pytest.fixture
def hands(monkeypatch):
    """A clock that only moves when told to; its first entry is the time."""
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    return now


def takes(hands, seconds, log=None, name=""):
    def call(index):
        hands[0] += seconds
        if log is not None:
            log.append((name, index))

    return call


def test_variants_take_turns(hands):
    log = []
    interleave({name: Variant(takes(hands, 1.0, log, name)) for name in "ab"}, CPU, 1, seconds=6.0)
    assert log == [("a", 0), ("b", 0)] * 3


def test_all_inputs_and_the_time_of_one(hands):
    log = []
    times = interleave({"a": Variant(takes(hands, 0.5, log))}, CPU, 4, seconds=0.0)
    assert [index for _, index in log[:4]] == [0, 1, 2, 3]
    assert times == {"a": [0.5] * clock.FEWEST}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 3), (5.5, 5), (1e9, 30)])
def test_rounds_fit_into_the_time_within_limits(hands, seconds, rounds):
    times = interleave({"a": Variant(takes(hands, 1.0))}, CPU, 1, seconds)
    assert len(times["a"]) == rounds


def test_what_comes_before_a_call_is_not_timed(hands):
    before = takes(hands, 100.0)
    times = interleave({"a": Variant(takes(hands, 1.0), before=lambda: before(0))}, CPU, 1, seconds=3.0)
    assert times["a"] == [1.0] * 3


def test_inputs_exceed_twice_the_cache(monkeypatch):
    class Properties:
        L2_cache_size = 50_000_000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    gpu = torch.device("cuda")
    assert clock.copies(gpu, 77_000_000) == 2
    assert clock.copies(gpu, 30_000_000) == 4
    assert clock.copies(gpu, 1000) == clock.LARGEST_ROTATION
    assert clock.copies(CPU, 1000) == 1
