"""Intervals and the paired test, compared with known results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from rsattn.cli.command import CommandError
from rsattn.finetune.statistics import (
    Predictions,
    accuracy_interval,
    holm,
    paired_difference,
    read_predictions,
)


def run(correct: NDArray[np.bool_] | list[int], copies: int = 1, first: int = 0) -> Predictions:
    """A run with one value of `correct` per group and the same number of images in each; `first` is the first group."""
    groups = np.arange(first, first + len(correct))
    images = np.arange(first * copies, (first + len(correct)) * copies)
    right = np.repeat(np.asarray(correct, dtype=bool), copies)
    return Predictions(images.astype(str), np.repeat(groups, copies).astype(str), right)


def drawn(rate: float, groups: int, seed: int) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(groups) < rate


def test_predictions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(
        'file,group,label,predicted,p_a,p_b\na/1.png,007,a,a,0.9,0.1\n"b/2,\n.png",7,b,a,0.8,0.2\n', encoding="utf-8"
    )
    read = read_predictions(path)
    assert read.file.tolist() == ["a/1.png", "b/2,\n.png"]
    assert read.group.tolist() == ["007", "7"]
    assert read.correct.tolist() == [True, False]
    assert read.accuracy == 0.5
    assert (read.label.tolist(), read.predicted.tolist()) == (["a", "b"], ["a", "a"])
    assert read.classes == ("a", "b")
    assert read.probabilities.tolist() == [[0.9, 0.1], [0.8, 0.2]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot read the predictions .*predictions.csv: No such file"),
        ("", "not the predictions.csv of a run: expected rows with the columns file, group, label, predicted"),
        ("file,group,label,predicted\n", "expected rows"),
        ("file,label,predicted\na,a,a\n", "expected rows with the columns file, group"),
        ("file,group,label,predicted\na,a,a\n", "expected rows"),
        ("file,group,label,predicted,p_a,p_b\n1,1,a,a,0.9\n", "a probability is missing or not a number"),
        ("file,group,label,predicted,p_a,p_b\n1,1,a,a,0.9,x\n", "a probability is missing or not a number"),
        ("file,group,label,predicted,p_a\n1,1,b,a,0.9\n", "it has no column p_b"),
    ],
)
def test_what_is_not_predictions_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "predictions.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CommandError, match=says):
        read_predictions(path)


def test_interval_of_single_images_is_close_to_the_binomials() -> None:
    """The bootstrap's standard error is the binomial's; 0.01 is its noise at 2000 resamples and one image of 300."""
    low, high = accuracy_interval([run([1] * 240 + [0] * 60)])
    wilson = binomtest(240, 300).proportion_ci(method="wilson")
    assert low == pytest.approx(wilson.low, abs=0.01)
    assert high == pytest.approx(wilson.high, abs=0.01)


def test_copies_in_a_group_add_no_certainty() -> None:
    correct = drawn(0.8, 60, seed=1)
    assert accuracy_interval([run(correct, copies=10)]) == accuracy_interval([run(correct)])
    loose = Predictions(run(correct, copies=10).file, run(correct, copies=10).file, run(correct, copies=10).correct)
    (low, high), (tight_low, tight_high) = accuracy_interval([run(correct)]), accuracy_interval([loose])
    assert high - low > 2.5 * (tight_high - tight_low)  # about sqrt(10)


def test_the_same_test_images_in_every_seed_add_no_certainty() -> None:
    correct = drawn(0.8, 60, seed=2)
    assert accuracy_interval([run(correct)] * 5) == pytest.approx(accuracy_interval([run(correct)]))


def test_other_test_images_in_every_seed_add_certainty() -> None:
    runs = [run(drawn(0.8, 60, seed), first=60 * seed) for seed in range(5)]
    (low, high), (wide_low, wide_high) = accuracy_interval(runs), accuracy_interval(runs[:1])
    assert high - low < 0.6 * (wide_high - wide_low)  # about 1 / sqrt(5)
    assert low < np.mean([one.accuracy for one in runs]) < high


def test_every_run_counts_alike_whatever_the_size_of_its_test_split() -> None:
    runs = [run([1, 0] * 200), run([1] * 9, first=1000)]
    low, high = accuracy_interval(runs)
    assert low < 0.75 < high  # pooled, it would be 0.51
    assert high - low < 0.06


def test_a_run_of_which_no_group_was_drawn_is_left_out() -> None:
    """About 63 % of the resamples have the only group of the second run; in the others, the run does not count as 0."""
    low, _ = accuracy_interval([run([1] * 39 + [0]), run([1], first=100)])
    assert low > 0.9


@pytest.mark.parametrize("groups", [1, 2, 30])
def test_interval_where_all_predictions_are_correct_is_the_exact_binomials(groups: int) -> None:
    low, high = accuracy_interval([run([1] * groups, copies=4)] * 3)
    assert low == pytest.approx(0.025 ** (1 / groups))  # Clopper and Pearson's closed form
    assert high == 1.0
    low, high = accuracy_interval([run([0] * groups, copies=4)])
    assert (low, high) == (0.0, pytest.approx(1 - 0.025 ** (1 / groups)))


def test_intervals_are_repeatable_and_their_seed_counts() -> None:
    runs = [run(drawn(0.7, 40, seed=3))]
    assert accuracy_interval(runs) == accuracy_interval(runs)
    assert len({accuracy_interval(runs, resamples=100, seed=seed) for seed in range(5)}) > 1


def test_interval_covers_what_it_says() -> None:
    """300 made-up test splits of 60 groups, in which a group's four images are often right together.

    A true coverage of 95 % gives 285 of 300, with a standard deviation of 3.8; percentile intervals of 60 groups cover
    about 94 %. Resampling images instead of groups would cover about 70 %.
    """
    rng, covered = np.random.default_rng(5), 0
    for _ in range(300):
        chance = rng.choice([0.5, 1.0], size=(60, 1))
        right = rng.random((60, 4)) < chance
        numbers = np.arange(240)
        low, high = accuracy_interval(
            [Predictions(numbers.astype(str), (numbers // 4).astype(str), right.ravel())], resamples=400
        )
        covered += low <= 0.75 <= high
    assert 285 - 4 * 3.8 <= covered <= 298


@pytest.mark.parametrize(("gained", "lost"), [(9, 2), (3, 0), (7, 7), (1, 5), (1, 0), (0, 0), (2, 1), (10, 4)])
def test_p_of_single_images_is_the_exact_mcnemar_test(gained: int, lost: int) -> None:
    both = [1] * 20 + [0] * 5
    plain, other = run(both + [0] * gained + [1] * lost), run(both + [1] * gained + [0] * lost)
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert paired_difference([plain], [other]).p == pytest.approx(expected)


@pytest.mark.parametrize(("gained", "lost"), [(10, 5), (22, 9), (30, 30)])
def test_p_of_many_groups_is_close_to_the_exact_one(gained: int, lost: int) -> None:
    """With 10,000 flips, the standard error of a p of 0.3 is 0.005; the tolerance is four times that."""
    plain, other = run([0] * gained + [1] * lost), run([1] * gained + [0] * lost)
    expected = binomtest(gained, gained + lost).pvalue
    assert paired_difference([plain], [other]).p == pytest.approx(expected, abs=0.02)


def test_p_of_random_flips_is_never_nothing() -> None:
    """The observed signs count too, on both sides."""
    assert paired_difference([run([0] * 200)], [run([1] * 200)]).p == pytest.approx(2 / 10_001)


def test_copies_do_not_make_a_difference_significant() -> None:
    plain, other = drawn(0.6, 12, seed=4), drawn(0.8, 12, seed=5)
    one, ten = (paired_difference([run(plain, copies)], [run(other, copies)]) for copies in (1, 10))
    assert one == ten


def test_differences_of_a_group_are_summed_over_seeds() -> None:
    """Groups gain 2, 1 and -1 images in two seeds: |sum| is at least the 2 seen in 6 of 8 flips."""
    plain = [run([0, 0, 1, 1]), run([0, 1, 1, 1])]
    other = [run([1, 1, 0, 1]), run([1, 1, 1, 1])]
    sums = [abs(a * 2 + b + c) for a in (1, -1) for b in (1, -1) for c in (1, -1)]
    assert paired_difference(plain, other).p == sum(total >= 2 for total in sums) / 8 == 0.75


def test_the_difference_of_paired_runs() -> None:
    plain = [run([1, 0, 0, 0] * 10), run([1, 1, 0, 0] * 10), run([1, 1, 1, 0] * 10), run([1, 1, 0, 0] * 10)]
    other = [run([1, 1, 1, 1] * 10), run([1, 1, 1, 0] * 10), run([1, 1, 0, 0] * 10), run([0, 1, 1, 0] * 10)]
    difference = paired_difference(plain, other)
    assert difference.mean == pytest.approx((0.75 + 0.25 - 0.25 + 0) / 4)
    assert (difference.wins, difference.losses, difference.ties) == (2, 1, 1)
    low, high = difference.interval
    assert low < difference.mean < high
    back = paired_difference(other, plain)
    assert (back.mean, back.wins, back.losses) == (-difference.mean, 1, 2)
    assert back.p == pytest.approx(difference.p)
    assert back.interval == pytest.approx((-high, -low), abs=0.005)  # percentiles round one way


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    """Two models that differ on two images only: the unpaired interval would be about 0.2 wide."""
    plain = drawn(0.7, 100, seed=6)
    other = plain.copy()
    other[np.flatnonzero(~plain)[:2]] = True
    difference = paired_difference([run(plain)], [run(other)])
    assert difference.mean == pytest.approx(0.02)
    assert difference.interval[1] - difference.interval[0] < 0.07


def test_the_order_of_the_images_does_not_matter() -> None:
    plain, other = run(drawn(0.6, 30, seed=7), copies=2), run(drawn(0.8, 30, seed=8), copies=2)
    order = np.random.default_rng(9).permutation(60)
    mixed = Predictions(other.file[order], other.group[order], other.correct[order])
    assert paired_difference([plain], [mixed]) == paired_difference([plain], [other])


def test_models_that_never_differ_leave_room_for_a_difference() -> None:
    same = [run(drawn(0.9, 40, seed=10))]
    difference = paired_difference(same, same)
    share = 1 - 0.025 ** (1 / 40)
    assert (difference.mean, difference.p, difference.ties) == (0.0, 1.0, 1)
    assert difference.interval == pytest.approx((-share, share))


def test_runs_on_other_images_are_not_compared() -> None:
    with pytest.raises(CommandError, match="tested on different images or groups"):
        paired_difference([run([1, 0, 1])], [run([1, 0, 1], first=1)])
    with pytest.raises(CommandError, match="tested on different images or groups"):
        paired_difference([run([1, 0, 1])], [run([1, 0])])
    regrouped = Predictions(run([1, 0]).file, np.array(["0", "0"]), np.array([True, False]))
    with pytest.raises(CommandError, match="tested on different images or groups"):
        paired_difference([run([1, 0])], [regrouped])
    with pytest.raises(ValueError, match="zip"):
        paired_difference([run([1, 0])], [run([1, 0])] * 2)


def test_holms_adjustment() -> None:
    """Holm's own procedure: 3 * 0.01, then 2 * 0.02 and 0.04, none smaller than one before it."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
