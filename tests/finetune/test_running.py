"""A whole run: it learns, is reproducible bit for bit, resumes, and keeps finished epochs after an error."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from forked import COMMAND, Forked
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from runs import MakeOptions, table

import rsattn
from rsattn.cli.command import CommandError
from rsattn.cli.main import main
from rsattn.cli.outputs import LOCK, output_folder
from rsattn.finetune import rates, running, training
from rsattn.finetune.disk import kept_bytes
from rsattn.finetune.loading import load
from rsattn.finetune.options import Options
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.saving import CompleteCheckpoints
from rsattn.recording import residual_modules


def trained(options: Options, console: Console) -> RunFolder:
    running.run(options, console)
    return RunFolder(Path(options.out))


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


def assert_same_numbers(first: RunFolder, second: RunFolder) -> None:
    """Weights, history except times, and probabilities, bit for bit."""
    a, b = weights(first.last), weights(second.last)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    timeless = [[{**row, "seconds": ""} for row in table(folder.history)] for folder in (first, second)]
    assert timeless[0] == timeless[1]
    assert first.predictions.read_bytes() == second.predictions.read_bytes()


@pytest.mark.parametrize("model", ["resvit", "cnn"])
def test_a_tiny_model_learns(model: str, make_options: MakeOptions, console: Console) -> None:
    folder = trained(make_options(model=model, epochs=20, learning_rate=3e-3), console)
    assert json.loads(folder.metrics.read_text())["scores"]["accuracy"] >= 0.83  # 10 of 12: by chance 2 %
    assert folder.report.exists()
    assert table(folder.history)[-1]["epoch"] == "20"


@pytest.mark.full_figures
def test_the_files_agree_with_one_another(make_options: MakeOptions, console: Console) -> None:
    folder = trained(make_options(), console)
    rows = table(folder.predictions)
    metrics = json.loads(folder.metrics.read_text())
    assert [row["file"] for row in rows] == [row["file"] for row in table(folder.split) if row["split"] == "test"]
    assert metrics["scores"]["accuracy"] == pytest.approx(sum(r["label"] == r["predicted"] for r in rows) / len(rows))
    for row in rows:
        assert float(row["p_across"]) + float(row["p_down"]) == pytest.approx(1.0, abs=1e-5)  # six digits each
    losses = [float(row["val_loss"]) for row in table(folder.history)]
    assert metrics["tested_epoch"] == 1 + losses.index(min(losses))
    chosen = json.loads(folder.heads.read_text())
    assert {sum(counts) for counts in chosen.values()} == {len(rows)}
    assert (folder.figures / "looks.png").exists()


def test_near_identical_images_in_different_splits_are_counted_and_said(
    make_options: MakeOptions, tmp_path: Path, console: Console
) -> None:
    """Two of the test images are copies of training images, brighter and saved as JPEG; the others are noise."""
    images = tmp_path / "images"
    for number, place in enumerate(("train", "val", "test")):
        for label in ("a", "b"):
            (images / place / label).mkdir(parents=True)
            for index in range(6):
                noise = np.random.default_rng([number, index, ord(label)]).integers(0, 256, (12, 12), dtype=np.uint8)
                Image.fromarray(noise).resize((64, 64)).save(images / place / label / f"{index}.png")
    for index in range(2):
        copied = Image.open(images / "train" / "a" / f"{index}.png").point(lambda level: 20 + 0.8 * level)
        copied.save(images / "test" / "b" / f"copy{index}.jpg")
    folder = trained(make_options(data=str(images), epochs=1), console)
    expected = (
        "2 of 14 test images look the same as a training image (such as test/b/copy0.jpg and train/a/0.png), so the "
        "test accuracy is too high; --groups phash leaves such training images out"
    )
    assert f"warning: {expected}" in " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert expected in " ".join(folder.report.read_text().split())
    overlap = {"split": "test", "other": "train", "images": 2, "of": 14}
    pairs = [["test/b/copy0.jpg", "train/a/0.png"], ["test/b/copy1.jpg", "train/a/1.png"]]
    assert json.loads(folder.data.read_text())["near_identical"] == [{**overlap, "examples": pairs}]
    assert json.loads(folder.metrics.read_text())["near_identical"] == [overlap]
    grouped = trained(make_options(data=str(images), epochs=1, groups="phash", out=str(tmp_path / "grouped")), console)
    assert json.loads(grouped.metrics.read_text())["near_identical"] == []


def test_digits_are_not_searched_for_near_identical_images(
    make_options: MakeOptions, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "write_digits", lambda root: shutil.copytree(make_options().data, root))  # type: ignore[arg-type]
    folder = trained(make_options(data=None, epochs=1), console)
    assert "look the same" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert json.loads(folder.metrics.read_text())["near_identical"] is None


def test_a_constant_predictor_is_said_to_be_one(make_options: MakeOptions, console: Console) -> None:
    folder = trained(make_options(model="vit", learning_rate=0.0, epochs=1), console)
    scores = json.loads(folder.metrics.read_text())["scores"]
    (only,) = set(scores["per_class"]) - set(scores["never_predicted"])
    assert [one["precision"] is None for one in scores["per_class"].values()].count(True) == 1
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "6 of 12 test images correct, 50.0% (always answering across: 50.0%)" in said
    assert f"warning: every test image was classified as {only}, so the model does not tell the classes apart" in said


def test_the_model_is_tested_with_the_resize_it_was_trained_with(
    make_options: MakeOptions, tmp_path: Path, console: Console
) -> None:
    images = tmp_path / "wide"
    for file in Path(str(make_options().data)).rglob("*.png"):
        (images / file.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((64, 16)).save(images / file.parent.name / file.name)
    folder = trained(make_options(data=str(images), resize="crop", epochs=1), console)
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "note: 60 images are not square; they are cropped to the square in the middle. The longest is 4.0" in said
    loaded = load(folder.path)
    row = table(folder.predictions)[0]
    pixels = loaded.transform(Image.open(images / row["file"]).convert("RGB"))
    with torch.inference_mode():
        probability = loaded.probabilities(loaded.model(pixels[None]))[0, loaded.classes.index("across")]
    assert float(probability) == pytest.approx(float(row["p_across"]), abs=1e-5)


def test_a_terminal_shows_one_bar_that_fits(make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are those of the printed lines."""
    draw = Progress.update  # at every change, so that the test does not depend on time
    monkeypatch.setattr(Progress, "update", lambda *given, **how: draw(*given, **how | {"refresh": True}))
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    trained(make_options(epochs=10), console)
    assert isinstance(console.file, io.StringIO)
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[?\d]*\w", "", console.file.getvalue()))
    bars = [line for line in lines if line.startswith("epoch") and "\u2501" in line]
    assert max(map(len, bars)) <= 80
    assert any(line.startswith("epoch 10 of 10, step 5 of 5 \u2501") and " 96%" in line for line in bars)
    assert any(line.startswith("epoch  1 of 10, validation  \u2501") for line in bars)
    assert any(line.startswith("epoch 10 of 10: training loss") for line in lines)
    assert not any("v_num" in line for line in lines)


