"""`rsattn export`: a file that gives the predictions of the run where rsattn is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from runs import MakeOptions, table
from torch import Tensor

from rsattn.cli import main as cli
from rsattn.cli.command import CommandError
from rsattn.finetune import evaluation, exporting, load, running
from rsattn.finetune.export_check import check
from rsattn.finetune.loading import TrainedModel
from rsattn.finetune.program import METADATA, Program, write_program
from rsattn.finetune.run_folder import RunFolder
from rsattn.recording import residual_modules

# What a user of the file writes: neither needs rsattn, and ONNX does not need PyTorch.
LOAD = {
    "torch": """
import json, sys
import numpy, torch

program, images, output = sys.argv[1:]
files = {"METADATA": ""}
model = torch.export.load(program, extra_files=files).module()
run = lambda x: model(torch.from_numpy(x)).detach().numpy()
said, absent = json.loads(files["METADATA"]), {"rsattn"}
""".replace("METADATA", METADATA),
    "onnx": """
import json, sys
import numpy, onnxruntime

program, images, output = sys.argv[1:]
session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
run = lambda x: session.run(["probabilities"], {"images": x})[0]
said, absent = session.get_modelmeta().custom_metadata_map, {"rsattn", "torch"}
""",
}
RUN = """
x = numpy.load(images)
numpy.savez(output, whole=run(x), alone=run(x[:1]))
assert not absent & sys.modules.keys()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def kept() -> dict[str, RunFolder]:
    return {}


@pytest.fixture
def finished(make_options: MakeOptions, console: Console, kept: dict[str, RunFolder]) -> RunFolder:
    """A run with gates and a temperature that matters, trained once for this file."""
    if "run" not in kept:
        options = make_options(init_values=0.5, epochs=1)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(evaluation, "fitted_temperature", lambda logits, labels: 0.25)
            running.run(options, console)
        kept["run"] = RunFolder(Path(options.out))
    return kept["run"]


