"""Damaged checkpoints, configs and histories that can be read: a one-line error says what is wrong."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Trainer
from rich.console import Console
from runs import MakeOptions, table

from rsattn.cli import main as cli
from rsattn.cli.command import CommandError
from rsattn.cli.weights import read_weights
from rsattn.finetune import running
from rsattn.finetune.checkpoint import KEY, drop_moments, read_last
from rsattn.finetune.contents import fault
from rsattn.finetune.history import restored_history
from rsattn.finetune.loading import load
from rsattn.finetune.options import as_options, read_options
from rsattn.finetune.run_folder import RunFolder

WEIGHT = "model.class_token"


@pytest.fixture
def finished(make_options: MakeOptions, console: Console) -> RunFolder:
    """A run of two epochs with gates."""
    options = make_options(epochs=2, keep="last", init_values=0.0)
    running.run(options, console)
    return RunFolder(Path(options.out))


def ask_for_a_third_epoch(finished: RunFolder) -> None:
    config = json.loads(finished.config.read_text())
    finished.config.write_text(json.dumps({**config, "epochs": 3}))


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that fails."""
    assert cli.main([str(word) for word in words]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a path of keys; `...` removes the key, and an empty path replaces everything."""
    made = copy.deepcopy(content)
    if not path:
        return value
    place = made
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return made


DAMAGE: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "a tensor": ((), torch.zeros(2), "is not a checkpoint of `rsattn finetune`: expected the folder of a run"),
    "a list": ((), [1], "is not a checkpoint"),
    "weights alone": ((KEY,), ..., "is not a checkpoint"),
    "nothing kept": ((KEY,), None, "rsattn is None, expected an object"),
    "no classes": ((KEY, "classes"), ..., "rsattn lacks classes"),
    "a class that is no name": ((KEY, "classes"), ["a", 3], "rsattn.classes[1] is 3, expected text"),
    "one class": ((KEY, "classes"), ["a"], "classes should be two or more different names"),
    "a class twice": ((KEY, "classes"), ["a", "a"], "classes should be two or more different names"),
    "three classes": ((KEY, "classes"), ["a", "b", "c"], "fc.weight (2, 96) instead of (3, 96)"),
    "a tensor as mean": ((KEY, "mean"), torch.zeros(3), "rsattn.mean is a Tensor, expected a list"),
    "a mean of two": ((KEY, "mean"), [0.5, 0.5], "mean and std should be three numbers each"),
    "no deviation": ((KEY, "std"), [0.5, 0.5, 0.0], "those of std above 0"),
    "history": ((KEY, "history"), [{"epoch": 1}], "rsattn.history[0] lacks train_loss"),
    "gates": ((KEY, "gates_at_start"), {}, "gates_at_start lacks transformer.blocks.0"),
    "no options": ((KEY, "options"), {}, "the options lack out, data, model"),
    "an option nobody knows": ((KEY, "options", "speed"), 1, "unknown options speed, perhaps of another version"),
    "a size of words": ((KEY, "options", "image_size"), "big", "image_size is 'big', expected a whole number"),
    "a size that is none": ((KEY, "options", "image_size"), -1, "image_size is -1, expected a number from 1 to"),
    "a size beyond memory": ((KEY, "options", "image_size"), 4_000_000_000, "its model cannot be built"),
    "another model": ((KEY, "options", "model"), "cnn", "does not fit the cnn that its options describe: "),
    "weights in a list": (("state_dict",), [], "state_dict should hold names and dense tensors"),
    "a weight that is none": (("state_dict", WEIGHT), "x", "state_dict should hold names and dense tensors"),
    "a weight without numbers": (("state_dict", WEIGHT), torch.zeros(1, 1, 96, device="meta"), "dense tensors"),
    "a number as name": (("state_dict", 3), torch.zeros(1), "state_dict should hold names and dense tensors"),
    "another shape": (("state_dict", WEIGHT), torch.zeros(5), "class_token (5,) instead of (1, 1, 96)"),
    "a weight missing": (("state_dict", WEIGHT), ..., "missing class_token"),
    "a weight too many": (("state_dict", "model.more"), torch.zeros(1), "unknown more"),
}


def test_a_checkpoint_that_can_be_read_and_is_damaged_is_one_line(
    finished: RunFolder, stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run and one test for all of them: training takes a second each time."""
    content, path = torch.load(finished.last, weights_only=True), tmp_path / "damaged.ckpt"
    load(finished.last)
    for name, (keys, value, says) in DAMAGE.items():
        torch.save(changed(content, keys, value), path)
        line = said(capsys, "predict", path, stripes, "--out", tmp_path / "out")
        assert line.startswith(f"rsattn predict: {path} is "), name
        assert says in line, name
        assert not (tmp_path / "out").exists()


PROGRESS: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "not a checkpoint": ((), {}, "is not a checkpoint"),
    "no loops": (("loops",), ..., "it lacks loops"),
    "loops of nothing": (("loops", "fit_loop"), 3, "loops.fit_loop is 3, expected an object"),
    "broken loops": (("loops", "fit_loop"), {"no": 1}, "loops.fit_loop lacks epoch_progress"),
    "no optimizer": (("optimizer_states",), [], "optimizer_states and lr_schedulers should have one entry each"),
    "another epoch": (("epoch",), 7, "history has 2 epochs, expected 8"),
    "no history": ((KEY, "history"), [], "history has 0 epochs, expected 2"),
    "another shape": (("state_dict", WEIGHT), torch.zeros(5), "class_token (5,) instead of (1, 1, 96)"),
}


