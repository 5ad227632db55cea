"""The model card of a run: what Hugging Face's reader finds in it, and that it says nothing that is not measured."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fabricated import fabricate
from huggingface_hub import ModelCard
from rich.console import Console

from rsattn.finetune.card import write_card
from rsattn.finetune.run_folder import RunFolder

ODD = ("plain", "a|b", "<b>*bold*</b>", "=2+2\n: x")


def card_of(folder: RunFolder, console: Console) -> ModelCard:
    write_card(folder, console)
    return ModelCard.load(folder.card)


def fabricated(path: Path, **given: Any) -> RunFolder:
    fabricate(path, **given)
    return RunFolder(path)


def tables(text: str) -> dict[str, list[list[str]]]:
    """The tables of a card, by their first column's title; pipes that are escaped do not divide."""
    found: dict[str, list[list[str]]] = {}
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
        assert len({len(row) for row in rows}) == 1, table
        found[rows[0][0]] = [rows[0], *rows[2:]]
    return found


def test_hugging_faces_reader_takes_it(tmp_path: Path, console: Console) -> None:
    folder = fabricated(tmp_path / "run")
    card = card_of(folder, console)
    scores = json.loads(folder.metrics.read_text())["scores"]
    assert card.data.library_name == "rsattn"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.model_name == "resvit (induced, sample, tile)"
    results = {one.metric_type: one for one in card.data.eval_results}
    assert {name: one.metric_value for name, one in results.items()} == {
        "accuracy": scores["accuracy"],
        "balanced_accuracy": scores["balanced_accuracy"],
        "f1": scores["macro"]["f1"],
        "roc_auc": scores["auroc"],
    }
    assert {(one.task_type, one.dataset_name, one.dataset_split) for one in results.values()} == {
        ("image-classification", "images", "test")
    }


def test_the_tables_are_those_of_the_json_files(tmp_path: Path, console: Console) -> None:
    folder = fabricated(tmp_path / "run", per_group=3, left_out=4)
    found = tables(card_of(folder, console).text)
    metrics, data = json.loads(folder.metrics.read_text()), json.loads(folder.data.read_text())
    assert {row[0]: row[1:] for row in found["split"][1:]} == {
        words: [str(sum(counts.values())), str(data["group_counts"][split]), *map(str, counts.values())]
        for split, words in (("train", "training"), ("val", "validation"), ("test", "test"), ("left-out", "left out"))
        for counts in [data["counts"][split]]
    }
    results = {row[0]: row[1:] for row in found["score"][1:]}
    low, high = metrics["intervals"]["accuracy"]
    assert results["Accuracy"] == [f"{metrics['scores']['accuracy']:.3f}", f"{low:.3f} to {high:.3f}"]
    assert results["Brier score"] == [f"{metrics['calibration']['brier']:.3f}", "\u2013"]
    glioma = dict(zip(found["class"][0], found["class"][1]))
    low, high = metrics["intervals"]["per_class"]["glioma"]["recall"]
    recall = metrics["scores"]["per_class"]["glioma"]["recall"]
    assert (glioma["class"], glioma["images"]) == ("glioma", "30")
    assert glioma["sensitivity"] == f"{recall:.3f} ({low:.3f} to {high:.3f})"
    assert dict(found["setting"][1:])["learning rate"] == "0.001"


def test_what_limits_the_result_is_said(tmp_path: Path, console: Console) -> None:
    folder = fabricated(tmp_path / "run", never=["glioma"], notes=["ignored 3 files"], stopped="early stopping")
    text = card_of(folder, console).text
    assert "For research. Not for diagnosis." in text
    for words in ("No test image was classified as glioma", "Ignored 3 files.", "Training stopped early"):
        assert f"- {words}" in text


def test_undefined_scores_and_odd_names_stay_in_their_cells(tmp_path: Path, console: Console) -> None:
    folder = fabricated(tmp_path / "run", classes=ODD, absent=ODD[1:])
    card = card_of(folder, console)
    assert "roc_auc" not in {one.metric_type for one in card.data.eval_results}
    found = tables(card.text)
    assert [row[0] for row in found["class"][1:]] == [
        "plain",
        r"a\|b",
        r"\<b\>\*bold\*\</b\>",
        r"=2+2\\n: x",
    ]
    assert found["class"][2][2] == "\u2013"


