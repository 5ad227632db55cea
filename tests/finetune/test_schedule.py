"""The learning rate over the steps of a run."""

from __future__ import annotations

import pytest

from rsattn.finetune.schedule import Cycles, share_of_rate


def test_the_rate_rises_in_a_line_and_falls_in_a_cosine_to_nothing() -> None:
    shares = [share_of_rate(step, 200, 0.05) for step in range(201)]
    assert shares[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert shares[105] == pytest.approx(0.5)
    assert shares[200] == pytest.approx(0.0, abs=1e-12)
    assert shares[9:] == sorted(shares[9:], reverse=True)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_rate_of_very_short_runs_is_a_number_above_zero_at_first(steps: int) -> None:
    assert 0.0 < share_of_rate(0, steps, 0.05) <= 1.0


def test_each_cycle_rises_and_falls_on_its_own() -> None:
    rate = Cycles([100, 300], 0.05)
    assert [rate(step) for step in range(100)] == [share_of_rate(step, 100, 0.05) for step in range(100)]
    assert [rate(step) for step in range(100, 301)] == [share_of_rate(step, 200, 0.05) for step in range(201)]


def test_the_rate_after_a_cycle_is_that_of_its_end() -> None:
    rate = Cycles([100, 300], 0.05)
    assert rate.after(100) == share_of_rate(100, 100, 0.05) == pytest.approx(0.0, abs=1e-12)
    assert rate.after(101) == rate(101)
    assert rate.after(300) == pytest.approx(0.0, abs=1e-12)
