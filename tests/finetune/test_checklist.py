"""The items of CLAIM and TRIPOD+AI that a run answers, and those left to the authors."""

from __future__ import annotations

import csv
import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricated import fabricate
from runs import table

from rsattn.finetune.checklist import AUTHORS, COLUMNS, EXTERNAL, ITEMS, answers
from rsattn.finetune.methods import Facts
from rsattn.finetune.options import read_options
from rsattn.finetune.report import write_report
from rsattn.finetune.run_folder import RunFolder

CLAIM = {str(number) for number in range(1, 45)}
LETTERS = {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc", 23: "ab", 27: "abc"}
TRIPOD = {f"{number}{letter}" for number in range(1, 28) for letter in LETTERS.get(number, ("",))}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checklist") / "run"
    fabricate(path, per_group=3)
    return path


@pytest.fixture(scope="module")
def facts(out: Path) -> Facts:
    folder = RunFolder(out)
    return Facts(read_options(folder), json.loads(folder.data.read_text()), json.loads(folder.metrics.read_text()))


def answered(facts: Facts, **metrics: Any) -> dict[str, str]:
    """Topic -> answer."""
    known = replace(facts, metrics={**facts.metrics, **metrics})
    return {one.topic: one.answer for one in answers(known, ["A limit.", "Another."])}


def test_every_item_of_both_checklists_has_its_place(facts: Facts) -> None:
    """CLAIM 2024 has 44 items, TRIPOD+AI 27 with 52 parts; item 40 and 26 are the limits, which `answers` adds."""
    rows = [*ITEMS, *AUTHORS]
    assert {item for row in rows for item in row.claim.split(", ") if item} == CLAIM
    assert len(TRIPOD) == 52
    assert {item for row in rows for item in row.tripod.split(", ") if item} == TRIPOD
    assert {"A limit. Another."} == {
        one.answer for one in answers(facts, ["A limit.", "Another."]) if one.claim == "40"
    }


@pytest.mark.parametrize(
    ("drawn", "source", "level"),
    [
        (["test", "val"], "from the same source as the training images.", "without regard to the patient"),
        ([], "Say whether they are from the same source", "images of one patient can be in different splits"),
    ],
)
def test_nothing_is_claimed_about_splits_that_were_given_with_the_data(
    facts: Facts, drawn: list[str], source: str, level: str
) -> None:
    options = replace(facts.options, groups=None)
    known = {
        one.topic: one.answer for one in answers(Facts(options, {**facts.data, "drawn": drawn}, facts.metrics), [])
    }
    assert source in known["Test on internal data"]
    assert level in known["Level at which the splits are disjoint"]


def test_answers_have_the_numbers_of_the_run(facts: Facts, out: Path) -> None:
    said, scores = answered(facts), facts.metrics["scores"]
    wrong = [row for row in table(RunFolder(out).predictions) if row["label"] != row["predicted"]]
    assert f"{len(wrong)} wrong predictions of 120" in said["Failures"]
    low, high = facts.metrics["intervals"]["accuracy"]
    assert f"accuracy {scores['accuracy']:.3f} [{low:.3f} to {high:.3f}]" in said["Performance"]
    one = scores["per_class"]["glioma"]
    assert f"glioma (sensitivity {one['recall']:.3f} [" in said["Diagnostic performance of each class"]
    assert f"specificity {one['specificity']:.3f} [" in said["Diagnostic performance of each class"]
    assert f"(40): accuracy {facts.metrics['by_group']['scores']['accuracy']:.3f}" in said["Performance"]
    assert "test: 120 images in 40 groups (glioma 30, " in said["Numbers of images and groups"]
    assert f"{facts.metrics['calibration']['ece']:.3f}" in said["Calibration"]
    first = facts.metrics["thresholds"][0]
    assert f"glioma {first['threshold']:.3f} (largest sensitivity + specificity)" in said["Output of the model"]


def test_the_most_frequent_confusion_is_named(facts: Facts) -> None:
    confusion = [[28, 2, 0, 0], [0, 30, 0, 0], [0, 0, 25, 5], [1, 0, 0, 29]]
    said = answered(facts, scores={**facts.metrics["scores"], "confusion": confusion})
    assert "8 wrong predictions of 120; most often no tumour was taken for pituitary (5)" in said["Failures"]
    perfect = [[30 * (row == column) for column in range(4)] for row in range(4)]
    said = answered(facts, scores={**facts.metrics["scores"], "confusion": perfect})
    assert said["Failures"] == "No prediction was wrong."


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "No near-identical images were found in different splits."),
        (None, "were not looked for"),
        (
            [{"split": "test", "other": "train", "images": 3, "of": 120}],
            "3 of 120 test images look the same as a training image.",
        ),
    ],
)
def test_near_identical_images_are_told(facts: Facts, found: Any, said: str) -> None:
    assert said in answered(facts, near_identical=found)["Level at which the splits are disjoint"]


