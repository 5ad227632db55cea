"""`rsattn test`: a finished run on images from elsewhere."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from runs import MakeOptions, table

from rsattn.cli.command import CommandError
from rsattn.cli.main import parsed
from rsattn.finetune import external, running
from rsattn.finetune.evaluation import evaluate
from rsattn.finetune.exporting import export
from rsattn.finetune.external import score_outside
from rsattn.finetune.options import read_options
from rsattn.finetune.prediction import predict
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.shift import difference
from rsattn.finetune.splits import Splits

NAMES = {"horizontal": "across", "vertical": "down"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def trained(run: Path, make_options: MakeOptions, console: Console) -> Path:
    """A finished run, trained once for all tests of this file."""
    if not run.exists():
        running.run(make_options(out=str(run), epochs=6), console)
    return run


@pytest.fixture
def outside(tmp_path: Path, stripes: Path) -> Path:
    """Darker stripes with class folders of other names."""
    root = tmp_path / "outside"
    for name, label in NAMES.items():
        (root / name).mkdir(parents=True)
        for file in sorted((stripes / label).glob("*.png"))[:12]:
            pixels = np.asarray(Image.open(file)) // 2
            Image.fromarray(np.roll(pixels, 1, (0, 1))).save(root / name / file.name)
    return root


def metrics_of(folder: Path) -> Any:
    return json.loads(RunFolder(folder).metrics.read_text())


def test_its_result_stands_beside_that_of_the_run(
    trained: Path, outside: Path, tmp_path: Path, console: Console
) -> None:
    out = tmp_path / "out"
    score_outside(trained, outside, NAMES, None, out, console)
    inside, found = metrics_of(trained), metrics_of(out)
    assert found["scores"]["images"] == 24
    assert found["splits"] == {"test": {"images": 24, "groups": 24, "classes": {"across": 12, "down": 12}}}
    with RunFolder(out).predictions.open() as file:
        rows = list(csv.DictReader(file))
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert found["scores"]["accuracy"] == pytest.approx(right / 24)
    shift = {row["name"]: row for row in found["external"]["shift"]}
    assert shift["accuracy"]["inside"]["value"] == inside["scores"]["accuracy"]
    assert shift["accuracy"]["difference"]["value"] == pytest.approx(right / 24 - inside["scores"]["accuracy"])
    with RunFolder(out).checklist.open(newline="") as file:
        answers = {row["topic"]: row["answer"] for row in csv.DictReader(file)}
    assert answers["Test on external data"].startswith("24 images of outside; the run's own ")
    assert answers["Numbers of images and groups"] == "test: 24 images in 24 groups (across 12, down 12)."
    page = RunFolder(out).report.read_text()
    assert "What this test answers" in page
    assert "What only you can answer" not in page
    pixels = found["external"]["pixels"]
    assert pixels["outside"]["brightness"] == pytest.approx(pixels["inside"]["brightness"] / 2, abs=0.02)
    chosen = [(one["class"], one["rule"], one["threshold"]) for one in inside["thresholds"]]
    assert [(one["class"], one["rule"], one["threshold"]) for one in found["thresholds"]] == chosen
    assert found["calibration"]["temperature"] == inside["calibration"]["temperature"]
    page = RunFolder(out).report.read_text()
    assert "external test" in page
    assert "Beside the run&#39;s own test split" in page or "Beside the run's own test split" in page
    assert 'id="training"' not in page
    with pytest.raises(CommandError, match=r"exists already and is not overwritten: choose another --out"):
        score_outside(trained, outside, NAMES, None, out, console)


def test_images_of_the_training_are_said_to_be_no_external_test(
    trained: Path, stripes: Path, tmp_path: Path, console: Console
) -> None:
    score_outside(trained, stripes, {}, None, tmp_path / "out", console)
    data = json.loads(RunFolder(tmp_path / "out").data.read_text())
    assert any("outside images look the same as a training image" in note for note in data["notes"])
    assert "so they are no external test" in RunFolder(tmp_path / "out").report.read_text()


def test_damaged_images_are_left_out_and_named(trained: Path, outside: Path, tmp_path: Path, console: Console) -> None:
    (outside / "vertical" / "broken.png").write_bytes(b"no image")
    score_outside(trained, outside, NAMES, None, tmp_path / "out", console)
    assert metrics_of(tmp_path / "out")["scores"]["images"] == 24
    page = RunFolder(tmp_path / "out").report.read_text()
    assert "1 damaged image left out" in page
    assert "broken.png" in page


def test_a_folder_that_is_unknown_is_mapped_or_left_out(
    trained: Path, outside: Path, tmp_path: Path, console: Console
) -> None:
    shutil.copytree(outside / "vertical", outside / "diagonal")
    out = tmp_path / "out"
    with pytest.raises(CommandError) as refused:
        score_outside(trained, outside, NAMES, None, out, console)
    assert str(refused.value) == (
        f"{outside} has the class folder diagonal, and the classes of the run are across, down: say which class each "
        "is with --map diagonal=CLASS, or leave it out with --map diagonal="
    )
    assert not out.exists()
    score_outside(trained, outside, {**NAMES, "diagonal": ""}, None, out, console)
    assert metrics_of(out)["scores"]["images"] == 24
    assert "left out 12 images of diagonal" in console.file.getvalue()  # type: ignore[attr-defined]


def flat(root: Path) -> None:
    for folder in root.iterdir():
        for file in list(folder.iterdir()):
            file.rename(root / f"{folder.name}{file.name}")
        folder.rmdir()


def broken(root: Path) -> None:
    for file in root.glob("*/*"):
        file.write_bytes(b"no image")


@pytest.mark.parametrize(
    ("spoil", "names", "words"),
    [
        (flat, NAMES, r"are not in class folders: .*; `rsattn predict` classifies images without labels"),
        (broken, NAMES, r"none of the 24 images in .* can be read; for example: .*00.png is not an image"),
        (None, {**NAMES, "oblique": "down"}, r"--map oblique=...: .* has no class folder oblique; it has horizontal"),
        (None, {**NAMES, "vertical": "up"}, r"--map ...=up: the classes of the run are across, down"),
        (None, dict.fromkeys(NAMES, ""), r"--map leaves out all images of .*: keep those of one class at least"),
    ],
    ids=["unlabelled", "all damaged", "no such folder", "no such class", "none left"],
)
def test_what_cannot_be_tested_is_refused_in_one_line(
    trained: Path, outside: Path, tmp_path: Path, console: Console, spoil: Any, names: dict[str, str], words: str
) -> None:
    if spoil is not None:
        spoil(outside)
    with pytest.raises(CommandError, match=words) as refused:
        score_outside(trained, outside, names, None, tmp_path / "out", console)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("left_out", [False, True], ids=["one folder", "the other one left out"])
def test_images_of_one_class_have_a_sensitivity_and_a_calibration(
    left_out: bool, trained: Path, outside: Path, tmp_path: Path, console: Console
) -> None:
    names = {**NAMES, "vertical": ""} if left_out else {"horizontal": "across"}
    if not left_out:
        shutil.rmtree(outside / "vertical")
    lines = [f"horizontal/{number:02}.png,p{number // 2}" for number in range(12)]
    (tmp_path / "groups.csv").write_text("\n".join(["file,group", *lines]) + "\n")
    out = RunFolder(tmp_path / "out")
    score_outside(trained, outside, names, str(tmp_path / "groups.csv"), out.path, console)
    rows = table(out.predictions)
    right = sum(row["predicted"] == "across" for row in rows)
    found, inside = metrics_of(out.path), metrics_of(trained)
    for of in (found, found["by_group"]):
        scores, across = of["scores"], of["scores"]["per_class"]["across"]
        assert across["recall"] == scores["accuracy"] == scores["macro"]["recall"]
        nothing = ("specificity", "precision", "f1", "auroc", "average_precision")
        assert [across[name] for name in nothing] == [None] * 5
        assert [of["intervals"]["per_class"]["across"][name] for name in nothing] == [None] * 5
        macro = scores["macro"]
        assert [scores["balanced_accuracy"], scores["auroc"], macro["precision"], macro["f1"]] == [None] * 4
        assert [of["intervals"][name] for name in ("balanced_accuracy", "macro_f1", "auroc")] == [None] * 3
    assert (len(rows), found["by_group"]["groups"]) == (12, 6)
    assert found["scores"]["accuracy"] == pytest.approx(right / 12)
    low, high = found["intervals"]["per_class"]["across"]["recall"]
    assert low <= right / 12 <= high
    brier = np.mean([float(row["p_down"]) ** 2 for row in rows])  # of two classes, that of the second
    assert found["calibration"]["brier"] == pytest.approx(brier, abs=1e-5)
    assert {one["ppv"] for one in found["thresholds"]} == {one["npv"] for one in found["thresholds"]} == {None}
    shift = {row["name"]: row for row in found["external"]["shift"]}
    change = right / 12 - inside["scores"]["per_class"]["across"]["recall"]
    assert shift["sensitivity: across"]["difference"]["value"] == pytest.approx(change)
    assert "accuracy" not in shift
    card = RunFolder(trained).card.read_text()
    assert re.search(  # other tests of this run have folders of the same name
        rf"\| outside[ ()\d]*\| 12 \| 6 \| {right / 12:.3f} \([\d.]+ to [\d.]+\) \| \u2013 \| \u2013 \| \u2013 \|",
        card,
    )
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{right} of 12 outside images correct, {right / 12:.1%} (the sensitivity for across)" in printed
    assert f"difference {100 * change:+.1f} points (95 % interval " in printed
    page = out.report.read_text()
    assert "All are of the class across, so this is its sensitivity" in page
    assert "All images are of the class across: specificity, precision, F1, balanced accuracy and AUROC need" in page
    assert "Always answering" not in page


def test_a_folder_that_is_no_run_is_refused(outside: Path, tmp_path: Path, console: Console) -> None:
    with pytest.raises(CommandError, match=r"is not the folder of a finished run: it has no metrics.json"):
        score_outside(tmp_path, outside, NAMES, None, tmp_path / "out", console)


def test_weights_that_were_not_tested_are_refused(
    trained: Path, outside: Path, tmp_path: Path, console: Console
) -> None:
    """A run with more epochs is interrupted: metrics.json is about the weights before."""
    copied = RunFolder(tmp_path / "copied")
    shutil.copytree(trained, copied.path)
    lines = copied.history.read_text().splitlines()
    copied.history.write_text("\n".join([*lines, lines[-1].replace("6,", "7,", 1)]) + "\n")
    says = rf"the run in {copied.path} was tested after 6 epochs and has 7 now: finish it with .*--resume {copied.path}"
    with pytest.raises(CommandError, match=says):
        score_outside(copied.path, outside, NAMES, None, tmp_path / "out", console)
    with pytest.raises(CommandError, match=says):
        export(copied.path, "torch", None, console)
    predict(copied.path, [next(outside.rglob("*.png"))], tmp_path / "predicted", console, overlays=False)
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "warning: the run in" in shown


def test_a_copy_without_checkpoints_is_tested_with_its_weights(
    trained: Path, outside: Path, tmp_path: Path, console: Console
) -> None:
    copied = RunFolder(tmp_path / "copied")
    shutil.copytree(trained, copied.path)
    shutil.rmtree(copied.checkpoints)
    score_outside(trained, outside, NAMES, None, tmp_path / "whole", console)
    score_outside(copied.path, outside, NAMES, None, tmp_path / "out", console)
    whole, found = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "out")
    assert found["scores"] == whole["scores"]
    for name in ("tested_epoch", "epochs", "stopped", "seconds"):
        assert found[name] == whole[name] == metrics_of(trained)[name]


def test_groups_give_results_by_group(trained: Path, outside: Path, tmp_path: Path, console: Console) -> None:
    file_of_groups = tmp_path / "groups.csv"
    files = sorted(file.relative_to(outside).as_posix() for file in outside.glob("*/*"))
    lines = [f"{file},p{index // 3}" for index, file in enumerate(files)]
    file_of_groups.write_text("\n".join(["file,group", *lines]) + "\n")
    score_outside(trained, outside, NAMES, str(file_of_groups), tmp_path / "out", console)
    found = metrics_of(tmp_path / "out")
    assert found["by_group"]["groups"] == 8
    assert found["intervals"]["groups"] == 8
    assert 'id="by-group"' in RunFolder(tmp_path / "out").report.read_text()


def test_subfolders_of_the_class_folders_are_groups(
    trained: Path, outside: Path, tmp_path: Path, console: Console
) -> None:
    for number, file in enumerate(sorted(outside.glob("*/*.png"))):
        patient = file.parent / f"patient{number // 4}"
        patient.mkdir(exist_ok=True)
        file.rename(patient / file.name)
    score_outside(trained, outside, NAMES, "folder", tmp_path / "out", console)
    assert metrics_of(tmp_path / "out")["by_group"]["groups"] == 6


def test_the_command_line_reads_a_mapping() -> None:
    given = parsed(["test", "run", "images", "--map", "a=b", "c=", "--map", "d=e=f"])
    assert dict(given.names) == {"a": "b", "c": "", "d": "e=f"}
    with pytest.raises(SystemExit):
        parsed(["test", "run", "images", "--map", "a"])


def test_a_difference_has_newcombes_interval() -> None:
    """Newcombe (1998), method 10, for 56 of 70 minus 48 of 80: 0.0524 to 0.3339."""
    first, second = (0.6, (0.4904, 0.7007)), (0.8, (0.6916, 0.8775))
    low, high = difference(first, second)["interval"]
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=2e-3)
    assert difference((None, None), second) == {"value": None, "interval": None}


def test_the_card_of_the_run_gets_the_result(
    trained: Path, outside: Path, tmp_path: Path, make_options: MakeOptions, console: Console
) -> None:
    """Once for each folder, in its place, and not after a new test of the run, whose weights may be others."""
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    folder = RunFolder(run)
    earlier, metrics = [str(outside), str(tmp_path / "elsewhere")], metrics_of(run)
    of_run = {"notes": [], **{key: metrics[key] for key in ("scores", "intervals", "calibration")}}
    folder.external.write_text(json.dumps({"tests": [{"root": root, **of_run} for root in earlier]}))
    for number in range(2):
        score_outside(run, outside, NAMES, None, tmp_path / f"out{number}", console)
    kept, other = json.loads(folder.external.read_text())["tests"]
    assert other["root"] == earlier[1]  # each keeps its place, and so its name in the card
    found = metrics_of(tmp_path / "out1")
    assert (kept["root"], kept["scores"]) == (str(outside), found["scores"])
    row = f"| outside | 24 | 24 | {found['scores']['accuracy']:.3f} ("
    assert folder.card.read_text().count(row) == 1
    options = read_options(folder)
    evaluate(folder, options, Splits(folder, options.image_size, options.resize), console)
    assert not folder.external.exists()
    assert row not in folder.card.read_text()


def test_a_run_that_cannot_be_written_is_tested_all_the_same(
    trained: Path, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: RunFolder, console: Console) -> None:
        raise CommandError(f"cannot write {folder.card}: Read-only file system")

    console = Console(file=io.StringIO(), width=1000)
    monkeypatch.setattr(external, "write_card", refused)
    assert score_outside(trained, outside, NAMES, None, tmp_path / "out", console).exists()
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "note: the model card of the run does not get this result: cannot write" in said
    assert "Read-only file system" in said
