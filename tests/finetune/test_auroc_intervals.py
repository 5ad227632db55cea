"""AUROC over runs: the values of scikit-learn and of the report, and intervals over groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from rsattn.finetune.auroc_intervals import auroc_difference, auroc_estimate, macro_auroc, mean_auroc, resampled_auroc
from rsattn.finetune.scores import scores
from rsattn.finetune.statistics import Scored


def scored(seed: int, skill: float, groups: int = 40, per_group: int = 1, classes: int = 2, first: int = 0) -> Scored:
    """Images in groups with one class and one shift of the scores each; `skill` separates the classes."""
    rng = np.random.default_rng([seed, 1])
    index = np.repeat(np.arange(groups), per_group)
    of_group = np.random.default_rng(first).permutation(np.arange(groups) % classes)
    label = of_group[index]
    shift = rng.normal(size=(groups, classes))[index] + 0.2 * rng.normal(size=(len(index), classes))
    logits = shift + skill * np.eye(classes)[label]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = np.array([f"c{number}" for number in range(classes)])
    predicted = names[probabilities.argmax(1)]
    files = (first * per_group + np.arange(len(index))).astype(str)
    return Scored(
        files,
        (first + index).astype(str),
        predicted == names[label],
        names[label],
        predicted,
        tuple(names),
        probabilities,
    )


@pytest.mark.parametrize("classes", [2, 4])
def test_the_value_is_that_of_the_report_and_of_scikit_learn(classes: int) -> None:
    run = scored(0, 1.0, classes=classes)
    labels = np.array([int(name[1:]) for name in run.label])

    (found,) = resampled_auroc([run], resamples=5)

    expected = roc_auc_score(labels, run.probabilities[:, 1] if classes == 2 else run.probabilities, multi_class="ovr")
    assert found.value == pytest.approx(expected, abs=1e-12)
    reported = scores(torch.tensor(labels), torch.tensor(run.probabilities), run.classes)["auroc"]
    assert found.value == pytest.approx(reported, abs=1e-6)


def test_a_resample_counts_images_as_often_as_their_group_was_drawn() -> None:
    run = scored(1, 1.0, groups=12, per_group=3, classes=3)
    weights = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), 4)[:, np.repeat(np.arange(12), 3)]

    for row, area in zip(weights, macro_auroc(run, weights)):
        again = np.repeat(np.arange(36), row)
        labels = [run.label[again] == name for name in run.classes]
        each = [roc_auc_score(one, run.probabilities[again, i]) for i, one in enumerate(labels) if one.any()]
        assert area == pytest.approx(np.mean(each), abs=1e-12)


def test_a_class_without_drawn_images_is_left_out_of_the_mean() -> None:
    run = scored(2, 1.0, groups=9, classes=3)
    kept = run.label != "c2"

    (area,) = macro_auroc(run, kept[None].astype(np.int64))

    each = [roc_auc_score(run.label[kept] == name, run.probabilities[kept, i]) for i, name in enumerate(("c0", "c1"))]
    assert area == pytest.approx(np.mean(each), abs=1e-12)
    assert np.isnan(macro_auroc(run, (run.label == "c0")[None].astype(np.int64))).all()


def test_the_interval_is_close_to_delongs() -> None:
    """The standard error of DeLong for 150 and 150 images, by hand; 10 % is the noise of 2000 resamples and more."""
    run = scored(3, 1.0, groups=300)
    positive = run.probabilities[run.label == "c1", 1]
    negative = run.probabilities[run.label == "c0", 1]
    wins = (positive[:, None] > negative).astype(float)
    error = np.sqrt(wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative))

    estimate = auroc_estimate(resampled_auroc([run]))

    assert estimate is not None
    assert estimate.mean == pytest.approx(wins.mean())
    low, high = estimate.interval
    assert low < estimate.mean < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)  # on the logit scale, the same for a large sample


def test_images_of_a_group_are_drawn_together() -> None:
    run = scored(4, 1.0, groups=40, per_group=10)

    grouped, loose = (auroc_estimate(resampled_auroc([one])) for one in (run, replace(run, group=run.file)))

    assert grouped is not None
    assert loose is not None
    assert grouped.mean == loose.mean
    assert np.diff(grouped.interval) > 2 * np.diff(loose.interval)  # about sqrt(10)


def test_a_difference_is_paired() -> None:
    plain = scored(5, 1.0, groups=100)
    better = replace(plain, probabilities=plain.probabilities.copy())
    worst = np.flatnonzero(plain.label == "c1")[plain.probabilities[plain.label == "c1", 1].argmin()]
    better.probabilities[worst] = [0.0, 1.0]

    one, other = resampled_auroc([plain, better])
    difference, back = auroc_difference([one], [other]), auroc_difference([other], [one])

    assert difference is not None
    assert back is not None
    assert difference.mean == pytest.approx(other.value - one.value)
    assert difference.mean > 0
    low, high = difference.interval
    assert high - low < 0.08  # of the AUROC itself: 0.2
    assert back.interval == pytest.approx((-high, -low))


def test_runs_count_alike_and_the_order_of_images_does_not_matter() -> None:
    runs = [scored(6, 1.0), scored(7, 1.0, first=100)]
    order = np.random.default_rng(0).permutation(40)
    names = ("file", "group", "correct", "label", "predicted", "probabilities")
    mixed = replace(runs[0], **{name: getattr(runs[0], name)[order] for name in names})

    found = resampled_auroc([*runs, mixed])

    estimate = auroc_estimate(found[:2])
    assert estimate is not None
    assert estimate.mean == pytest.approx((found[0].value + found[1].value) / 2)
    np.testing.assert_allclose(found[2].drawn, found[0].drawn, atol=1e-12)


def test_a_perfect_model_leaves_room_for_groups_unlike_those_seen() -> None:
    run = scored(8, 50.0, groups=30)

    estimate = auroc_estimate(resampled_auroc([run]))

    assert estimate is not None
    assert estimate.mean == 1.0
    assert estimate.interval == pytest.approx((0.025 ** (1 / 30), 1.0))  # the exact binomial's


def test_without_two_classes_there_is_no_auroc() -> None:
    run = scored(9, 1.0)
    only = replace(run, label=np.full(40, "c0"))

    assert auroc_estimate(resampled_auroc([only])) is None


def test_the_mean_over_runs_needs_two_classes_in_each() -> None:
    runs = [scored(seed, 1.0, first=40 * seed) for seed in range(2)]
    areas = [roc_auc_score(run.label == "c1", run.probabilities[:, 1]) for run in runs]
    assert mean_auroc(runs) == pytest.approx(np.mean(areas))
    assert mean_auroc([runs[0], replace(runs[1], label=np.full_like(runs[1].label, "c1"))]) is None