def test_a_run_does_not_go_on_from_a_damaged_checkpoint(
    finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the progress of the training, Lightning would start from the beginning."""
    ask_for_a_third_epoch(finished)
    content = torch.load(finished.last, weights_only=True)
    history = finished.history.read_bytes()
    for name, (keys, value, says) in PROGRESS.items():
        torch.save(changed(content, keys, value), finished.last)
        line = said(capsys, "finetune", "--resume", finished.path)
        assert line.startswith(f"rsattn finetune: {finished.last} is "), name
        assert says in line, name
        assert finished.history.read_bytes() == history


def test_what_lightning_cannot_resume_from_is_one_line(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    ask_for_a_third_epoch(finished)
    content = torch.load(finished.last, weights_only=True)
    torch.save(changed(content, ("optimizer_states", 0, "param_groups"), []), finished.last)
    line = said(capsys, "finetune", "--resume", finished.path)
    assert line.startswith(f"rsattn finetune: could not resume from {finished.last}: ValueError: loaded state dict has")
    assert line.endswith("; if the file is damaged, restore it from a copy, or train again\n")


def test_moments_of_another_shape_are_named_before_the_training(
    finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    ask_for_a_third_epoch(finished)
    content = torch.load(finished.last, weights_only=True)
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(5), "exp_avg_sq": torch.zeros(5)}
    torch.save(changed(content, ("optimizer_states", 0, "state"), {0: moments}), finished.last)
    line = said(capsys, "finetune", "--resume", finished.path)
    assert "a damaged checkpoint: optimizer_states[0].state[0].exp_avg is (5,), expected (" in line
    assert line.endswith("; restore it from a copy, or train again in a new folder\n")


def test_a_disk_that_is_full_when_the_moments_are_dropped_is_named(tmp_path: Path) -> None:
    """PyTorch alone would say "unexpected pos", which is no error of a disk."""
    resource = pytest.importorskip("resource", reason="needs limits on the size of files: run it on Linux or macOS")
    last = tmp_path / "last.ckpt"
    torch.save({"optimizer_states": [{"state": {0: 1}}], "state_dict": {"weight": torch.zeros(10_000)}}, last)
    before = last.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CommandError, match=r"cannot write .*last\.ckpt: File too large"):
            drop_moments(last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert last.read_bytes() == before
    assert list(tmp_path.iterdir()) == [last]


def test_the_advice_on_a_file_that_cannot_be_read_is_about_checkpoints(
    finished: RunFolder, stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(finished.last.read_bytes()[:-1000])
    line = said(capsys, "predict", broken, stripes, "--out", tmp_path / "out")
    assert "expected a checkpoint of `rsattn finetune`; restore it from a copy, use another checkpoint" in line
    ask_for_a_third_epoch(finished)
    finished.last.write_bytes(broken.read_bytes())
    line = said(capsys, "finetune", "--resume", finished.path)
    assert "expected a checkpoint of `rsattn finetune`; restore it from a copy, or train again in a new folder" in line


def test_a_short_file_that_was_cut_off_is_called_damaged(tmp_path: Path) -> None:
    """PyTorch alone would say "Invalid argument"."""
    file = tmp_path / "short.ckpt"
    torch.save({"weight": torch.zeros(5000)}, file)
    file.write_bytes(file.read_bytes()[:5000])
    for mmap in (False, True):
        with pytest.raises(CommandError, match=r"short\.ckpt is damaged, or not a file of weights: expected one saved"):
            read_weights(file, mmap)


def test_a_port_or_a_gpu_is_not_the_checkpoints_fault(
    finished: RunFolder, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_for_a_third_epoch(finished)
    for error in (torch.distributed.DistNetworkError, torch.distributed.DistBackendError, torch.AcceleratorError):
        monkeypatch.setattr(Trainer, "fit", Mock(side_effect=error("the port is in use")))
        with pytest.raises(error, match="the port is in use"):
            running.run(read_options(finished), console)


def test_a_damaged_checkpoint_as_weights_is_one_line(
    finished: RunFolder, stripes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, path = torch.load(finished.last, weights_only=True), tmp_path / "damaged.ckpt"
    ask = ("finetune", stripes, "--size", "tiny", "--image-size", 16, "--weights", path, "--out", tmp_path / "new")
    for keys, value, says in (
        ((KEY,), [], "rsattn is a list, expected an object"),
        ((KEY, "options"), torch.zeros(2), "rsattn.options is a Tensor"),
        (("state_dict",), 3, "state_dict should hold names and dense tensors"),
        ((), {WEIGHT: torch.zeros(2).to_sparse()}, "holds no state_dict"),
        ((), {3: torch.zeros(2)}, "holds no state_dict"),
    ):
        torch.save(changed(content, keys, value), path)
        line = said(capsys, *ask)
        assert str(path) in line
        assert says in line


def test_a_checkpoint_of_other_classes_is_not_tested(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(finished.last, weights_only=True)
    torch.save(changed(content, (KEY, "classes"), ["down", "across"]), finished.last)
    line = said(capsys, "finetune", "--resume", finished.path)
    assert "last.ckpt is a damaged checkpoint: its classes are down, across, and those of data.json are across" in line


HISTORY: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda text: b"", "expected a row for each epoch, starting at 1"),
    "half a row": (lambda text: text[:-60], "in every row"),
    "a column less": (lambda text: text.replace(b"val_loss", b"loss"), "expected the columns epoch, train_loss"),
    "words": (lambda text: text.replace(b"\n2,", b"\ntwo,"), "could not convert string to float: 'two'"),
    "bytes": (lambda text: b"\xff\xfe\x00" + text, "codec can't decode"),
    "a row lost": (lambda text: text.replace(b"\n1,", b"\n5,"), "expected a row for each epoch, starting at 1"),
    "an open quote": (lambda text: text + b'"', "unexpected end of data"),
}


def test_a_damaged_history_is_one_line_and_a_missing_one_comes_back(
    finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, rows = finished.history.read_bytes(), table(finished.history)
    for name, (damage, says) in HISTORY.items():
        finished.history.write_bytes(damage(whole))
        line = said(capsys, "finetune", "--resume", finished.path)
        assert line.startswith(f"rsattn finetune: {finished.history} is damaged: "), name
        assert says in line, name
        assert line.endswith(
            f"delete it, and `rsattn finetune --resume {finished.path}` restores it from checkpoints/last.ckpt\n"
        )
    finished.history.unlink()
    finished.history.mkdir()
    assert "it cannot be read (Is a directory)" in said(capsys, "finetune", "--resume", finished.path)
    finished.history.rmdir()
    assert cli.main(["finetune", "--resume", str(finished.path)]) == 0
    assert table(finished.history) == rows
    finished.history.write_bytes(whole[: whole.index(b"\n2,") + 1])  # an epoch whose row was not written
    assert cli.main(["finetune", "--resume", str(finished.path)]) == 0
    assert table(finished.history) == rows
    assert json.loads(finished.metrics.read_text())["epochs"] == 2


def test_a_run_does_not_go_on_with_another_split(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    whole = finished.split.read_text()
    finished.split.write_text("".join(whole.splitlines(keepends=True)[:-5]))
    line = said(capsys, "finetune", "--resume", finished.path)
    assert f"{finished.split} has not as many images as data.json counts; restore it from a copy" in line
    finished.split.unlink()
    line = said(capsys, "finetune", "--resume", finished.path)
    assert f"{finished.path} has a checkpoint, but no split.csv: restore it from a copy" in line
    assert not finished.split.exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", "{", "it is not JSON"),
        ("config.json", "[]", "it is a list, expected an object"),
        ("config.json", "[" * 100_000, "it is not JSON"),
        ("config.json", '{"model": "vit"}', "the options lack out, data, patch"),
        ("data.json", '{"root": "x"}', "it lacks classes"),
        ("data.json", '{"root": "x", "classes": "ab"}', "classes is 'ab', expected a list"),
        ("data.json", '{"root": "x", "classes": ["a"], "near_identical": [1]}', "near_identical[0] is 1, expected"),
        ("split.csv", "file,label\n", "expected the columns file, label, split, group"),
        ("split.csv", "file,label,part,group\nx.png,a,train,x\n", "another version of rsattn wrote it"),
    ],
)
def test_a_damaged_file_of_a_run_is_one_line(
    name: str, content: str, says: str, make_options: MakeOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    options = make_options()
    folder = RunFolder(Path(options.out))
    running.write_options(folder, options)
    folder.data.write_text('{"root": "x", "classes": ["a", "b"]}')
    folder.split.write_text("file,label,split,group\nx.png,a,train,x\n")
    (folder.path / name).write_text(content)
    line = said(capsys, "finetune", "--resume", folder.path)
    assert line.startswith(f"rsattn finetune: {folder.path / name} is ")
    assert says in line
    assert "restore it from a copy" in line


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("norm", "l1", "norm is 'l1', expected induced, entrywise, confidence"),
        ("keep", None, "keep is None, expected text"),
        ("patch", 1, "patch is 1, expected true or false"),
        ("epochs", 1.5, "epochs is 1.5, expected a whole number"),
        ("epochs", True, "epochs is True, expected a whole number"),
        ("batch_size", 0, "batch_size is 0, expected a number from 1 to"),
        ("learning_rate", float("nan"), "learning_rate is nan, expected a number from 0 to"),
        ("dropout", 3.0, "dropout is 3.0, expected a number from 0 to 1"),
        ("data", 5, "data is 5, expected text"),
    ],
)
def test_values_that_no_run_has_are_refused(
    name: str, value: Any, says: str, make_options: MakeOptions, tmp_path: Path
) -> None:
    good = vars(make_options(init_values=-0.5, clip=1, learning_rate=0, data=None))
    assert vars(as_options(good)) == good
    running.write_options(RunFolder(tmp_path), make_options(**{name: value}))
    with pytest.raises(CommandError) as caught:
        read_options(RunFolder(tmp_path))
    assert f"config.json is damaged: {says}" in str(caught.value)


def test_a_whole_checkpoint_is_as_it_was_written(finished: RunFolder) -> None:
    last = read_last(finished.last)
    assert [row["epoch"] for row in last.history] == [1, 2]
    assert last.classes == ("across", "down")
    assert last.options.epochs == 2


def test_a_history_is_compared_without_reading_weights(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, load_file = [], torch.load

    def noted(*args: Any, **how: Any) -> object:
        asked.append(how["mmap"])
        return load_file(*args, **how)

    monkeypatch.setattr(torch, "load", noted)
    assert len(restored_history(finished)) == 2
    assert asked == [True]


def test_the_first_part_of_another_shape_is_named() -> None:
    shape = {"a": [{"b": float}], "c": {str: int}}
    assert fault({"a": [{"b": 1}], "c": {"x": 1}, "more": None}, shape) is None
    assert fault({"a": [{"b": 1}, {"b": "x" * 50}], "c": {}}, shape) == f"a[1].b is '{'x' * 36}..., expected a number"
    assert fault({"a": [], "c": {"x": 0.5}}, shape) == "c.x is 0.5, expected a whole number"
    assert fault({"a": []}, shape) == "it lacks c"
    assert fault([], shape) == "it is a list, expected an object"
