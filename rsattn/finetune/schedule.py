"""The learning rate over the steps of a run, as a share of the peak: one cycle, or several after restarts."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise


def share_of_rate(step: int, steps: int, rise: float) -> float:
    """The factor on the learning rate: it rises linearly in the share `rise` of `steps`, then falls along a cosine."""
    warm_up = max(round(rise * steps), 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1.0 + math.cos(math.pi * min((step - warm_up) / max(steps - warm_up, 1), 1.0)))


class Cycles:
    """The factor on the learning rate in each step; each cycle is a `share_of_rate` (Loshchilov & Hutter 2017, SGDR).

    Args:
        ends: the step after which each cycle ends, ascending; the last is the number of steps of the run.
        rise: the share of a cycle in which the learning rate rises.
    """

    def __init__(self, ends: Sequence[int], rise: float) -> None:
        self._cycles = list(pairwise((0, *ends)))
        self._ends, self._rise = list(ends), rise

    def __call__(self, step: int) -> float:
        """The factor of a step, counted from 0."""
        return self._share(step, min(bisect_right(self._ends, step), len(self._ends) - 1))

    def after(self, steps: int) -> float:
        """The factor after so many steps, in the cycle of the last one: at the end of a cycle it has fallen to 0."""
        return self._share(steps, bisect_right(self._ends, steps - 1))

    def _share(self, step: int, cycle: int) -> float:
        start, end = self._cycles[cycle]
        return share_of_rate(step - start, end - start, self._rise)