@pytest.fixture
def copied(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run that a test may change."""
    return RunFolder(Path(shutil.copytree(finished.path, tmp_path / "copied")))


def eager(folder: RunFolder) -> tuple[Program, TrainedModel]:
    """What an export writes, before it is a file; without gradients."""
    trained = load(folder.path, device="cpu")
    trained.model.requires_grad_(False)
    return Program(trained).eval(), trained


def images_of(folder: RunFolder) -> Tensor:
    """The test images (n, 3, S, S) from 0 to 1, in the order of predictions.csv."""
    from PIL import Image

    root = Path(json.loads(folder.data.read_text())["root"])
    images = [np.asarray(Image.open(root / row["file"]), np.float32) for row in table(folder.predictions)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255


def predicted(folder: RunFolder) -> np.ndarray:
    rows = table(folder.predictions)
    return np.array([[float(row["p_across"]), float(row["p_down"])] for row in rows])


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_the_file_gives_the_runs_predictions_without_rsattn(
    kind: str, finished: RunFolder, console: Console, tmp_path: Path
) -> None:
    if kind == "onnx":
        for name in ("onnxruntime", "onnxscript"):
            pytest.importorskip(name, reason=f"pip install -e '.[test]' brings {name}")
    path = exporting.export(finished.path, kind, tmp_path / exporting.NAMES[kind], console)
    np.save(tmp_path / "images.npy", images_of(finished).contiguous().numpy())
    words = [
        sys.executable,
        "-c",
        LOAD[kind] + RUN,
        str(path),
        str(tmp_path / "images.npy"),
        str(tmp_path / "made.npz"),
    ]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ})
    assert ran.returncode == 0, ran.stderr
    made, expected = np.load(tmp_path / "made.npz"), predicted(finished)
    # Six digits in predictions.csv, and float32 sums of up to 192 terms in another order.
    np.testing.assert_allclose(made["whole"], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(made["alone"], expected[:1], rtol=0, atol=1e-5)
    said = json.loads(ran.stdout)
    assert json.loads(said["classes"]) == ["across", "down"]
    assert (said["image_size"], said["resize"], said["images"]) == (
        "16",
        "squash",
        "float32 (batch, 3, 16, 16), RGB from 0 to 1",
    )
    assert json.loads(said["temperature"]) == 0.25
    assert json.loads(said["window"]) is None
    assert str(finished.path.parent) not in ran.stdout
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"checked on {len(expected)} test images: the probabilities differ by at most " in text
    assert f"exported: {path} (" in text


def test_exporting_changes_nothing_in_the_model(finished: RunFolder, tmp_path: Path) -> None:
    trained = load(finished.path, device="cpu")
    write_program(trained, "torch", tmp_path / "model.pt2", {})
    assert [module.options.backend for module in residual_modules(trained.model).values()] == [None] * 4


def test_predictions_are_compared_image_by_image(finished: RunFolder, console: Console) -> None:
    program, trained = eager(finished)
    n = len(predicted(finished))
    assert check(program, trained, finished, console).startswith(f"checked on {n} test images: ")


@pytest.mark.parametrize("fault", [0.01, float("nan")])
def test_a_wrong_file_is_refused_and_nothing_is_left(
    fault: float, copied: RunFolder, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, _ = eager(copied)
    monkeypatch.setattr(exporting, "write_program", lambda trained, kind, path, metadata: path.write_bytes(b"."))
    monkeypatch.setattr(exporting, "read_program", lambda path, kind: lambda images: program(images) + fault)
    with pytest.raises(CommandError, match=r"the exported model is wrong, and was not kept: .* up to (0\.01|nan) "):
        exporting.export(copied.path, "torch", None, console)
    assert not copied.exports.exists()


def test_a_fault_in_larger_batches_is_found(finished: RunFolder, console: Console) -> None:
    program, trained = eager(finished)
    with pytest.raises(CommandError, match=r"is wrong, and was not kept: for \d+ test images"):
        check(
            lambda images: program(images) if len(images) == 1 else program(images).flip(1), trained, finished, console
        )


def test_predictions_of_another_model_are_refused(copied: RunFolder, console: Console) -> None:
    program, trained = eager(copied)
    text = copied.predictions.read_text()
    copied.predictions.write_text(text.replace("p_across,p_down", "p_down,p_across"))
    with pytest.raises(
        CommandError, match=r"differs from .*predictions\.csv by .* on average .* --resume .* tests the run"
    ):
        check(program, trained, copied, console)
    copied.predictions.write_text("\n".join(text.splitlines()[:-1]))
    with pytest.raises(CommandError, match=r"is damaged: its images are not those of the test split"):
        check(program, trained, copied, console)


def test_without_the_images_random_ones_are_compared(copied: RunFolder, console: Console) -> None:
    program, trained = eager(copied)
    data = json.loads(copied.data.read_text())
    copied.data.write_text(json.dumps({**data, "root": str(copied.path / "gone")}))
    said = check(program, trained, copied, console)
    assert said.startswith("note: not checked on the test images (there is no ")
    assert "\nchecked on 16 random images: the probabilities differ by at most 0" in said
    with pytest.raises(CommandError, match="for 16 random images"):
        check(lambda x: program(x) if len(x) == 1 else program(x).flip(1), trained, copied, console)


def test_a_run_in_bfloat16_may_differ_by_its_rounding(copied: RunFolder, console: Console) -> None:
    program, trained = eager(copied)
    half = replace(trained, options=replace(trained.options, precision="bf16-mixed"))
    assert "predictions.csv, which the run computed in bfloat16, and by" in check(program, half, copied, console)


def test_no_file_is_overwritten(copied: RunFolder, console: Console, tmp_path: Path) -> None:
    copied.exports.mkdir()
    file = copied.exports / "model.pt2"
    file.write_text("mine")
    for out in (None, file):
        with pytest.raises(CommandError, match=r"model\.pt2 exists already and is not overwritten"):
            exporting.export(copied.path, "torch", out, console)
    assert file.read_text() == "mine"
    with pytest.raises(CommandError, match=r"--out .* is a folder: give the name of a new file, such as .*model\.onnx"):
        exporting.export(copied.path, "onnx", tmp_path, console)


def test_only_finished_runs_are_exported(copied: RunFolder, console: Console) -> None:
    copied.metrics.unlink()
    with pytest.raises(CommandError, match=r"is not the folder of a finished run: it has no metrics\.json"):
        exporting.export(copied.path, "torch", None, console)


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(exporting, "export", lambda *given: asked.append(given[:3]))
    assert cli.main(["export", "runs/a", "--format", "torch", "--out", "a.pt2"]) == 0
    assert asked == [(Path("runs/a"), "torch", Path("a.pt2"))]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert cli.main(["export", "runs/a", "--format", "onnx"]) == 2
    assert "needs onnxruntime" in capsys.readouterr().err