def test_an_item_that_the_run_did_not_record_is_left_out(facts: Facts) -> None:
    assert "Changes of the model after training" not in answered(facts)  # no temperature was fitted
    fitted = {**facts.metrics["calibration"], "temperature": 2.5}
    assert "(temperature 2.5)" in answered(facts, calibration=fitted)["Changes of the model after training"]


def test_the_report_and_the_csv_file_have_the_answers(out: Path) -> None:
    folder = RunFolder(out)
    page = write_report(folder.path).read_text(encoding="utf-8")
    with folder.checklist.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert tuple(head) == COLUMNS
    filled = [row for row in rows if row[3]]
    assert len(rows) - len(filled) == len(AUTHORS)
    assert len(filled) > 20
    assert all(html.escape(row[3], quote=False) in page.replace("&#34;", '"').replace("&#39;", "'") for row in filled)
    assert all(one.topic in page for one in AUTHORS)


def external(facts: Facts, **changes: Any) -> dict[str, str]:
    """Topic -> answer of a test on outside images."""
    shift = [
        {"name": "accuracy", "difference": {"value": -0.125, "interval": [-0.25, 0.01]}},
        {"name": "log loss", "difference": {"value": 0.3, "interval": None}},
    ]
    pixels = {"inside": {"brightness": 0.5}, "outside": {"brightness": 0.25}}
    return answered(
        facts, external={"run": "run", "groups": 9, "images": 9, "shift": shift, "pixels": pixels}, **changes
    )


def test_an_external_test_answers_items_of_its_own(facts: Facts) -> None:
    said = external(facts, near_identical=[])
    assert said["Test on external data"].startswith("120 images of images; the run's own test split had 9 images. ")
    assert "brightness 0.500 and 0.250" in said["Test on external data"]
    assert said["Difference from the run's own test split"] == (
        "External test minus the run's own test split, with 95% intervals: accuracy -0.125 [-0.250 to +0.010]."
    )
    assert not set(said) & {"Training", "Initial weights", "How images were assigned to splits"}
    items = {item for one in EXTERNAL for item in one.claim.split(", ") if item}
    assert items <= CLAIM
    assert {item for one in EXTERNAL for item in one.tripod.split(", ") if item} <= TRIPOD


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "No outside images look the same"),
        (None, "is not known"),
        ([{"split": "test", "other": "train", "images": 1, "of": 120}], "1 outside image looks the same"),
        ([{"split": "test", "other": "test", "images": 3, "of": 120}], "No outside images look the same"),
    ],
)
def test_outside_images_that_the_training_has_seen_are_told(facts: Facts, found: Any, said: str) -> None:
    assert said in external(facts, near_identical=found)["Outside images that the training has seen"]


def test_only_a_run_says_that_its_test_images_were_not_used(facts: Facts) -> None:
    """The folder that `rsattn test` gets may be that of the training."""
    unused = "used neither for training nor for a choice"
    assert unused in answered(facts)["Test on internal data"]
    assert not any(unused in answer for answer in external(facts).values())