def test_a_file_gets_plain_lines_only(
    make_options: MakeOptions, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(make_options(epochs=1), console)
    assert isinstance(console.file, io.StringIO)
    lines = (console.file.getvalue() + capsys.readouterr().out).splitlines()
    starts = (
        "augmentation: ",
        "1 epoch of ",
        "trained 1 epoch, ",
        "resvit (",
        "warning: ",
        "report: ",
        "epoch 1 of 1: ",
    )
    assert all(sum(line.startswith(start) for line in lines) == 1 for start in starts)
    assert all(line.isprintable() and "\u2501" not in line for line in lines)


def test_the_best_epoch_is_what_is_tested(make_options: MakeOptions, console: Console) -> None:
    """With a learning rate that is far too high, the last epoch is not the best, so the two checkpoints differ."""
    folder = trained(make_options(epochs=4, learning_rate=5e-2), console)
    loaded = load(folder.best)
    assert "optimizer_states" not in torch.load(folder.best, weights_only=True)
    losses = [float(row["val_loss"]) for row in table(folder.history)]
    same = all(torch.equal(weights(folder.best)[n], v) for n, v in weights(folder.last).items())
    assert same == (losses.index(min(losses)) == len(losses) - 1)
    image = table(folder.predictions)[0]
    pixels = loaded.transform(
        Image.open(Path(json.loads(folder.data.read_text())["root"]) / image["file"]).convert("RGB")
    )
    with torch.inference_mode():
        probability = loaded.probabilities(loaded.model(pixels[None]))[0, loaded.classes.index("across")]
    assert float(probability) == pytest.approx(float(image["p_across"]), abs=1e-5)


@pytest.mark.parametrize(("model", "batches"), [("cnn", 1), ("vit", 2)])
def test_batch_normalization_gets_no_batch_of_one(
    model: str, batches: int, make_options: MakeOptions, console: Console
) -> None:
    """A ResNet-18 of 32 pixels stops with an error there."""
    folder = trained(make_options(model=model, epochs=1), console)
    images = sum(row["split"] == "train" for row in table(folder.split))
    folder = trained(make_options(model=model, epochs=1, batch_size=images - 1, out=f"{folder.path}-one"), console)
    assert torch.load(folder.last, weights_only=True)["global_step"] == batches


def test_a_seed_repeats_bit_for_bit_and_another_does_not(
    make_options: MakeOptions, console: Console, tmp_path: Path
) -> None:
    options = {"augment": "mirror", "split_seed": 5}
    first = trained(make_options(out=str(tmp_path / "a"), **options), console)
    torch.manual_seed(99)
    second = trained(make_options(out=str(tmp_path / "b"), workers=1, **options), console)
    other = trained(make_options(out=str(tmp_path / "c"), seed=1, **options), console)
    assert_same_numbers(first, second)
    assert first.split.read_bytes() == other.split.read_bytes()
    assert first.predictions.read_bytes() != other.predictions.read_bytes()


def test_the_last_epoch_is_tested_where_the_recipe_keeps_it(make_options: MakeOptions, console: Console) -> None:
    folder = trained(make_options(epochs=4, learning_rate=5e-2, keep="last"), console)
    assert not folder.best.exists()
    assert json.loads(folder.metrics.read_text())["tested_epoch"] == 4
    loaded = load(folder.path)
    image = table(folder.predictions)[0]
    root = Path(json.loads(folder.data.read_text())["root"])
    pixels = loaded.transform(Image.open(root / image["file"]).convert("RGB"))
    with torch.inference_mode():
        probability = loaded.probabilities(loaded.model(pixels[None]))[0, loaded.classes.index("across")]
    assert float(probability) == pytest.approx(float(image["p_across"]), abs=1e-5)
    assert "the weights after the last epoch were tested" in folder.report.read_text()


def test_a_small_set_is_trained_for_the_steps_it_needs(make_options: MakeOptions, console: Console) -> None:
    folder = trained(make_options(epochs=1, least_steps=12), console)
    steps = -(-sum(row["split"] == "train" for row in table(folder.split)) // 8)
    assert len(table(folder.history)) == -(-12 // steps) > 1
    assert json.loads(folder.metrics.read_text())["stopped"] == "finished"


def test_smoothing_and_clipping_reach_the_training(make_options: MakeOptions, console: Console) -> None:
    """AdamW's steps do not shrink with a tiny gradient norm; a smoothed loss has a lower bound.

    Lightning refuses to clip what some optimizers do in mixed precision.
    """
    smoothed = trained(make_options(label_smoothing=0.5), console)
    assert min(float(row["train_loss"]) for row in table(smoothed.history)) > 0.56  # -(.75 ln .75 + .25 ln .25)
    plain = trained(make_options(out=f"{smoothed.path}-plain", precision="bf16-mixed"), console)
    clipped = trained(make_options(out=f"{smoothed.path}-clipped", precision="bf16-mixed", clip=1e-12), console)
    assert [row["val_loss"] for row in table(plain.history)] != [row["val_loss"] for row in table(clipped.history)]


GATED = {"init_values": 0.0, "gate_rate": 5e-3}
RECIPE = {
    **{"recipe": "finetune", "head_first": True, "least_steps": 12, "keep": "last", "layer_decay": 0.75},
    **{"warm_up": 0.1, "clip": 1.0, "label_smoothing": 0.1, "augment": "rotate"},
}
# The changes of the options, and the epoch after which the run stops.
BROKEN_OFF = {
    "trained whole": ({"augment": "mirror"}, 1),
    "frozen": ({"freeze": True}, 2),
    "the recipe": (RECIPE, 1),
    "gated": ({"augment": "mirror", **GATED}, 2),
    "frozen, gated": ({"freeze": True, **GATED}, 1),
}


@pytest.mark.parametrize(("changes", "stopped"), BROKEN_OFF.values(), ids=BROKEN_OFF)
def test_a_run_that_was_broken_off_ends_in_the_same_numbers(
    changes: dict[str, object],
    stopped: int,
    make_options: MakeOptions,
    console: Console,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = trained(make_options(out=str(tmp_path / "whole"), **changes), console)
    options = make_options(out=str(tmp_path / "broken"), **changes)
    original = training.LastCheckpoint.on_train_epoch_end

    def stop(self: object, trainer: object, module: object) -> None:
        original(self, trainer, module)  # type: ignore[arg-type]
        if len(module.history) == stopped:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    monkeypatch.setattr(training.LastCheckpoint, "on_train_epoch_end", stop)
    with pytest.raises(KeyboardInterrupt, match=rf"{stopped} finished epochs? (is|are) kept.*--resume {options.out}"):
        running.run(options, console)
    monkeypatch.undo()
    assert not RunFolder(Path(options.out)).metrics.exists()
    assert_same_numbers(whole, trained(options, console))


def test_a_finished_run_is_not_trained_again(
    make_options: MakeOptions, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained(make_options(), console)
    assert torch.load(folder.last, weights_only=True)["optimizer_states"][0]["state"] == {}  # two thirds of the file
    size = sum(path.stat().st_size for path in (folder.weights, *folder.checkpoints.iterdir()))
    kept = kept_bytes(make_options(), sum(tensor.nbytes for tensor in weights(folder.last).values()))
    assert kept < size < 1.2 * kept  # the files also have names and options
    before = folder.predictions.read_bytes()
    monkeypatch.setattr(running, "train", None)
    folder.predictions.unlink()
    assert trained(make_options(), console).predictions.read_bytes() == before
    assert "\nalready trained 3 epochs; the model is only tested\n" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("changes", [{}, {"freeze": True}], ids=["trained whole", "frozen"])
def test_a_model_is_adjusted_before_it_is_trained_and_when_it_is_loaded(
    changes: dict[str, object], make_options: MakeOptions, console: Console, tmp_path: Path
) -> None:
    class Nothing(rsattn.ResidualOptions):
        def join(self, projected: torch.Tensor, attended: object, gamma: object) -> torch.Tensor:
            return projected

    def add_nothing(model: torch.nn.Module) -> None:
        for module in residual_modules(model).values():
            module.options = Nothing()

    usual = trained(make_options(epochs=1, out=str(tmp_path / "usual"), **changes), console)
    options = make_options(epochs=1, out=str(tmp_path / "adjusted"), **changes)
    folder = RunFolder(Path(options.out))
    running.prepare(folder, options, console)
    training.train(folder, options, running.Splits(folder, options.image_size), console, adjust=add_nothing)
    without, ordinary = weights(folder.last), weights(usual.last)
    assert any(not torch.equal(without[name], ordinary[name]) for name in ordinary)  # one seed repeats bit for bit
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        adjusted, plain = (load(folder.best, adjust).model(images) for adjust in (add_nothing, None))
    assert not torch.allclose(adjusted, plain, atol=1e-4)


def test_early_stopping_stops_and_stays_stopped(
    make_options: MakeOptions, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options(epochs=40, patience=2, learning_rate=3e-2)
    folder = trained(options, console)
    history = table(folder.history)
    losses = [float(row["val_loss"]) for row in history]
    assert len(history) == losses.index(min(losses)) + 1 + 2 < 40
    assert json.loads(folder.metrics.read_text())["stopped"] == "early stopping"
    monkeypatch.setattr(running, "train", None)
    running.run(options, console)


WARNING = "warning: --freeze keeps random weights"


@pytest.mark.parametrize(
    ("changes", "line", "told"),
    [
        (dict(freeze=True), WARNING, True),
        (dict(), WARNING, False),
        (dict(model="vit_tiny_patch16_224", image_size=36), "note: the patches of vit_tiny_patch16_224 are 16", True),
    ],
)
def test_what_a_run_cannot_learn_is_said_before_it_starts(
    changes: dict[str, Any], line: str, told: bool, make_options: MakeOptions, console: Console
) -> None:
    trained(make_options(epochs=1, **changes), console)
    assert isinstance(console.file, io.StringIO)
    before, _, _ = console.file.getvalue().partition("1 epoch of ")
    assert any(said.startswith(line) for said in before.splitlines()) == told


def test_frozen_features_give_what_the_frozen_model_gives(
    make_options: MakeOptions, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = trained(make_options(freeze=True, out=str(tmp_path / "kept")), console)
    monkeypatch.setattr(training, "can_be_kept", lambda options: False)
    whole = trained(make_options(freeze=True, out=str(tmp_path / "whole")), console)
    for a, b in zip(table(kept.predictions), table(whole.predictions)):
        # Batches of another size: sums in another order, float32.
        assert float(a["p_across"]) == pytest.approx(float(b["p_across"]), abs=1e-4)
    assert json.loads(kept.metrics.read_text())["model"]["trained_parameters"] == 96 * 2 + 2


def test_class_weights_are_inverse_to_the_training_images(
    make_options: MakeOptions, console: Console, stripes: Path, tmp_path: Path
) -> None:
    root = tmp_path / "uneven"
    shutil.copytree(stripes, root)
    for path in sorted((root / "down").iterdir())[10:]:
        path.unlink()
    folder = trained(make_options(data=str(root), class_weights=True), console)
    counts = json.loads(folder.data.read_text())["counts"]["train"]
    weighted = running.Splits(folder, 16).class_weights()
    assert (weighted * torch.tensor([counts["across"], counts["down"]])).tolist() == pytest.approx(
        [sum(counts.values()) / 2] * 2
    )


def test_groups_of_a_file_stay_on_one_side(make_options: MakeOptions, console: Console, tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "group"])
        for kind in ("across", "down"):
            writer.writerows([f"{kind}/{n:02}.png", f"{kind}{n // 3}"] for n in range(30))
    rows = table(trained(make_options(groups=str(path)), console).split)
    splits = {row["group"]: set() for row in rows}
    for row in rows:
        splits[row["group"]].add(row["split"])
    assert len(splits) == 20
    assert all(len(of) == 1 for of in splits.values())


def test_a_damaged_image_is_left_out_and_named(
    make_options: MakeOptions, console: Console, stripes: Path, tmp_path: Path
) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(stripes, root)
    whole = (root / "down" / "03.png").read_bytes()
    (root / "down" / "03.png").write_bytes(whole[: len(whole) // 2])
    folder = trained(make_options(data=str(root)), console)
    assert [d["file"] for d in json.loads(folder.data.read_text())["damaged"]] == ["down/03.png"]
    assert console.file.getvalue().count("down/03.png") == 1  # type: ignore[attr-defined]
    assert "down/03.png" in folder.report.read_text()
    assert len(table(folder.split)) == 59


def test_many_damaged_images_are_a_few_lines_which_later_runs_of_a_command_do_not_repeat(
    make_options: MakeOptions, console: Console, stripes: Path, tmp_path: Path
) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(stripes, root)
    for number in range(5):
        (root / "down" / f"{number:02}.png").write_bytes(b"")
    for run in ("first", "second"):
        folder = RunFolder(tmp_path / run)
        folder.path.mkdir()
        running.prepare(folder, make_options(data=str(root), out=str(folder.path)), console)
        assert len(json.loads(folder.data.read_text())["damaged"]) == 5
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert re.findall(r"left out: .*?(\w+\.png|more)", said) == ["00.png", "01.png", "02.png", "more"]
    assert "left out: 2 more, which the report lists" in said


@pytest.mark.parametrize(
    ("changes", "way_on"),
    [
        ({"norm": "confidence"}, "resume that run with `rsattn finetune --resume {run}`"),
        ({"seed": 1, "epochs": 2}, "resume that run with `rsattn finetune --resume {run}`"),
        ({"epochs": 4}, "add epochs to that run with `rsattn finetune --resume {run} --epochs 4`"),
        ({"data": "moved"}, "if the images of that run were moved, `rsattn finetune --resume {run} --data moved`"),
    ],
)
def test_another_run_s_folder_is_refused(
    changes: dict[str, object], way_on: str, make_options: MakeOptions, console: Console
) -> None:
    folder = trained(make_options(epochs=1), console)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(CommandError, match=r"other options \(.*choose another --out, or") as caught:
        running.run(make_options(**{"epochs": 1, **changes}), console)
    assert way_on.format(run=folder.path) in str(caught.value)
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_another_spelling_of_the_data_is_the_same_run(
    make_options: MakeOptions, console: Console, stripes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(make_options(epochs=1), console)
    monkeypatch.chdir(stripes.parent)
    monkeypatch.setattr(running, "train", None)
    running.run(make_options(epochs=1, data=f"./{stripes.name}"), console)


def test_a_folder_of_something_else_is_refused(make_options: MakeOptions, console: Console, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(CommandError, match="exists and is not the folder of a run"):
        running.run(make_options(), console)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "precious"


FAILED_STARTS = {
    "no such folder": {"data": "mistyped"},
    "no such groups": {"groups": "mistyped.csv"},
    "no such model": {"model": "vit_mistyped"},
    "no such weights": {"weights": "mistyped.pth"},
    "no weights for digits": {"data": None, "weights": "mistyped.pth"},
    "several devices": {"lr_auto": True, "devices": "2"},
}


@pytest.mark.parametrize("changes", FAILED_STARTS.values(), ids=FAILED_STARTS)
def test_a_failed_start_leaves_nothing_in_the_way(
    changes: dict[str, object], make_options: MakeOptions, console: Console, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "a"
    with pytest.raises(CommandError):
        running.run(make_options(out=str(out), **changes), console)
    assert not out.parent.exists()
    out.mkdir(parents=True)
    with pytest.raises(CommandError):
        running.run(make_options(out=str(out), **changes), console)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("stage", ["write_split", "train", "evaluate"])
@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_breaks_off_stays_only_if_it_can_resume(
    stage: str,
    fault: type[BaseException],
    make_options: MakeOptions,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, stage, mock.Mock(side_effect=fault))
    with pytest.raises(fault):
        running.run(make_options(epochs=1), console)
    assert Path(make_options().out).exists() == (stage == "evaluate" or (stage, fault) == ("train", KeyboardInterrupt))
    monkeypatch.undo()
    trained(make_options(epochs=1), console)


def test_the_images_of_a_subfolder_stay_in_one_split(
    make_options: MakeOptions, stripes: Path, tmp_path: Path, console: Console
) -> None:
    for number, file in enumerate(sorted(stripes.glob("*/*.png"))):
        patient = tmp_path / "scans" / file.parent.name / f"patient{number // 4}"
        patient.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, patient)
    options = make_options(data=str(tmp_path / "scans"), out=str(tmp_path / "run"), groups="folder")
    folder = RunFolder(Path(options.out))
    with output_folder(folder.path):
        running.prepare(folder, options, console)
    splits: dict[str, set[str]] = {}
    for row in table(folder.split):
        splits.setdefault(row["file"].split("/")[1], set()).add(row["split"])
    assert len(splits) > 8
    assert all(len(of_patient) == 1 for of_patient in splits.values())


def test_the_images_of_a_patient_stay_in_one_split_and_the_run_does_not_hold_their_identifiers(
    make_options: MakeOptions, tmp_path: Path, console: Console
) -> None:
    pytest.importorskip("pydicom", reason="pip install 'rsattn[scans]'")
    from scan_files import dicom

    drawn = np.random.default_rng(0)
    patients = {}
    for number in range(40):
        file = f"{'ab'[number % 2]}/{number}.dcm"
        patients[file] = f"MRN47{number // 4:02}"
        dicom(tmp_path / "scans" / file, drawn.integers(0, 999, (20, 20), np.uint16), PatientID=patients[file])
    options = make_options(data=str(tmp_path / "scans"), out=str(tmp_path / "run"), groups="patient")
    folder = RunFolder(Path(options.out))
    with output_folder(folder.path):
        running.prepare(folder, options, console)
    splits: dict[str, set[str]] = {}
    for row in table(folder.split):
        splits.setdefault(patients[row["file"]], set()).add(row["split"])
    assert len(splits) == 10
    assert all(len(of_patient) == 1 for of_patient in splits.values())
    assert all("MRN47" not in file.read_text() for file in folder.path.iterdir() if file.name != LOCK)


@pytest.mark.parametrize("data", [True, False], ids=["images", "digits"])
def test_a_run_that_was_killed_before_its_first_epoch_is_begun_anew(
    data: bool, make_options: MakeOptions, console: Console
) -> None:
    options = make_options() if data else make_options(data=None)
    folder = RunFolder(Path(options.out))
    with output_folder(folder.path):
        running.prepare(folder, options, console)
    folder.checkpoints.mkdir()
    (folder.path / ".last.ckpt.1.partial").touch()
    with pytest.raises(CommandError, match="cannot read the weights"):
        running.run(make_options(seed=1, weights="mistyped.pth"), console)
    assert list(folder.path.iterdir()) == []
    with output_folder(folder.path):
        running.prepare(folder, options, console)
    assert trained(make_options(seed=1, epochs=1), console).digits.exists() is False
    assert json.loads(folder.metrics.read_text())["seed"] == 1


def test_files_of_the_user_are_not_removed_with_a_failed_start(make_options: MakeOptions, console: Console) -> None:
    options = make_options()
    folder = RunFolder(Path(options.out))
    with output_folder(folder.path):
        running.prepare(folder, options, console)
    (folder.path / "thesis.txt").write_text("precious")
    before = sorted(folder.path.rglob("*"))
    with pytest.raises(CommandError, match="holds a run with other options"):
        running.run(make_options(seed=1), console)
    folder.config.unlink()
    with pytest.raises(CommandError, match="exists and is not the folder of a run"):
        running.run(make_options(seed=1), console)
    assert sorted(folder.path.rglob("*")) == [path for path in before if path != folder.config]


def test_a_tried_rate_is_not_begun_anew(
    make_options: MakeOptions, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--lr auto has finished epochs in folders of its own."""
    options = make_options(epochs=1, lr_auto=True)
    monkeypatch.setattr(rates, "is_finished", mock.Mock(side_effect=[False, RuntimeError("the second rate")]))
    with pytest.raises(RuntimeError, match="the second rate"):
        running.run(options, console)
    monkeypatch.undo()
    with pytest.raises(CommandError, match="holds a run with other options"):
        running.run(replace(options, seed=1), console)
    assert len(json.loads(trained(options, console).rates.read_text())["tried"]) == 3


def test_a_run_inside_its_data_is_announced_and_not_read(
    make_options: MakeOptions, console: Console, stripes: Path, tmp_path: Path
) -> None:
    shutil.copytree(stripes, tmp_path / "data")
    for name in ("rsattn-runs/a", "down/b", "c"):
        options = make_options(epochs=1, data=str(tmp_path / "data"), out=str(tmp_path / "data" / name))
        folder = trained(options, console)
    described = json.loads(folder.data.read_text())
    assert described["classes"] == ["across", "down"]
    assert described["notes"] == ["skipped 2 folders that rsattn wrote: down/b, rsattn-runs/a"]
    assert "Skipped 2 folders that rsattn wrote" in folder.report.read_text()
    assert len(table(folder.split)) == 60
    assert console.file.getvalue().count("warning: the output") == 3  # type: ignore[attr-defined]


def test_a_full_disk_is_named_and_finished_epochs_are_kept(
    make_options: MakeOptions, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = make_options(out=str(tmp_path / "full"))
    whole = trained(make_options(out=str(tmp_path / "whole")), console)
    original = training.LastCheckpoint._save_checkpoint

    def full(self: object, trainer: object, path: str) -> None:
        if len(trainer.lightning_module.history) == 2:  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        original(self, trainer, path)  # type: ignore[arg-type]

    monkeypatch.setattr(training.LastCheckpoint, "_save_checkpoint", full)
    said = r"No space left on device \(the disk mounted at .*MB free\); 1 finished epoch is kept; to continue: rsattn"
    with pytest.raises(CommandError, match=said):
        running.run(options, console)
    monkeypatch.undo()
    assert_same_numbers(whole, trained(options, console))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/of another disk"),
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
    ],
    ids=["without a name", "with the name of the source", "PyTorch"],
)
@pytest.mark.parametrize("full", ["run", "temporary", "shared"])
def test_the_disk_that_is_full_is_named(
    error: Exception,
    full: str,
    make_options: MakeOptions,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Before its first epoch, the run is removed."""
    options = make_options()
    places = {"run": Path(options.out), "temporary": Path(tempfile.gettempdir()), "shared": Path("/dev/shm")}
    if not places[full].exists() and full == "shared":
        pytest.skip("no /dev/shm: run it on Linux")

    def usage(place: Path) -> mock.Mock:
        assert Path(options.out).exists()  # the files of the run fill its disk until they are removed
        return mock.Mock(free=400_000 if place == places[full] else 10**9)

    def fill(*_: object) -> None:
        monkeypatch.setattr(shutil, "disk_usage", usage)
        raise error

    monkeypatch.setattr(running, "train", fill)
    with pytest.raises(CommandError) as caught:
        running.run(options, console)
    assert str(caught.value).startswith(f"cannot write to {places[full]}")
    assert " has 0.4 MB free); no epoch is finished, and nothing is kept; to try again: repeat" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the folder of temporary files, which may be on another disk."""
    last = tmp_path / "checkpoints" / "last.ckpt"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    CompleteCheckpoints().save_checkpoint({"epoch": 0}, last)

    def full(partial: Path, target: Path) -> None:
        assert torch.load(partial, weights_only=True) == {"epoch": 1}
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(CommandError, match=r"last\.ckpt: No space left on device \(the disk mounted at"):
        CompleteCheckpoints().save_checkpoint({"epoch": 1}, last)
    assert torch.load(last, weights_only=True) == {"epoch": 0}
    assert list(last.parent.iterdir()) == [last]


def _small_files_after_an_epoch() -> None:
    keep = training.LastCheckpoint.on_train_epoch_end

    def limited(self: training.LastCheckpoint, trainer: Any, module: Any) -> None:
        if len(module.history) == 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        keep(self, trainer, module)

    training.LastCheckpoint.on_train_epoch_end = limited  # type: ignore[method-assign]


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint_leaves_the_old_one(
    make_options: MakeOptions, tmp_path: Path
) -> None:
    """The operating system refuses files above a limit that the checkpoint of a second epoch passes."""
    options = make_options(out=str(tmp_path / "full"))
    with Forked(arguments_of(options), tmp_path / "said", before=_small_files_after_an_epoch) as process:
        assert process.code() == 2, process.said.read_text()
    said = process.said.read_text()
    assert "File too large" in said
    assert "1 finished epoch is kept" in said
    folder = RunFolder(Path(options.out))
    assert torch.load(folder.last, weights_only=True)["epoch"] == 0


def arguments_of(options: Options) -> list[str]:
    """The command line of `options`."""
    words = ["finetune", str(options.data), "--model", options.model, "--out", options.out, "--size", options.size]
    words += ["--weights", options.weights, "--image-size", str(options.image_size), "--epochs", str(options.epochs)]
    words += [
        "--patience",
        str(options.patience),
        "--batch-size",
        str(options.batch_size),
        "--augment",
        options.augment,
    ]
    if options.init_values is not None:
        words += ["--init-values", str(options.init_values), "--gate-lr", str(options.gate_rate)]
    return [*words, "--lr", str(options.learning_rate), "--devices", options.devices, "--strategy", options.strategy]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def _environment_of_torchrun(rank: int, port: int) -> dict[str, str]:
    ranks = {name: str(rank) for name in ("RANK", "LOCAL_RANK", "ROLE_RANK")}
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE", "GROUP_WORLD_SIZE"), "2")
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    return {**ranks, **sizes, **place}


def test_two_processes_train_one_model_and_resume(make_options: MakeOptions, tmp_path: Path) -> None:
    """One run without a break, started by Lightning; one killed after an epoch and resumed under torchrun."""
    changes = {"devices": "2", "strategy": "ddp", "augment": "mirror", **GATED}
    words = {name: arguments_of(make_options(out=str(tmp_path / name), **changes)) for name in ("whole", "broken")}
    with Forked(words["whole"], tmp_path / "said") as process:
        assert process.code() == 0, process.said.read_text()
    assert process.said.read_text().count("trained ") == 1
    broken = RunFolder(tmp_path / "broken")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with (
        Forked(words["broken"], tmp_path / "first", _environment_of_torchrun(0, port)) as first,
        Forked(words["broken"], tmp_path / "second", _environment_of_torchrun(1, port)) as second,
    ):
        _wait_for_an_epoch(broken, first)
        for process in (first, second):
            process.signal(signal.SIGKILL)
    assert 1 <= len(table(broken.history)) < 3
    assert not broken.metrics.exists()
    machine = ["--devices", "2", "--strategy", "ddp"]
    resume = ["finetune", "--resume", str(broken.path), *machine]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    resumed = subprocess.run(
        [sys.executable, *TORCHRUN, str(COMMAND), *resume], capture_output=True, text=True, check=False, env=environment
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_same_numbers(RunFolder(tmp_path / "whole"), broken)
    assert len(table(broken.predictions)) == 12
    assert all(block["largest"] > 0.0 for block in json.loads(broken.metrics.read_text())["gates"]["blocks"])


@pytest.mark.parametrize(
    ("environment", "is_first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "1", "SLURM_PROCID": "0"}, False),
        ({"NODE_RANK": "0"}, True),
        ({"NODE_RANK": "1"}, False),  # on the second machine, before Lightning starts the other processes there
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "1"}, False),
    ],
    ids=str,
)
def test_only_the_first_process_of_all_machines_writes_the_splits(
    environment: dict[str, str], is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert running._is_first_process() == is_first


def test_other_processes_do_not_wait_for_a_first_one_that_has_ended(
    make_options: MakeOptions, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process holds its lock for four seconds."""
    options = make_options()
    lock, now = Path(options.out) / LOCK, 0.0

    def a_second(_: float) -> None:
        nonlocal now
        now += 1.0
        lock.parent.mkdir(exist_ok=True)
        lock.touch() if now < 5.0 else lock.unlink(missing_ok=True)

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(running.time, "sleep", a_second)
    monkeypatch.setattr(running.time, "monotonic", lambda: now)
    with pytest.raises(CommandError, match=r"the first process of the run in .* ended before it wrote split\.csv"):
        running.run(options, console)
    assert now == 4.0 + running.GONE + 1.0


def test_a_second_process_is_refused_while_a_run_is_in_its_folder(
    make_options: MakeOptions, console: Console, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if it wants to resume the run; a killed process leaves no lock, although its loader processes live on."""
    options = make_options(out=str(tmp_path / "run"), epochs=500)
    folder = RunFolder(Path(options.out))
    words = [*arguments_of(options), "--workers", "1"]
    with Forked(words, tmp_path / "said") as process:
        _wait_for_an_epoch(folder, process)
        assert main(["finetune", "--resume", options.out]) == 2
        assert capsys.readouterr().err == (
            f"rsattn finetune: {options.out} is in use by process {process.pid} on {socket.gethostname()}: wait until "
            "that process ends, or choose another --out\n"
        )
        process.signal(signal.SIGKILL)
        assert process.code() == -signal.SIGKILL
    with pytest.raises(CommandError, match="holds a run with other options"):
        running.run(make_options(out=options.out), console)
    assert not (folder.path / LOCK).exists()


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_without_one(
    reason: int, make_options: MakeOptions, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.lockf", mock.Mock(side_effect=OSError(reason, os.strerror(reason))))
    assert trained(make_options(epochs=1), console).report.exists()


def _wait_for_an_epoch(folder: RunFolder, process: Forked) -> None:
    while not folder.history.exists():
        assert not process.ended(), process.said.read_text()
        time.sleep(0.005)


def test_ctrl_c_is_a_line_and_a_way_on(make_options: MakeOptions, tmp_path: Path) -> None:
    options = make_options(out=str(tmp_path / "stopped"), epochs=500)
    folder = RunFolder(Path(options.out))
    with Forked(arguments_of(options), tmp_path / "said") as process:
        _wait_for_an_epoch(folder, process)
        process.signal(signal.SIGINT)
        assert process.code() == 130
    last = process.said.read_text().strip().splitlines()[-1]
    assert last.startswith("rsattn finetune: interrupted; ")
    assert f"to continue: rsattn finetune --resume {options.out}" in last


def test_ctrl_c_while_the_images_are_tested_says_how_to_go_on(
    make_options: MakeOptions, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options(epochs=1)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "evaluate", interrupted)
        said = f"^1 finished epoch is kept; to continue: rsattn finetune --resume {options.out}$"
        with pytest.raises(KeyboardInterrupt, match=said):
            running.run(options, console)
    running.run(options, console)
    assert isinstance(console.file, io.StringIO)
    assert "already trained 1 epoch; the model is only tested\n" in console.file.getvalue()


def test_a_resumed_run_removes_what_a_killed_process_was_writing(make_options: MakeOptions, console: Console) -> None:
    options = make_options(epochs=1)
    folder = trained(options, console)
    left = [place / ".a_file.123.partial" for place in (folder.path, folder.checkpoints, folder.figures)]
    for path in left:
        path.touch()
    running.run(options, console)
    assert not any(path.exists() for path in left)
    assert folder.report.exists()
