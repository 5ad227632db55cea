"""A methods paragraph for a paper: how the models of a comparison were trained, tested and compared.

Facts of a single run are told in the sentences of methods.py, once where they are the same for all models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from . import methods
from .auroc_intervals import RESAMPLES
from .compared_run import Run
from .comparison import Comparison
from .methods import SPLITS, Facts
from .options import RATE_FACTORS
from .wording import counted, in_words

NUMBERS = dict(enumerate(("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"), 1))


def paragraph(comparison: Comparison, runs: Sequence[Run]) -> str:
    """The paragraph, in the past tense.

    Args:
        comparison: the summary of the runs.
        runs: the finished runs.
    """
    models = {run.label: Facts(run.options, run.data, run.metrics) for run in reversed(runs)}
    models = {result.label: models[result.label] for result in comparison.results}
    return " ".join(
        [
            _models(comparison, models),
            *_of_each(models, methods.residual),
            *_of_each(models, methods.initial_weights),
            *_data(models),
            _repeats(comparison),
            *_splits(runs),
            *_of_each(models, methods.preprocessing),
            *_of_each(models, methods.augmentation),
            *_of_each(models, methods.trained_parts),
            *_of_each(models, methods.head_first),
            *_of_each(models, methods.optimizer),
            *_of_each(models, _learning_rate),
            *_of_each(models, methods.regularization),
            *_of_each(models, _epochs),
            *_of_each(models, methods.early_stopping),
            *_of_each(models, _tested_weights),
            _intervals(comparison),
            *_differences(comparison),
            *_groups(comparison),
            *_software(models),
            *_checksums(comparison, models),
        ]
    )


def _of_each(models: Mapping[str, Facts], sentence: Callable[[Facts], str]) -> Iterator[str]:
    """The sentence of all models, or each different one after the names of its models."""
    said = {label: sentence(facts) for label, facts in models.items()}
    for text in filter(None, dict.fromkeys(said.values())):
        labels = [label for label, own in said.items() if own == text]
        yield text if len(labels) == len(said) else f"For {in_words(labels, 'and')}: {text[:1].lower()}{text[1:]}"


def _models(comparison: Comparison, models: Mapping[str, Facts]) -> str:
    named = [
        f"{result.label} ({methods.named(models[result.label].options)}; {result.parameters:,} parameters)"
        for result in comparison.results
    ]
    number = len(named)
    were = "model was" if number == 1 else "models were"
    return f"{NUMBERS.get(number, number)} {were} trained: {in_words(named, 'and')}."


def _data(models: Mapping[str, Facts]) -> Iterator[str]:
    facts = next(iter(models.values()))
    if facts.data.get("counts"):
        yield from filter(None, (methods.images(facts), methods.excluded(facts), methods.grouping(facts)))


def _repeats(comparison: Comparison) -> str:
    if comparison.folds:
        return (
            f"The models were compared by {comparison.folds}-fold cross-validation, stratified by class; every image "
            "was tested once, and a part of the other folds served for validation."
        )
    numbers = in_words([str(seed) for seed in comparison.test_splits], "and")
    if len(comparison.test_splits) == 1:
        return f"Each model was trained with the seed {numbers}."
    times = "twice" if len(comparison.test_splits) == 2 else f"{len(comparison.test_splits)} times"
    return f"Each model was trained {times}, with the seeds {numbers}; with one seed, all models had the same splits."


def _splits(runs: Sequence[Run]) -> Iterator[str]:
    every = [run.data for run in runs if run.data.get("counts")]
    if not every:
        return
    sizes = []
    for split, name in SPLITS.items():
        images = _span([sum(data["counts"].get(split, {}).values()) for data in every])
        groups = _span([data.get("group_counts", {}).get(split, 0) for data in every])
        sizes.append(f"{name} ({images} images of {groups} groups)")
    yield f"The splits of a run were {in_words(sizes, 'and')}."


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _learning_rate(facts: Facts) -> str:
    """Each run chooses a rate of its own with --lr auto, so the one that was asked for is not the peak."""
    rate = f"{facts.options.learning_rate:g}"
    if facts.options.lr_auto:
        rate = f"the rate of {len(RATE_FACTORS)} around {rate} that had the lowest validation loss"
    return methods.schedule(facts.options, rate)


def _epochs(facts: Facts) -> str:
    least = facts.options.least_steps
    more = f", or more to reach {least} steps" if least else ""
    at_most = "at most " if facts.options.patience else ""
    return f"Training ran for {at_most}{counted(facts.options.epochs, 'epoch')}{more}."


def _tested_weights(facts: Facts) -> str:
    kept = {"last": "after the last epoch", "best": "of the epoch with the lowest validation loss"}
    return f"The weights {kept[facts.options.keep]} were tested."


def _intervals(comparison: Comparison) -> str:
    return (
        "Accuracy and the area under the ROC curve (AUROC, one class against the others, averaged over classes) have "
        f"95 % bootstrap intervals from {RESAMPLES} resamples of the groups of test images (percentiles; "
        "for AUROC, on the logit scale)"
        + ("; the test images of all folds were taken together." if comparison.folds else ", averaged over seeds.")
    )


def _differences(comparison: Comparison) -> Iterator[str]:
    if not comparison.pairs:
        return
    baseline, several = comparison.pairs[0].baseline, len(comparison.pairs) > 1
    yield (
        f"Differences from {baseline} were paired by test image; p-values for accuracy are those of a two-sided "
        "permutation test that flips the signs of the differences of groups"
        + (f", with Holm's correction for {len(comparison.pairs)} comparisons." if several else ".")
    )


def _groups(comparison: Comparison) -> Iterator[str]:
    if comparison.results[0].by_group:
        yield "Scores by group use the mean of the predicted probabilities of its test images."


def _software(models: Mapping[str, Facts]) -> Iterator[str]:
    facts = next(iter(models.values()))
    if said := methods.versions(facts.metrics, [one.options.model for one in models.values()]):
        yield said


def _checksums(comparison: Comparison, models: Mapping[str, Facts]) -> Iterator[str]:
    if comparison.images_checksum:
        yield methods.checksum(next(iter(models.values())))
