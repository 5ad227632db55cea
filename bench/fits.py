"""Slopes on a log-log plot: the exponents with which time grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import stats

from .results import Record, Run, same_cases

# For shorter inputs, starting a call takes as long as its work.
SHORTEST = 512


@dataclass(frozen=True)
class Slope:
    """An exponent and its 95 % interval: Student's t, from the residuals of the fit."""

    value: float
    low: float
    high: float
    points: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> Slope:
    """Least-squares slope of log seconds against log size."""
    fit = stats.linregress([math.log(size) for size in sizes], [math.log(time) for time in seconds])
    half = stats.t.ppf(0.975, len(sizes) - 2) * fit.stderr
    return Slope(float(fit.slope), float(fit.slope - half), float(fit.slope + half), len(sizes))


def of_runs(
    runs: Sequence[Run], kind: str, train: bool, size: Callable[[Record], int], variant: Callable[[Record], str]
) -> Slope | None:
    """The slope of the medians of all runs; None with fewer than three sizes."""
    points = [
        (size(record), record.median(variant(record)))
        for records in same_cases(runs, kind)
        for record in records
        if record.case.train == train and variant(record) in record.seconds and _long_enough(record, kind)
    ]
    if len({n for n, _ in points}) < 3:
        return None
    return slope(*zip(*points))


def _long_enough(record: Record, kind: str) -> bool:
    return kind != "length" or record.case.shape.length >= SHORTEST
