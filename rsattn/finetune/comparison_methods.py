"""A methods paragraph for a paper: how the models of a comparison were trained, tested and compared.

Each function writes one sentence, or none where the runs recorded nothing on its topic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..cli.gray import ends_of
from .augmentation import described
from .auroc_intervals import RESAMPLES
from .compared_run import Run
from .comparison import Comparison
from .folders import counted, in_words

RESIDUAL = "Sharma and Verma, arXiv:2306.01594"
PACKAGES = ("rsattn", "torch", "lightning", "timm", "torchvision", "pytorch_pretrained_vit", "python")
SPLITS = {"train": "training", "val": "validation", "test": "testing"}
NUMBERS = dict(enumerate(("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"), 1))


def paragraph(comparison: Comparison, runs: Sequence[Run]) -> str:
    """The paragraph, in the past tense.

    Args:
        comparison: the summary of the runs.
        runs: the finished runs.
    """
    return " ".join(
        [
            _models(comparison),
            *_residual(comparison),
            *_weights(comparison),
            *_data(comparison, runs),
            _repeats(comparison),
            *_splits(runs),
            _images(comparison),
            _training(comparison),
            *_differing_training(comparison),
            _tested_weights(comparison),
            _intervals(comparison),
            *_differences(comparison),
            *_groups(comparison),
            *_software(runs),
            *_checksums(comparison),
        ]
    )


def _models(comparison: Comparison) -> str:
    models = [f"{result.label} ({result.parameters:,} parameters)" for result in comparison.results]
    number = len(models)
    were = "model was" if number == 1 else "models were"
    return f"{NUMBERS.get(number, number)} {were} trained: {in_words(models, 'and')}."


def _residual(comparison: Comparison) -> Iterator[str]:
    for result in comparison.results:
        options = result.options
        if options["model"] == "resvit" or options["patch"]:
            gate = options.get("init_values")
            yield (
                f"{result.label} had residual self-attention ({RESIDUAL}; norm {options['norm']}, scope "
                f"{options['scope']}, merge {options['merge']}, "
                + ("no gate)." if gate is None else f"initial value of the gate {gate:g}).")
            )


def _weights(comparison: Comparison) -> Iterator[str]:
    words = {"none": "random", "pretrained": "pretrained"}
    used = {result.label: str(result.options["weights"]) for result in comparison.results}
    for weights in dict.fromkeys(used.values()):
        labels = [label for label, own in used.items() if own == weights]
        what = f"{words[weights]} weights" if weights in words else f"the weights {weights}"
        yield f"{in_words(labels, 'and')} started from {what}."


def _data(comparison: Comparison, runs: Sequence[Run]) -> Iterator[str]:
    data = runs[0].data
    if not data.get("counts"):
        return
    counts = data["counts"]
    classes = [f"{name}, {sum(split.get(name, 0) for split in counts.values())}" for name in data["classes"]]
    images = sum(sum(split.values()) for split in counts.values())
    said = f"The data were {counted(images, 'image')} of {len(classes)} classes ({'; '.join(classes)})"
    yield said + (f"; {data['groups']}." if data.get("groups") else ".")


def _repeats(comparison: Comparison) -> str:
    if comparison.folds:
        return (
            f"The models were compared by {comparison.folds}-fold cross-validation, stratified by class and with each "
            "group of images in one fold; every image was tested once, and a part of the other folds served for "
            "validation."
        )
    numbers = in_words([str(seed) for seed in comparison.test_splits], "and")
    if len(comparison.test_splits) == 1:
        return f"Each model was trained with the seed {numbers}; no group of images was divided between splits."
    times = "twice" if len(comparison.test_splits) == 2 else f"{len(comparison.test_splits)} times"
    return (
        f"Each model was trained {times}, with the seeds {numbers}; with one seed, all "
        "models had the same splits, and no group of images was divided between splits."
    )


def _splits(runs: Sequence[Run]) -> Iterator[str]:
    every = [run.data for run in runs if run.data.get("counts")]
    if not every:
        return
    sizes = []
    for split, name in SPLITS.items():
        images = _span([sum(data["counts"].get(split, {}).values()) for data in every])
        groups = _span([data.get("group_counts", {}).get(split, 0) for data in every])
        sizes.append(f"{images} images in {groups} groups for {name}")
    yield f"A run used {in_words(sizes, 'and')}."


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _images(comparison: Comparison) -> str:
    done = {"squash": "resized", "pad": "padded with black to a square and resized", "crop": "cropped and resized"}
    options = comparison.results[0].options
    sides = in_words([f"{side} x {side}" for side in _values(comparison, "image_size")], "or")
    augmented = in_words([described(name) for name in _values(comparison, "augment")], "or")
    resized = done[options.get("resize", "squash")]
    changes = "not augmented" if augmented == "none" else f"augmented at random ({augmented})"
    window = options.get("window")  # one for all models
    low, high = ends_of(window) if window else (0, 0)
    gray = f"Values from {low:g} to {high:g} became gray levels from 0 to 255. " if window else ""
    return f"{gray}Images were {resized} to {sides} pixels; training images were {changes}."


CHOSEN_RATE = "the one of three with the lowest validation loss, around"
SWITCHES = {
    "class_weights": "a loss weighted by the inverse of the number of images of each class",
    "head_first": "a classifier that was first fitted to the features of the initial model",
    "freeze": "all layers but the classifier and newly initialized attention frozen",
}


def _training(comparison: Comparison) -> str:
    """What is equal for all models."""
    words = {
        "learning_rate": "a peak learning rate of {:g}",
        "weight_decay": "weight decay {:g}",
        "batch_size": "batches of {} images",
        "label_smoothing": "label smoothing {:g}",
        "layer_decay": "layer-wise decay {:g}",
        "drop_path": "stochastic depth {:g}",
        "dropout": "dropout {:g}",
        "clip": "gradients clipped to norm {:g}",
    }
    off = {"label_smoothing": 0.0, "layer_decay": 1.0, "drop_path": 0.0, "dropout": 0.0, "clip": 0.0}
    said = []
    for name, text in words.items():
        values = _values(comparison, name)
        if len(values) == 1 and values[0] is not None and values[0] != off.get(name):
            chosen = name == "learning_rate" and _values(comparison, "lr_auto") == [True]
            said.append(
                f"a peak learning rate that was {CHOSEN_RATE} {values[0]:g}" if chosen else text.format(values[0])
            )
    said += [words for name, words in SWITCHES.items() if _values(comparison, name) == [True]]
    return f"Training used AdamW with {in_words([*said, 'a cosine schedule with linear warm-up'], 'and')}."


def _differing_training(comparison: Comparison) -> Iterator[str]:
    names = {"learning_rate": "peak learning rate", "layer_decay": "layer-wise decay", "drop_path": "stochastic depth"}
    for name, words in {**names, "dropout": "dropout", "batch_size": "batch size", "freeze": "freezing"}.items():
        if len(_values(comparison, name)) > 1:
            each = [f"{_setting(result.options, name)} for {result.label}" for result in comparison.results]
            yield f"The {words} was {in_words(each, 'and')}."


def _setting(options: Mapping[str, Any], name: str) -> str:
    value = options.get(name)
    return f"{CHOSEN_RATE} {value:g}" if name == "learning_rate" and options.get("lr_auto") else str(value)


def _tested_weights(comparison: Comparison) -> str:
    kept = {"last": "after the last epoch", "best": "of the epoch with the lowest validation loss"}
    used = {result.label: kept[result.options["keep"]] for result in comparison.results}
    which = list(dict.fromkeys(used.values()))
    if len(which) > 1:
        of = {words: in_words([label for label, own in used.items() if own == words], "and") for words in which}
        which = [f"{words} ({labels})" for words, labels in of.items()]
    epochs = in_words([str(number) for number in _values(comparison, "epochs")], "or")
    steps = max(result.options.get("least_steps", 0) for result in comparison.results)
    more = f", or more to reach {steps} steps" if steps else ""
    return f"Models were trained for {epochs} epochs{more}, and the weights {in_words(which, 'or')} were tested."


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


def _software(runs: Sequence[Run]) -> Iterator[str]:
    metrics = runs[0].metrics
    versions: Mapping[str, Any] = metrics.get("versions", {})
    if used := [f"{name} {versions[name]}" for name in PACKAGES if name in versions]:
        device = f", on {metrics['device']}" if metrics.get("device") else ""
        yield f"Software: {', '.join(used)}{device}."


def _checksums(comparison: Comparison) -> Iterator[str]:
    if comparison.images_checksum:
        yield f"The SHA-256 checksum of the images was {comparison.images_checksum}."


def _values(comparison: Comparison, name: str) -> list[Any]:
    """The different values of an option, in the order of the models."""
    return list(dict.fromkeys(result.options.get(name) for result in comparison.results))
