"""One benchmark for each variant of each case.

pytest-benchmark cannot run variants in turns. So the first benchmark of a case times all its variants, and each
benchmark then replays the measured seconds through pytest-benchmark's clock.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import kinds
from bench.cases import Case
from bench.conftest import DEVICE, Measured

PAIRS = [(case, name) for case in kinds.cases(DEVICE) for name in kinds.names(case, DEVICE)]


class Replay:
    """A clock whose readings before and after each call differ by the next recorded time."""

    def __init__(self) -> None:
        self.load([])

    def load(self, seconds: list[float]) -> None:
        self._readings = self._around(seconds)

    def __call__(self) -> float:
        return next(self._readings)

    @staticmethod
    def _around(seconds: list[float]) -> Iterator[float]:
        for time in seconds:
            yield 0.0
            yield time


CLOCK = Replay()


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize(("case", "name"), PAIRS, ids=[f"{case.title}: {name}" for case, name in PAIRS])
def test_suite(benchmark, measured: Measured, case: Case, name: str):
    record = measured(case)
    if name in record.left_out:
        pytest.skip(f"{name} cannot run this case here: {record.left_out[name]}")
    seconds = record.seconds[name]
    benchmark.group, benchmark.name = case.title, name
    if name in record.peaks:
        benchmark.extra_info["peak_bytes"] = record.peaks[name]
    CLOCK.load(seconds)
    benchmark.pedantic(lambda: None, rounds=len(seconds))
    assert benchmark.disabled or sorted(benchmark.stats.stats.data) == sorted(seconds)
