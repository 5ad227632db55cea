"""Variants run in turns, within the limits, and only the calls are timed."""

import pytest
import torch

from rsattn.bench import clock
from rsattn.bench.clock import Variant, timer

CPU = torch.device("cpu")


def interleave(variants, inputs, seconds):
    timers = {name: timer(variant, CPU, inputs) for name, variant in variants.items()}
    return clock.interleave(timers, inputs, seconds)


@pytest.fixture
def hands(monkeypatch):
    """A clock that moves only when a test moves it; its first entry is the time."""
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
    interleave({name: Variant(takes(hands, 1.0, log, name)) for name in "abc"}, 1, seconds=30.0)
    rounds = ["".join(name for name, _ in log[i : i + 3]) for i in range(0, len(log), 3)]
    assert len(rounds) == 10
    assert {"".join(sorted(order)) for order in rounds} == {"abc"}
    assert len(set(rounds)) > 3  # no variant always follows the same one


def test_all_inputs_and_the_time_of_one(hands):
    log = []
    times = interleave({"a": Variant(takes(hands, 0.5, log))}, 4, seconds=0.0)
    assert [index for _, index in log[:4]] == [0, 1, 2, 3]
    assert times == {"a": [0.5] * clock.FEWEST}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 3), (5.5, 5), (1e9, 30)])
def test_rounds_fit_into_the_time_within_limits(hands, seconds, rounds):
    times = interleave({"a": Variant(takes(hands, 1.0))}, 1, seconds)
    assert len(times["a"]) == rounds


def test_what_comes_before_a_call_is_not_timed(hands):
    before = takes(hands, 100.0)
    times = interleave({"a": Variant(takes(hands, 1.0), before=lambda: before(0))}, 1, seconds=3.0)
    assert times["a"] == [1.0] * 3
    assert hands[0] == 303.0


def test_calls_in_a_row_count_in_the_limits_and_the_time_of_one_is_kept(hands):
    log = []
    times = interleave({"a": Variant(takes(hands, 0.25, log), host_calls=4)}, 1, seconds=5.5)
    assert times == {"a": [0.25] * 5}
    assert len(log) == 5 * 4


class TestOnAGpu:
    """The operations on a GPU, with a call that needs none."""

    @pytest.fixture(autouse=True)
    def graphs(self, hands, monkeypatch):
        """Records when the host waits; a replay takes 7 seconds."""
        self.log = []
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.log.append(("wait", hands[0])))
        monkeypatch.setattr(clock, "_replay", lambda variant, inputs: lambda: 7.0)
        self.call = takes(hands, 0.25, self.log, "call")

    def test_a_call_is_the_replay_of_a_graph(self):
        assert timer(Variant(self.call), torch.device("cuda"), 1).seconds() == 7.0
        assert self.log == []

    def test_calls_in_a_row_are_launched_by_the_host_and_not_waited_for(self):
        made = timer(Variant(self.call, host_calls=3), torch.device("cuda"), 1)
        assert made.seconds() == 3 * 0.25
        assert self.log == [("wait", 0.0), *[("call", 0)] * 3]


def test_inputs_exceed_twice_the_cache(monkeypatch):
    class Properties:
        L2_cache_size = 50_000_000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    gpu = torch.device("cuda")
    assert clock.copies(gpu, 77_000_000) == 2
    assert clock.copies(gpu, 30_000_000) == 4
    assert clock.copies(gpu, 1000) == clock.LARGEST_ROTATION
    assert clock.copies(CPU, 1000) == 1
