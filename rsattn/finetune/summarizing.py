"""Summarize the finished runs of a comparison: scores, intervals, and differences from the baseline."""

from __future__ import annotations

import statistics as stdlib_statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..cli.command import CommandError
from .auroc_intervals import Score, auroc_difference, auroc_estimate, mean_auroc, resampled_auroc
from .by_group import by_group
from .compared_run import Run
from .comparison import Comparison, Failure, GroupPair, GroupResult, Pair, Result, TestSplit
from .gates import frozen_at_0
from .statistics import Difference, Scored, accuracy_interval, holm, paired_difference, read_predictions

LEAK = ("test", "train")
OF_A_RUN = ("seed", "out", "fold")  # the options that differ between the runs of a model
CHANGED = "the images or their splits changed between them: compare again in a new folder"


@dataclass(frozen=True)
class _Tested:
    """The predictions of all runs, of images or of groups.

    Attributes:
        runs: (label, seed or fold) -> predictions.
        folded: whether the numbers are those of folds, whose images are taken together.
    """

    runs: Mapping[tuple[str, int], Scored]
    folded: bool

    def numbers(self, label: str) -> list[int]:
        return [number for name, number in self.runs if name == label]

    def of(self, label: str, numbers: Sequence[int]) -> list[Scored]:
        """The predictions of a model, by seed; or those of all folds in one."""
        own = [self.runs[label, number] for number in numbers]
        return [_together(own)] if self.folded else own

    def accuracy(self, label: str) -> Score:
        own = self.of(label, self.numbers(label))
        return Score(stdlib_statistics.fmean(one.accuracy for one in own), accuracy_interval(own))

    def auroc(self, label: str) -> Score | None:
        return auroc_estimate(resampled_auroc(self.of(label, self.numbers(label))))

    def fold_auroc(self, label: str) -> float | None:
        return mean_auroc([self.runs[label, number] for number in self.numbers(label)]) if self.folded else None

    def differences(self, baseline: str, label: str) -> tuple[Difference, Score | None] | None:
        """The differences in accuracy and AUROC over the runs that both have; None without any."""
        shared = [number for number in self.numbers(label) if (baseline, number) in self.runs]
        if not shared:
            return None
        plain, other = self.of(baseline, shared), self.of(label, shared)
        try:
            accuracy = paired_difference(plain, other)
            if self.folded:
                one, two = ([self.runs[name, number] for number in shared] for name in (baseline, label))
                each = paired_difference(one, two)
                accuracy = replace(accuracy, wins=each.wins, losses=each.losses, ties=each.ties)
        except CommandError as error:
            raise CommandError(f"{label} and {baseline}: {error}") from None
        drawn = resampled_auroc([*plain, *other])
        return accuracy, auroc_difference(drawn[: len(plain)], drawn[len(plain) :])


def summary(runs: Sequence[Run], failures: Sequence[Failure] = ()) -> Comparison:
    """The comparison of the finished runs; the first run's label is the baseline.

    Raises:
        CommandError: files of a finished run are damaged, or runs were made with different images or splits.
    """
    finished = [run for run in runs if run.finished]
    checksum = images_checksum(finished)
    options = runs[0].options
    tested = _Tested(
        {(run.label, run.seed): read_predictions(run.folder.predictions) for run in finished}, options.folds is not None
    )
    labels = list(dict.fromkeys(run.label for run in finished))
    pairs = _pairs(runs[0].label, labels, tested)
    results = [_result([run for run in finished if run.label == label], tested) for label in labels]
    if options.groups not in (None, "phash"):  # a table of patients or slides
        results, pairs = _with_groups(runs[0].label, results, pairs, tested)
    last = {run.seed: run for run in finished}
    every = [tested.runs[run.label, seed] for seed, run in last.items()]
    together = [_together(every)] * len(every) if tested.folded else every
    test_splits = {
        seed: _test_split(one, _most_frequent(of), run) for (seed, run), one, of in zip(last.items(), every, together)
    }
    return Comparison(
        seeds=list(dict.fromkeys(run.seed for run in runs)),
        runs=len(runs),
        finished=len(finished),
        images=len(np.unique(np.concatenate([one.file for one in every]))),
        groups=len(np.unique(np.concatenate([one.group for one in every]))),
        test_splits=test_splits,
        results=results,
        pairs=pairs,
        failures=list(failures),
        folds=options.folds,
        images_checksum=checksum,
    )


def images_checksum(runs: Sequence[Run]) -> str | None:
    """The checksum of the images of all runs; None where no run has one.

    Raises:
        CommandError: two runs have other images, or two runs with the same seed have other splits.
    """
    images: dict[str, Run] = {}
    splits: dict[tuple[int, str], Run] = {}
    for run in runs:
        checksums = run.checksums
        if found := checksums.get("images"):
            images.setdefault(found, run)
        if found := checksums.get("split"):
            splits.setdefault((run.seed, found), run)
    of_seeds = [[run for (seed, _), run in splits.items() if seed == one] for one, _ in splits]
    for differing in ([*images.values()], *of_seeds):
        if len(differing) > 1:
            one, other = differing[:2]
            raise CommandError(f"{other.name}, was not trained on the same data as {one.name}: {CHANGED}")
    return next(iter(images), None)


