"""model.safetensors of a run: the tested weights, and all that `load` and `--weights` need of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from runs import MakeOptions
from safetensors import safe_open

import rsattn
from rsattn.cli.command import CommandError
from rsattn.finetune import load, running
from rsattn.finetune.checkpoint import keep_temperature
from rsattn.finetune.disk import kept_bytes
from rsattn.finetune.models import build
from rsattn.finetune.options import Options
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.weights_writer import write_weights


@pytest.fixture(scope="module")
def kept() -> dict[str, RunFolder]:
    return {}


@pytest.fixture
def finished(make_options: MakeOptions, console: Console, kept: dict[str, RunFolder]) -> RunFolder:
    """A run with gates and a temperature, trained once for this file."""
    if "run" not in kept:
        options = make_options(init_values=0.5, epochs=1, groups="phash")
        running.run(options, console)
        folder = RunFolder(Path(options.out))
        keep_temperature(folder.tested, 1.75)
        write_weights(folder.weights, load(folder.path))
        kept["run"] = folder
    return kept["run"]


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def moved(finished: RunFolder, folder: Path) -> RunFolder:
    """A copy of the run without its checkpoints, as people share it."""
    folder.mkdir()
    shutil.copy(finished.weights, folder)
    return RunFolder(folder)


def test_the_file_gives_the_model_that_the_checkpoint_gives(finished: RunFolder, tmp_path: Path) -> None:
    expected = load(finished.path)
    images = torch.randn(3, 3, 16, 16)
    for place in (finished.weights, moved(finished, tmp_path / "shared").path):
        loaded = load(place)
        assert (loaded.classes, loaded.temperature, loaded.label) == (expected.classes, 1.75, expected.label)
        assert torch.equal(loaded.normalize(images[0]), expected.normalize(images[0]))
        with torch.no_grad():
            assert torch.equal(loaded.model(images), expected.model(images))


def test_other_programs_can_read_all_of_it(finished: RunFolder) -> None:
    said = metadata(finished.weights)
    assert json.loads(said["classes"]) == ["across", "down"]
    assert (said["image_size"], said["temperature"], said["rsattn"]) == ("16", "1.75", rsattn.__version__)
    assert json.loads(said["mean"]) == json.loads(said["std"]) == [0.5, 0.5, 0.5]
    assert json.loads(said["options"])["groups"] == "phash"


def test_it_names_no_folder_of_the_machine(finished: RunFolder, make_options: MakeOptions, tmp_path: Path) -> None:
    loaded = load(finished.path)
    paths = {name: str(tmp_path / "secret" / name) for name in ("out", "data", "weights", "groups")}
    write_weights(tmp_path / "a.safetensors", replace(loaded, options=replace(loaded.options, **paths)))
    options = json.loads(metadata(tmp_path / "a.safetensors")["options"])
    assert {name: options[name] for name in paths} == {name: name for name in paths}
    assert b"secret" not in (tmp_path / "a.safetensors").read_bytes()


def test_a_run_begins_with_its_weights_as_with_a_checkpoint(finished: RunFolder, make_options: MakeOptions) -> None:
    options = make_options(weights=str(finished.weights), init_values=0.0, seed=3)
    trained, begun = load(finished.path).model.state_dict(), build(options, classes=5).model.state_dict()
    assert all(torch.equal(begun[name], trained[name]) for name in trained if not name.startswith("fc."))
    with pytest.raises(CommandError, match="another size of resvit: use --size tiny --image-size 16"):
        build(replace(options, image_size=32), classes=2)


def test_damaged_metadata_are_one_line(finished: RunFolder, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights, said, path = load_file(finished.weights), metadata(finished.weights), tmp_path / "a.safetensors"
    for name, text, words in (
        ("classes", '["a"]', "damaged checkpoint: classes should be two or more different names"),
        ("temperature", "0", "damaged checkpoint: temperature is 0"),
        ("std", "[0.5", "its metadata have no valid std"),
        ("options", "{}", "damaged checkpoint: the options lack"),
    ):
        save_file(weights, path, {**said, name: text})
        with pytest.raises(ValueError, match=words):
            load(path)
    save_file(weights, path, {name: text for name, text in said.items() if name != "mean"})
    with pytest.raises(ValueError, match="its metadata have no valid mean"):
        load(path)
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"is not a checkpoint of `rsattn finetune`: .* or a \.ckpt or \.safetensors"):
        load(path)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_more_epochs_write_the_new_weights(keep: str, make_options: MakeOptions, console: Console) -> None:
    options = make_options(epochs=1, keep=keep)
    running.run(options, console)
    folder = RunFolder(Path(options.out))
    before = folder.weights.read_bytes()
    more = replace(options, epochs=2, restarts=(1,))
    running.run(options, console, more)
    assert folder.weights.read_bytes() != before
    expected, written = (load(path).model.state_dict() for path in (folder.tested, folder.weights))
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    assert_counted(folder, options)


def assert_counted(folder: RunFolder, options: Options) -> None:
    """The disk estimate is that of the files with weights; names and options are in addition."""
    nbytes = sum(tensor.nbytes for tensor in load(folder.weights).model.state_dict().values())
    size = sum(path.stat().st_size for path in (folder.weights, *folder.checkpoints.iterdir()))
    assert kept_bytes(options, nbytes) < size < 1.2 * kept_bytes(options, nbytes)
