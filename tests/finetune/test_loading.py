"""A finished run, loaded from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from runs import MakeOptions, table

import rsattn
from rsattn.cli.images import as_rgb
from rsattn.finetune import export_check, running
from rsattn.finetune.external import score_outside
from rsattn.finetune.prediction import predict
from rsattn.finetune.run_folder import RunFolder


def test_a_loaded_model_gives_the_predictions_of_its_run(
    make_options: MakeOptions, console: Console, stripes: Path
) -> None:
    options = make_options(epochs=1, init_values=0.0)
    running.run(options, console)
    trained = rsattn.finetune.load(options.out, device="cpu")
    assert trained.classes == ("across", "down")
    assert repr(trained) == "<TrainedModel resvit (induced, sample, tile, gate 0): 2 classes, 16 x 16 pixels, on cpu>"
    rows = table(RunFolder(Path(options.out)).predictions)
    images = torch.stack([trained.transform(stripes / row["file"]) for row in rows])
    with torch.inference_mode():
        probabilities = trained.probabilities(trained.model(images))
    # The batch has another size: sums in another order, float32.
    assert probabilities[:, 0].tolist() == pytest.approx([float(row["p_across"]) for row in rows], abs=1e-5)
    with rsattn.record(trained.model) as record, torch.inference_mode():
        trained.model(images)
    assert record.best_head.shape[1] == len(rows)


def test_a_path_and_an_image_of_any_mode_are_transformed_alike(
    make_options: MakeOptions, console: Console, tmp_path: Path
) -> None:
    options = make_options(epochs=1)
    running.run(options, console)
    transform = rsattn.finetune.load(options.out).transform
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (20, 30), dtype=np.uint16))
    deep.save(tmp_path / "deep.png")
    for image in (str(tmp_path / "deep.png"), tmp_path / "deep.png", Image.open(tmp_path / "deep.png")):
        assert torch.equal(transform(image), transform(tmp_path / "deep.png"))
        assert transform(image).shape == (3, 16, 16)


def test_a_run_on_scans_shows_its_window_everywhere(
    make_options: MakeOptions, console: Console, tmp_path: Path, stripes: Path
) -> None:
    """In training, in the test, in `predict`, in `test` of other images, and in a loaded and an exported model."""
    pytest.importorskip("pydicom", reason="pip install 'rsattn[scans]'")
    from scan_files import dicom

    for file in sorted(stripes.glob("*/*.png")):
        stored = np.asarray(Image.open(file).convert("L")).astype(np.uint16) + 1000
        dicom(tmp_path / "ct" / file.parent.name / f"{file.stem}.dcm", stored, WindowCenter=40, WindowWidth=400)
    options = make_options(epochs=1, data=str(tmp_path / "ct"), window=(1128.0, 256.0))
    running.run(options, console)
    trained = rsattn.finetune.load(options.out, device="cpu")
    assert trained.options.window == (1128, 256)
    rows = table(RunFolder(Path(options.out)).predictions)
    files = [tmp_path / "ct" / row["file"] for row in rows]
    plain = [stripes / f"{row['file'].removesuffix('.dcm')}.png" for row in rows]
    images = torch.stack([trained.transform(file) for file in files])
    for image, file in zip(images, plain):
        gray = Image.open(file).convert("L")
        assert torch.allclose(image, trained.transform(gray), atol=0.05)  # a gray level or two
        deep = Image.fromarray(np.asarray(gray).astype(np.uint16) + 1000)
        assert torch.equal(image, trained.transform(deep))

    @torch.inference_mode()
    def exported(pixels: torch.Tensor) -> torch.Tensor:
        return trained.probabilities(trained.model(torch.stack([trained.normalize(one) for one in pixels])))

    with torch.inference_mode():
        probabilities = trained.probabilities(trained.model(images))
    measured = pytest.approx([float(row["p_across"]) for row in rows], abs=1e-5)
    assert probabilities[:, 0].tolist() == measured
    predicted = table(predict(Path(options.out), files, tmp_path / "new", console, overlays=False))
    assert [float(row["p_across"]) for row in predicted] == measured
    score_outside(Path(options.out), tmp_path / "ct", {}, None, tmp_path / "test", console)
    again = {row["file"]: float(row["p_across"]) for row in table(RunFolder(tmp_path / "test").predictions)}
    assert [again[row["file"]] for row in rows] == measured
    said = export_check.check(exported, trained, RunFolder(Path(options.out)), console)
    assert float(said.split("at most ")[1].split()[0]) < 1e-5


def test_what_is_no_image_is_a_type_error(make_options: MakeOptions, console: Console) -> None:
    options = make_options(epochs=1)
    running.run(options, console)
    transform = rsattn.finetune.load(options.out).transform
    with pytest.raises(TypeError, match=r"an image of Pillow's, not ndarray: PIL\.Image\.fromarray makes one"):
        transform(np.zeros((16, 16, 3), dtype=np.uint8))  # type: ignore[arg-type]


def test_values_that_are_not_finite_do_not_darken_an_image() -> None:
    values = np.array([[0, 1, 2], [np.nan, np.inf, -np.inf]], dtype=np.float32)
    assert np.asarray(as_rgb(Image.fromarray(values)))[..., 0].tolist() == [[0, 127, 255], [0, 255, 0]]


def test_a_folder_without_a_finished_run_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no checkpoints/last\.ckpt: expected the folder of a finished"):
        rsattn.finetune.load(tmp_path)