def _result(runs: Sequence[Run], tested: _Tested) -> Result:
    """The result of one model over its runs."""
    label, metrics = runs[0].label, [run.metrics for run in runs]
    accuracies = {run.seed: tested.runs[label, run.seed].accuracy for run in runs}
    accuracy, mean = tested.accuracy(label), stdlib_statistics.fmean
    precision, recall, f1 = _macro(tested.of(label, tested.numbers(label)), metrics, tested.folded)
    return Result(
        label=label,
        accuracies=accuracies,
        mean=accuracy.mean,
        sd=stdlib_statistics.stdev(accuracies.values()) if len(accuracies) > 1 else None,
        interval=accuracy.interval,
        precision=precision,
        recall=recall,
        f1=f1,
        parameters=metrics[0]["model"]["parameters"],
        seconds=mean(one["seconds"] for one in metrics),
        options={name: value for name, value in asdict(runs[0].options).items() if name not in OF_A_RUN},
        gates_frozen_at_0=all(frozen_at_0(one.get("gates")) for one in metrics),
        auroc=tested.auroc(label),
        fold_auroc=tested.fold_auroc(label),
    )


def _macro(own: Sequence[Scored], metrics: Sequence[Mapping[str, Any]], folded: bool) -> list[float]:
    """Precision, recall and F1, averaged over classes: the means over seeds, or those of the images of all folds."""
    names = ("precision", "recall", "f1")
    if not folded:
        return [stdlib_statistics.fmean(one["scores"]["macro"][name] for one in metrics) for name in names]
    from sklearn.metrics import precision_recall_fscore_support

    (together,) = own
    macro = precision_recall_fscore_support(
        together.label, together.predicted, labels=np.unique(together.label), average="macro", zero_division=0
    )
    return [float(value) for value in macro[:3]]


def _most_frequent(tested: Scored) -> str:
    names, counts = np.unique(tested.label, return_counts=True)
    return str(names[counts.argmax()])


def _test_split(split: Scored, most_frequent: str, run: Run) -> TestSplit:
    metrics = run.metrics
    # An earlier version did not write near_identical.
    alike = [one["images"] for one in metrics.get("near_identical") or () if (one["split"], one["other"]) == LEAK]
    images, groups = len(split.file), len(np.unique(split.group))
    majority = float((split.label == most_frequent).mean())
    return TestSplit(images, groups, majority, sum(alike), run.checksums.get("split"))


def _pairs(baseline: str, labels: Sequence[str], tested: _Tested) -> list[Pair]:
    """Compare each model with the baseline."""
    found = {label: tested.differences(baseline, label) for label in labels if label != baseline}
    differences = {label: both for label, both in found.items() if both is not None}
    adjusted = holm([accuracy.p for accuracy, _ in differences.values()])
    pairs = zip(differences.items(), adjusted)
    return [Pair(label, baseline, accuracy, p, auroc) for (label, (accuracy, auroc)), p in pairs]


def _with_groups(
    baseline: str, results: Sequence[Result], pairs: Sequence[Pair], images: _Tested
) -> tuple[list[Result], list[Pair]]:
    """The results and the pairs with scores for groups; unchanged where a run tested no group of one class."""
    tested = _Tested({key: of_groups(one) for key, one in images.runs.items()}, images.folded)
    if not all(len(one.file) for one in tested.runs.values()):
        return list(results), list(pairs)
    shown = []
    for result in results:
        label = result.label
        everything, kept = (
            np.unique(np.concatenate([one.group for (name, _), one in of.runs.items() if name == label]))
            for of in (images, tested)
        )
        by = GroupResult(len(kept), len(everything) - len(kept), tested.accuracy(label), tested.auroc(label))
        shown.append(replace(result, by_group=by))
    labels = [result.label for result in results]
    of_all = {pair.label: pair for pair in _pairs(baseline, labels, tested)}
    differences = {label: GroupPair(pair.difference, pair.adjusted_p, pair.auroc) for label, pair in of_all.items()}
    return shown, [replace(pair, by_group=differences.get(pair.label)) for pair in pairs]


def of_groups(run: Scored) -> Scored:
    """The predictions of groups as those of images: `file` is the name of the group."""
    names = np.array(run.classes)
    index = {name: number for number, name in enumerate(run.classes)}
    found = by_group(np.array([index[name] for name in run.label.tolist()]), run.probabilities, run.group)
    label, predicted = names[found.labels], names[found.probabilities.argmax(1)]
    return Scored(found.groups, found.groups, label == predicted, label, predicted, run.classes, found.probabilities)


def _together(runs: Sequence[Scored]) -> Scored:
    """The predictions of all folds as those of one run."""
    names = ("file", "group", "correct", "label", "predicted")
    file, group, correct, label, predicted = (np.concatenate([getattr(run, name) for run in runs]) for name in names)
    probabilities = np.concatenate([run.probabilities for run in runs])
    return Scored(file, group, correct, label, predicted, runs[0].classes, probabilities)
