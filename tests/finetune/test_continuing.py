"""A finished run with more epochs, and a run whose images were moved."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from rich.console import Console
from runs import MakeOptions, table

from rsattn.cli import main as cli
from rsattn.cli.command import CommandError
from rsattn.finetune import running, training
from rsattn.finetune.checkpoint import read_checkpoint
from rsattn.finetune.classifier import Classifier
from rsattn.finetune.continuing import with_more_epochs, with_moved_data
from rsattn.finetune.history import best_epoch, is_finished, restored_history
from rsattn.finetune.options import Options, read_options
from rsattn.finetune.run_folder import RunFolder


def trained(options: Options, console: Console) -> RunFolder:
    running.run(options, console)
    return RunFolder(Path(options.out))


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder.last, weights_only=True)["state_dict"]
    return state


def epochs_of(folder: RunFolder) -> list[dict[str, str]]:
    return [{**row, "seconds": ""} for row in table(folder.history)]


@pytest.mark.parametrize(
    "changes", [{"init_values": 0.0, "gate_rate": 5e-3}, {"freeze": True}], ids=["gated", "frozen"]
)
def test_more_epochs_give_what_a_run_with_a_restart_gives(
    changes: dict[str, object], make_options: MakeOptions, console: Console, tmp_path: Path
) -> None:
    whole = trained(make_options(out=str(tmp_path / "whole"), epochs=4, restarts=(2,), **changes), console)
    folder = trained(make_options(epochs=2, **changes), console)
    assert cli.main(["finetune", "--resume", str(folder.path), "--epochs", "4"]) == 0
    assert epochs_of(folder) == epochs_of(whole)
    ours, theirs = weights(folder), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert folder.predictions.read_bytes() == whole.predictions.read_bytes()
    assert read_options(folder).restarts == (2,)
    rates = [float(row["learning_rate"]) for row in epochs_of(folder)]
    assert rates[1] == rates[3] < 1e-12 < rates[2]


def test_added_epochs_that_were_broken_off_are_resumed(
    make_options: MakeOptions, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(make_options(out=str(tmp_path / "whole"), epochs=5, restarts=(2,)), console)
    folder = trained(make_options(epochs=2), console)
    options = read_options(folder)
    changed = with_more_epochs(folder, options, 5)
    original = training.LastCheckpoint.on_train_epoch_end

    def stop(self: object, trainer: object, module: object) -> None:
        original(self, trainer, module)
        if len(module.history) == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    monkeypatch.setattr("rsattn.finetune.training.LastCheckpoint.on_train_epoch_end", stop)
    with pytest.raises(KeyboardInterrupt):
        running.run(options, console, changed)
    monkeypatch.undo()
    assert cli.main(["finetune", "--resume", str(folder.path), "--epochs", "5"]) == 0
    assert epochs_of(folder) == epochs_of(whole)
    assert folder.predictions.read_bytes() == whole.predictions.read_bytes()


def test_epochs_are_added_to_a_finished_run_only(
    make_options: MakeOptions, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(make_options(epochs=3), console)
    for epochs, says in ((2, "has 3 epochs already; give a larger number"), (3, None)):
        assert cli.main(["finetune", "--resume", str(folder.path), "--epochs", str(epochs)]) == (2 if says else 0)
        assert (says or "report") in "".join(capsys.readouterr())
    config = json.loads(folder.config.read_text())
    folder.config.write_text(json.dumps({**config, "epochs": 5}))
    with pytest.raises(CommandError, match=r"finished 3 of 5 epochs: complete it first with .*--resume"):
        with_more_epochs(folder, read_options(folder), 8)
    stopped = [{**row, "val_loss": str(index)} for index, row in enumerate(table(folder.history))]
    lines = [",".join(stopped[0]), *(",".join(row.values()) for row in stopped)]
    folder.history.write_text("\n".join(lines) + "\n")
    folder.config.write_text(json.dumps({**config, "epochs": 9, "patience": 1}))
    with pytest.raises(CommandError, match=r"early stopping ended the run .* after 3 epochs: .*--weights"):
        with_more_epochs(folder, read_options(folder), 12)
    folder.config.write_text(json.dumps({**config, "epochs": 3, "patience": 1}))  # its patience ended with it
    assert not is_finished(restored_history(folder), with_more_epochs(folder, read_options(folder), 12))


def test_a_run_without_splits_cannot_change(make_options: MakeOptions, stripes: Path) -> None:
    options = make_options()
    folder = RunFolder(Path(options.out))
    folder.path.mkdir()
    running.write_options(folder, options)
    for change in (lambda: with_more_epochs(folder, options, 9), lambda: with_moved_data(folder, options, stripes)):
        with pytest.raises(CommandError, match=r"stopped before its images were split.*start a new run"):
            change()


def test_images_that_moved_are_found_again(
    make_options: MakeOptions, console: Console, stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "archive" / "new"
    shutil.copytree(stripes, old)
    folder = trained(make_options(data=str(old), epochs=1), console)
    before = folder.predictions.read_bytes()
    new.parent.mkdir()
    old.rename(new)
    assert cli.main(["finetune", "--resume", str(folder.path)]) == 2
    line = capsys.readouterr().err
    assert f"there is no {old}" in line
    assert f"rsattn finetune --resume {folder.path} --data FOLDER" in line
    folder.predictions.unlink()
    assert cli.main(["finetune", "--resume", str(folder.path), "--data", str(new), "--epochs", "2"]) == 0
    assert len(table(folder.history)) == 2
    assert read_options(folder).data == str(new)
    assert [row["file"] for row in table(folder.predictions)] == [
        line.split(",")[0] for line in before.decode().splitlines()[1:]
    ]


def test_other_images_are_not_the_run_s(
    make_options: MakeOptions, console: Console, stripes: Path, tmp_path: Path
) -> None:
    folder = trained(make_options(epochs=1), console)
    other = tmp_path / "other"
    shutil.copytree(stripes, other)
    (other / "down" / "07.png").unlink()
    with pytest.raises(CommandError, match=r"lacks 1 of the 60 images of the run .* such as down/07\.png"):
        with_moved_data(folder, read_options(folder), other)


def test_digits_move_with_the_folder_of_their_run(console: Console, make_options: MakeOptions, tmp_path: Path) -> None:
    folder = trained(make_options(data=None, epochs=1, image_size=8), console)
    moved = RunFolder(tmp_path / "moved")
    folder.path.rename(moved.path)
    before = moved.predictions.read_bytes()
    moved.predictions.unlink()
    assert cli.main(["finetune", "--resume", str(moved.path)]) == 0
    assert moved.predictions.read_bytes() == before


def test_the_weights_of_a_finished_run_start_another(
    make_options: MakeOptions, console: Console, tmp_path: Path
) -> None:
    folder = trained(make_options(epochs=1, keep="last"), console)
    by_folder = trained(make_options(out=str(tmp_path / "a"), weights=str(folder.path), epochs=1), console)
    by_file = trained(make_options(out=str(tmp_path / "b"), weights=str(folder.last), epochs=1), console)
    ours, theirs = weights(by_folder), weights(by_file)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_data_without_resume_is_refused(stripes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", "--data", str(stripes)]) == 2
    assert f"a new run takes its folder without it: rsattn finetune {stripes}" in capsys.readouterr().err


def test_restarts_and_early_stopping_exclude_each_other(stripes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", str(stripes), "--epochs", "3", "--restarts", "2", "--patience", "4"]) == 2
    assert "--patience cannot be given with --restarts" in capsys.readouterr().err


@pytest.mark.parametrize("restarts", [("3",), ("2", "1")])
def test_restarts_that_cannot_be_are_refused(
    restarts: tuple[str, ...], stripes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["finetune", str(stripes), "--epochs", "3", "--restarts", *restarts]) == 2
    assert "expected ascending epochs below --epochs 3" in capsys.readouterr().err


def test_a_run_that_moves_remembers_its_best_epoch(
    make_options: MakeOptions, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [0.5, 0.3, 0.9, 0.8]
    log, keep = Classifier.log_dict, training.LastCheckpoint.on_train_epoch_end

    def scripted(self: Classifier, values: dict[str, torch.Tensor], **given: object) -> None:
        loss = {"val_loss": torch.tensor(losses[self.current_epoch])} if "val_loss" in values else {}
        log(self, {**values, **loss}, **given)  # type: ignore[arg-type]

    def stop(self: training.LastCheckpoint, trainer: object, module: Classifier) -> None:
        keep(self, trainer, module)  # type: ignore[arg-type]
        if len(module.history) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "log_dict", scripted)
    options = make_options(epochs=4)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(training.LastCheckpoint, "on_train_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            running.run(options, console)
    moved = RunFolder(tmp_path / "moved")
    Path(options.out).rename(moved.path)
    assert cli.main(["finetune", "--resume", str(moved.path)]) == 0
    assert len(read_checkpoint(moved.last).history) == 4
    assert len(read_checkpoint(moved.best).history) == 2
    assert json.loads(moved.metrics.read_text())["tested_epoch"] == 2
    shutil.copy2(moved.last, moved.best)
    before = moved.metrics.read_bytes()
    with pytest.raises(CommandError, match=r"best\.ckpt is .* has the weights of epoch 4, and those of epoch 2 are to"):
        running.run(replace(options, out=str(moved.path)), console)
    assert moved.metrics.read_bytes() == before


def test_images_that_changed_are_refused(
    make_options: MakeOptions, console: Console, stripes: Path, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(stripes, old)
    folder = trained(make_options(data=str(old), epochs=1), console)
    shutil.copytree(old, new)
    test = next(row["file"] for row in table(folder.split) if row["split"] == "test")
    with Image.open(new / test) as image:
        ImageOps.invert(image).save(new / test)
    options = read_options(folder)
    config = folder.config.read_bytes()
    changed = r"the images in .*new have changed since the run in .* split them"
    with pytest.raises(CommandError, match=changed):
        running.run(options, console, with_moved_data(folder, options, new))
    assert folder.config.read_bytes() == config
    shutil.rmtree(old)
    new.rename(old)
    with pytest.raises(CommandError, match=changed.replace("new", "old")):
        running.run(options, console)


def test_a_loss_that_is_no_number_is_not_the_best() -> None:
    assert [best_epoch([{"val_loss": loss} for loss in losses]) for losses in ([nan, 2, 1, 1], [nan, nan])] == [3, 1]