def test_no_folder_of_the_machine_is_named(tmp_path: Path, console: Console) -> None:
    folder = fabricated(
        tmp_path / "run",
        per_group=2,
        groups=str(tmp_path / "patients.csv"),
        weights=str(tmp_path / "weights.pt"),
        notes=[
            f"used 1 linked folder: a -> {tmp_path / 'elsewhere'}",
            f"{tmp_path / 'images'} has no test images",
            "kept 1/2 of the images",
        ],
    )
    data = json.loads(folder.data.read_text())
    data["groups"] = f"the groups are those of {tmp_path / 'patients.csv'}: 9 images"
    folder.data.write_text(json.dumps(data))
    write_card(folder, console)
    text = folder.card.read_text()
    assert str(tmp_path) not in text
    assert "the groups are those of patients.csv: 9 images" in text
    assert "- images has no test images." in text
    assert "- Kept 1/2 of the images." in text
    assert "| weights | weights.pt |" in text


def test_a_card_is_written_again_but_not_over_edits(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=1000)
    folder = fabricated(tmp_path / "run")
    write_card(folder, console)
    before = folder.card.read_text()
    metrics = json.loads(folder.metrics.read_text())
    metrics["tested_epoch"] = 4
    folder.metrics.write_text(json.dumps(metrics))
    write_card(folder, console)
    assert folder.card.read_text() == before.replace(*("The weights after epoch " + n for n in "34")).replace(
        before.splitlines()[-1], folder.card.read_text().splitlines()[-1]
    )
    assert not console.file.getvalue()  # type: ignore[attr-defined]
    for edited in (before + "My own words.\n", before.replace("Limits", "My limits"), "# Mine\n", ""):
        folder.card.write_text(edited)
        write_card(folder, console)
        assert folder.card.read_text() == edited
    assert console.file.getvalue().count("README.md was edited, so it stays as it is") == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("residual", [True, False])
def test_only_a_residual_is_called_one(residual: bool, tmp_path: Path, console: Console) -> None:
    folder = fabricated(tmp_path / "run", residual=residual)
    assert ("Its attention has a residual" in card_of(folder, console).text) == residual


def test_external_tests_stand_in_the_card_and_in_its_header(tmp_path: Path, console: Console) -> None:
    """Two hospitals may have folders of the same name, which get a number: the card names no folders above them."""
    folder = fabricated(tmp_path / "run")
    tests = []
    for number, hospital in enumerate(("north", "south"), 1):
        other = fabricated(tmp_path / hospital / "run", seed=number, per_class=10 * number, per_group=5)
        metrics = json.loads(other.metrics.read_text())
        kept = {key: metrics[key] for key in ("scores", "intervals", "calibration")}
        tests.append({"root": str(tmp_path / hospital / "new|scans"), "notes": [f"left out {number} images"], **kept})
    folder.external.write_text(json.dumps({"tests": tests}))
    card = card_of(folder, console)
    head, *rows = tables(card.text)["external test"]
    assert [row[:3] for row in rows] == [[r"new\|scans", "40", "8"], [r"new\|scans (2)", "80", "16"]]
    low, high = tests[0]["intervals"]["auroc"]
    assert dict(zip(head, rows[0]))["AUROC"] == f"{tests[0]['scores']['auroc']:.3f} ({low:.3f} to {high:.3f})"
    assert r"- new\|scans (2): left out 2 images" in card.text
    assert str(tmp_path) not in card.content
    accuracies = [one.metric_value for one in card.data.eval_results if one.metric_type == "accuracy"]
    own = json.loads(folder.metrics.read_text())["scores"]["accuracy"]
    assert accuracies == [own, *(one["scores"]["accuracy"] for one in tests)]
    assert len({(one.dataset_type, one.dataset_name) for one in card.data.eval_results}) == 3


def test_the_license_is_left_to_the_user(tmp_path: Path, console: Console) -> None:
    """A license in the header would be a statement about weights that are the user's."""
    card = card_of(fabricated(tmp_path / "run"), console)
    assert card.data.license is None
    assert "add one to the header of this file" in card.text
    assert "External tests" not in card.text
