"""What a run answers of two reporting checklists, and what only the authors of a paper can answer.

CLAIM 2024: Tejani et al., "Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update", Radiology:
Artificial Intelligence 2024;6(4):e240300, items 1 to 44. TRIPOD+AI: Collins et al., BMJ 2024;385:e078378, items 1 to
27c. The descriptions of the items are ours, not those of the checklists.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cli.command import shown
from . import methods
from .cells import as_cell
from .contents import csv_file
from .metadata import base_name
from .methods import SPLITS, Facts
from .options import is_residual
from .thresholds import RULES
from .wording import counted, some

COLUMNS = ("CLAIM 2024", "TRIPOD+AI", "topic", "answer")


@dataclass(frozen=True)
class Item:
    """A topic of the checklists that a run can answer.

    Attributes:
        claim, tripod: the items of each checklist, such as "19" and "12a"; empty where it has none.
        topic: a short description.
        answer: the answer of a run; empty where the run did not record it.
    """

    claim: str
    tripod: str
    topic: str
    answer: Callable[[Facts], str]


@dataclass(frozen=True)
class Answer:
    """A row of the table; `answer` is empty where only the authors can answer."""

    claim: str
    tripod: str
    topic: str
    answer: str = ""


def answers(facts: Facts, limits: Iterable[str]) -> list[Answer]:
    """The items that a run answers, in the order of `ITEMS`, or `rsattn test`, in that of `EXTERNAL`.

    Args:
        limits: sentences on what limits the result, as in the report.
    """
    items = EXTERNAL if "external" in facts.metrics else ITEMS
    found = [Answer(item.claim, item.tripod, item.topic, item.answer(facts)) for item in items]
    found.append(Answer("40", "26", "Limits that the run knows", " ".join(limits)))
    return [one for one in found if one.answer]


def write_checklist(path: Path, answered: Sequence[Answer], asked: Sequence[Answer]) -> None:
    """Write a CSV file with the answers, and then the topics of `asked` with empty ones to fill in.

    Raises:
        CommandError: the file cannot be written.
    """
    with csv_file(path) as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for one in (*answered, *asked):
            rows.writerow(map(as_cell, (one.claim, one.tripod, one.topic, one.answer)))


def sizes(facts: Facts) -> str:
    """Images, groups and classes of each split."""
    counts, groups = facts.data["counts"], facts.data["group_counts"]
    each = [
        f"{words}: {counted(sum(counts[split].values()), 'image')} in {counted(groups[split], 'group')} "
        f"({some([f'{shown(name)} {number}' for name, number in counts[split].items()])})"
        for split, words in {**SPLITS, "left-out": "left out"}.items()
        if split in counts
    ]
    return _joined(f"{'; '.join(each)}.", methods.excluded(facts))


def excluded(facts: Facts) -> str:
    """Files that were left out, also where there are none."""
    return _joined(methods.excluded(facts) or "All files of images could be read.", methods.left_out(facts))


def disjoint(facts: Facts) -> str:
    """What a split never shares, and near-identical images that it does share."""
    alike = facts.metrics.get("near_identical")
    if alike is None:
        known = "near_identical" in facts.metrics  # runs of earlier versions lack it
        checked = "Near-identical images in different splits were not looked for." if known else ""
    elif not alike:
        checked = "No near-identical images were found in different splits."
    else:
        pairs = [
            f"{one['images']} of {one['of']} {SPLITS[one['split']]} images look the same as a {SPLITS[one['other']]} "
            "image"
            for one in alike
        ]
        checked = f"{'; '.join(pairs)}."
    return _joined(methods.grouping(facts), checked)


def imbalance(facts: Facts) -> str:
    """What was done about classes of different size."""
    majority = facts.metrics["scores"]["majority"]
    done = "weighted the classes" if facts.options.class_weights else "did not weight the classes"
    return (
        f"The loss {done}. Always answering {shown(majority['class'])}, the most frequent class of the test split, has "
        f"an accuracy of {_percent(majority['accuracy'])}."
    )


def explained(facts: Facts) -> str:
    """The maps of the report."""
    maps = "Grad-CAM and the attention of the best head" if is_residual(facts.options) else "Grad-CAM"
    return f"The report shows {maps} for some test images; whether the maps are right was not tested."


def tested(facts: Facts) -> str:
    """The test split; a run knows that it is from the source of the training images only where it drew it from them."""
    images = f"{counted(facts.metrics['scores']['images'], 'image')} of the test split"
    if "test" in facts.data.get("drawn", ()):
        return f"{images}, from the same source as the training images."
    return f"{images}. Say whether they are from the same source as the training images."


def tested_outside(facts: Facts) -> str:
    """The external test, beside the test on images of the same source."""
    external = facts.metrics["external"]
    inside = counted(external["images"], "image")
    return _joined(
        f"{counted(facts.metrics['scores']['images'], 'image')} of {shown(base_name(facts.data['root']))}; the "
        f"run's own test split had {inside}.",
        "The model, its temperature and its thresholds were those of the run.",
        _pixels(external["pixels"]),
    )


def _pixels(pixels: Mapping[str, Any]) -> str:
    if not pixels["inside"]:
        return ""
    words = [f"{name} {pixels['inside'][name]:.3f} and {pixels['outside'][name]:.3f}" for name in pixels["outside"]]
    return f"Means over the images of the run's test split and the outside images, from 0 to 1: {'; '.join(words)}."


def shifted(facts: Facts) -> str:
    """The scores of the external test minus those of the test split."""
    words = []
    for row in facts.metrics["external"]["shift"]:
        value, interval = row["difference"]["value"], row["difference"]["interval"]
        if value is not None and interval is not None:
            words.append(f"{shown(row['name'])} {value:+.3f} [{interval[0]:+.3f} to {interval[1]:+.3f}]")
    return f"External test minus the run's own test split, with 95% intervals: {', '.join(words)}." if words else ""


def seen(facts: Facts) -> str:
    """Outside images that the training has seen, as far as that can be found out."""
    alike = facts.metrics.get("near_identical")
    if alike is None:
        return "Whether outside images look the same as a training image is not known."
    number = sum(one["images"] for one in alike if (one["split"], one["other"]) == ("test", "train"))
    look = "image looks" if number == 1 else "images look"
    return f"{number or 'No'} outside {look} the same as a training image."


def output(facts: Facts) -> str:
    """Probabilities, and thresholds on them."""
    classes = [shown(name) for name in facts.data["classes"]]
    chosen = [
        f"{shown(one['class'])} {one['threshold']:.3f} ({RULES[one['rule']]})"
        for one in facts.metrics.get("thresholds", ())
    ]
    return _joined(
        f"A probability for each class ({some(classes)}), from the softmax of the logits; the predicted class has the "
        "highest one.",
        methods.temperature(facts),
        f"Thresholds, chosen on the validation split: {some(chosen)}." if chosen else "",
    )


def performance(facts: Facts) -> str:
    """Scores of the test split with their intervals."""
    scores, spread = facts.metrics["scores"], facts.metrics.get("intervals", {})
    overall = {
        "accuracy": scores["accuracy"],
        "balanced accuracy": scores["balanced_accuracy"],
        "macro F1": scores["macro"]["f1"],
        "AUROC": scores.get("auroc"),
    }
    keys = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
    said = [f"{name} {_with(value, spread.get(key))}" for (name, value), key in zip(overall.items(), keys)]
    return f"With 95% intervals: {', '.join(said)}."


def by_class(facts: Facts) -> str:
    """Sensitivity and specificity of each class."""
    scores, spread = facts.metrics["scores"]["per_class"], facts.metrics.get("intervals", {}).get("per_class", {})
    said = []
    for name, one in scores.items():
        own = spread.get(name, {})
        sensitivity, specificity = (_with(one.get(key), own.get(key)) for key in ("recall", "specificity"))
        said.append(f"{shown(name)} (sensitivity {sensitivity}, specificity {specificity})")
    return f"With 95% intervals: {some(said)}."


def by_group(facts: Facts) -> str:
    """The accuracy of the mean prediction of each group."""
    found: dict[str, Any] | None = facts.metrics.get("by_group")
    if not found:
        return ""
    accuracy = _with(found["scores"]["accuracy"], found["intervals"]["accuracy"])
    return f"With one prediction for each group of test images ({found['groups']}): accuracy {accuracy}."


def calibrated(facts: Facts) -> str:
    """Calibration on the test split."""
    found: dict[str, Any] | None = facts.metrics.get("calibration")
    if not found:
        return ""
    return f"Expected calibration error {found['ece']:.3f}, Brier score {found['brier']:.3f}."


def failures(facts: Facts) -> str:
    """The wrong predictions, and the two classes that were confused most."""
    confusion, classes = facts.metrics["scores"]["confusion"], facts.data["classes"]
    wrong = {
        (row, column): number
        for row, numbers in enumerate(confusion)
        for column, number in enumerate(numbers)
        if number and row != column
    }
    if not wrong:
        return "No prediction was wrong."
    row, column = max(wrong, key=wrong.__getitem__)
    return (
        f"{counted(sum(wrong.values()), 'wrong prediction')} of {facts.metrics['scores']['images']}; most often "
        f"{shown(classes[row])} was taken for {shown(classes[column])} ({wrong[row, column]}). The report shows the "
        "most confident mistakes."
    )


def identified(facts: Facts) -> str:
    """The files and checksums that identify data and weights."""
    return _joined(
        methods.checksum(facts),
        "split.csv names the split of each image, model.safetensors has the tested weights, and config.json repeats "
        "the run.",
    )


def _all_of(*sentences: Callable[[Facts], str]) -> Callable[[Facts], str]:
    return lambda facts: _joined(*(sentence(facts) for sentence in sentences))


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _with(value: float | None, interval: Sequence[float] | None) -> str:
    """A score from 0 to 1 with its interval."""
    if value is None:
        return "undefined"
    ends = "" if interval is None else f" [{interval[0]:.3f} to {interval[1]:.3f}]"
    return f"{value:.3f}{ends}"


ITEMS = (
    Item("9", "7", "Preparation of the images", methods.preprocessing),
    Item("10, 12", "11", "Files and images left out", excluded),
    Item("19", "12a", "How images were assigned to splits", _all_of(methods.splits, methods.assignment)),
    Item("20", "12a", "Level at which the splits are disjoint", disjoint),
    Item("22", "12b, 12c, 22", "Model", _all_of(methods.architecture, methods.residual, methods.without_residual)),
    Item("", "12g, 15", "Output of the model", output),
    Item("23", "", "Software and device", methods.software),
    Item("24", "12c", "Initial weights", methods.initial_weights),
    Item(
        "25",
        "12c",
        "Training",
        _all_of(
            methods.augmentation,
            methods.trained_parts,
            methods.head_first,
            methods.optimizer,
            methods.learning_rate,
            methods.regularization,
        ),
    ),
    Item("", "13", "Class imbalance", imbalance),
    Item("26", "12c", "Choice of the tested weights", methods.selection),
    Item("27", "12c", "Ensemble", lambda _: "None: one model was trained and tested."),
    Item("28", "12e", "Measures of performance", methods.measures),
    Item("29", "12e", "Uncertainty of the measures", methods.intervals),
    Item("31", "", "Explanation of predictions", explained),
    Item("32", "12a", "Test on internal data", _all_of(tested, methods.held_out)),
    Item("35", "20a, 21", "Numbers of images and groups", sizes),
    Item("37", "23a", "Performance", _all_of(performance, by_group)),
    Item("37", "23a", "Calibration", calibrated),
    Item("38", "23a", "Diagnostic performance of each class", by_class),
    Item("", "12f, 24", "Changes of the model after training", methods.temperature),
    Item("39", "", "Failures", failures),
    Item("43", "18e", "Identity of data and weights", identified),
)

# A test on images from elsewhere trains nothing; the checklist of the run has the other items.
EXTERNAL = (
    Item("9", "7", "Preparation of the images", methods.preprocessing),
    Item("10, 12", "11", "Files and images left out", excluded),
    Item("20", "12a", "Outside images that the training has seen", seen),
    Item("23", "", "Software and device", methods.software),
    Item("28", "12e", "Measures of performance", methods.measures),
    Item("29", "12e", "Uncertainty of the measures", methods.intervals),
    Item("33", "12a, 16, 20c", "Test on external data", tested_outside),
    Item("35", "20a, 21", "Numbers of images and groups", sizes),
    Item("37", "23a", "Performance", _all_of(performance, by_group)),
    Item("37", "23a, 23b", "Difference from the run's own test split", shifted),
    Item("37", "23a", "Calibration", calibrated),
    Item("38", "23a", "Diagnostic performance of each class", by_class),
    Item("", "24", "Changes of the model for this test", lambda _: "None: it was tested as it was after its run."),
    Item("39", "", "Failures", failures),
)

AUTHORS = (
    Answer("1", "1", "Title: that the study develops or tests an AI model, the patients and the outcome"),
    Answer("2", "2", "Structured abstract"),
    Answer("3", "3a, 3b", "Background: clinical problem, intended use and users, earlier models"),
    Answer("", "3c, 14", "Known health inequalities, and whether the model is fair to the groups of patients"),
    Answer("4", "4", "Objectives and hypotheses"),
    Answer("5, 6", "", "Prospective or retrospective design, and the goal of the study"),
    Answer("7", "5a, 5b, 6a", "Sources of the data, dates, number of centers, and how representative they are"),
    Answer("8", "6b, 6c", "Inclusion and exclusion criteria, and treatments"),
    Answer("11", "", "How the images were de-identified"),
    Answer("13", "9a, 9b, 9c", "How the images were acquired (scanner, protocol, stain) and why they are the input"),
    Answer("14, 15", "8a", "Reference standard: how the labels were made, and why in this way"),
    Answer("16, 17", "8b, 8c", "Who made the labels, also those of the test split, and what they knew"),
    Answer("18", "", "Agreement between and within annotators"),
    Answer("21", "10", "Intended sample size, and what it is based on"),
    Answer("30", "12d, 23b", "Robustness: other scanners, centers and groups of patients, with results for each"),
    Answer("33", "16, 20c", "Test on external data, and how they differ (`rsattn test RUN FOLDER`)"),
    Answer("34, 42", "18c, 18d", "Registration and protocol of the study"),
    Answer("", "17", "Approval by an ethics committee, and consent"),
    Answer("", "19", "Involvement of patients and the public"),
    Answer("35, 36", "20a, 20b", "Flow of patients, and their characteristics in each split"),
    Answer("40", "26", "Limitations of the study beyond those of the run"),
    Answer(
        "41", "25, 27a, 27b, 27c", "Interpretation, role in practice, bad input images, required skills, next steps"
    ),
    Answer("43", "18e, 18f", "Where the data, the code and the model can be found"),
    Answer("44", "18a, 18b", "Funding, role of the funders, and conflicts of interest"),
)
