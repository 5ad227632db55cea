"""`rsattn predict`, with a model that distinguishes light from dark and has residual attention."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from runs import MakeOptions, table, written
from torch import Tensor, nn

import rsattn
from rsattn.cli.command import CommandError
from rsattn.cli.images import read_image
from rsattn.finetune import overlays, prediction
from rsattn.finetune.gradcam import grad_cam
from rsattn.finetune.loading import TrainedModel
from rsattn.finetune.prediction import predict

SIDE = 16


class Lightness(nn.Module):
    """Its logits are 4 and -4 times the mean of the image; its residual attention changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.attention = rsattn.ResidualSelfAttention(8, 2, backend="reference")
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        patches = self.embed(images).flatten(2).transpose(1, 2)
        self.attention(torch.cat((patches.mean(1, keepdim=True), patches), 1))
        mean = images.mean((1, 2, 3))
        return 4 * torch.stack((mean, -mean), 1)


def as_input(image: Image.Image) -> Tensor:
    pixels = np.asarray(image.resize((SIDE, SIDE)), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)


@pytest.fixture
def loaded(make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch) -> TrainedModel:
    """The model that `predict` loads from any checkpoint."""
    torch.manual_seed(0)
    model = TrainedModel(
        model=Lightness().eval(),
        classes=("light", "dark"),
        image_size=SIDE,
        transform=as_input,
        residual=True,
        label="resvit",
        options=make_options(),
        normalize=lambda pixels: pixels,  # type: ignore[arg-type]
        device=torch.device("cpu"),
        classifier="",
    )
    monkeypatch.setattr(prediction, "load", lambda checkpoint: model)
    return model


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch, loaded: TrainedModel) -> Callable[..., None]:
    """Change fields of the loaded model."""

    def change(**fields: Any) -> None:
        monkeypatch.setattr(prediction, "load", lambda checkpoint: replace(loaded, **fields))

    return change


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five images from black to white, of other shapes than the model input, and other files."""
    root = tmp_path / "images"
    for number, name in enumerate(("a.png", "b.jpg", "more/c.PNG", "more/d [red]x.bmp", "more/deep/e.tif")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if number % 2 else "RGB", (20 + number, 30), (60 * number,) * (1 if number % 2 else 3)).save(
            root / name
        )
    (root / "notes.txt").write_text("none")
    (root / "notes.pdf").write_text("what Pillow can write and not read")
    (root / ".hidden.png").write_bytes((root / "a.png").read_bytes())
    return root


def pixels_of(axes: Axes) -> np.ndarray:
    """The pixels of the first image of the axes."""
    return np.asarray(axes.images[0].get_array())


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_image_gets_a_row(loaded: TrainedModel, images: Path, tmp_path: Path, console: Console) -> None:
    target = predict(tmp_path / "run", [images], tmp_path / "out", console)
    assert target == tmp_path / "out" / "predictions.csv"
    rows = table(target)
    names = ["a.png", "b.jpg", "more/c.PNG", "more/d [red]x.bmp", "more/deep/e.tif"]
    assert [row["file"] for row in rows] == [str(images / name) for name in names]
    assert list(rows[0]) == ["file", "predicted", "probability", "p_light", "p_dark", "error"]
    assert [row["predicted"] for row in rows] == ["dark", "dark", "dark", "light", "light"]
    for level, row in zip((0, 60, 120, 180, 240), rows):
        light = 1 / (1 + np.exp(-8 * (level / 127.5 - 1)))
        assert float(row["p_light"]) == pytest.approx(light, abs=2e-3)  # jpg is a level off
        assert float(row["p_light"]) + float(row["p_dark"]) == pytest.approx(1, abs=1e-5)  # six digits
        assert float(row["probability"]) == max(float(row["p_light"]), float(row["p_dark"]))
        assert row["error"] == ""


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn."""
    drawn, draw = [], overlays.overlay

    def kept(*given: Any, **more: Any) -> Figure:
        drawn.append(draw(*given, **more))
        return drawn[-1]

    monkeypatch.setattr(overlays, "overlay", kept)
    return drawn


def titles(figure: Figure) -> list[str]:
    """The titles of the panels beside the image."""
    return [axes.get_title("left") for axes in figure.axes if axes.get_title("left")]


@pytest.mark.full_figures
def test_a_residual_model_shows_where_it_looks(
    loaded: TrainedModel, images: Path, tmp_path: Path, console: Console, figures: list[Figure]
) -> None:
    """The image, beside the attention map of its own best head."""
    predict(tmp_path / "run", [images], tmp_path / "out", console)
    made = written(tmp_path / "out")
    assert made == ["1-a.png", "2-b.png", "3-c.png", "4-d [red]x.png", "5-e.png", "predictions.csv"]
    for name in made[:-1]:
        assert Image.open(tmp_path / "out" / name).width > 500
    assert figures[2].get_suptitle() == "c.PNG: dark (61.6%)"
    for number, figure in enumerate(figures):
        plain, looks = figure.axes[:2]
        assert pixels_of(plain).shape == (30, 20 + number, 3)
        assert (pixels_of(plain) >= 60 * number - 2).all()
        alone = as_input(Image.new("RGB", (20, 30), (60 * number,) * 3))
        with torch.inference_mode(), rsattn.record(loaded.model, received=True) as record:
            loaded.model(alone[None])
        expected = pixels_of(rsattn.plot.attention_overlay(alone, record).axes[0])
        # Colors stretch the received attention to its range, and a level of jpg's moves it: hence not closer.
        np.testing.assert_allclose(pixels_of(looks), expected, atol=0.1)


class Mapped(Lightness):
    """Lightness as the mean of a feature map, which Grad-CAM can draw."""

    def __init__(self) -> None:
        super().__init__()
        self.brightness = nn.Conv2d(3, 1, 4, 4, bias=False)
        nn.init.constant_(self.brightness.weight, 1 / 48)

    def forward(self, images: Tensor) -> Tensor:
        super().forward(images)
        mean = self.brightness(images).mean((1, 2, 3))
        return 4 * torch.stack((mean, -mean), 1)


@pytest.fixture
def spot(tmp_path: Path) -> Path:
    """A black image with a white corner, at the lower left."""
    pixels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    pixels[12:, :4] = 255
    Image.fromarray(pixels).save(tmp_path / "spot.png")
    return tmp_path / "spot.png"


@pytest.mark.parametrize("residual", [True, False])
def test_every_model_shows_the_grad_cam_of_its_answer(
    residual: bool, finds: Callable[..., None], spot: Path, tmp_path: Path, console: Console, figures: list[Figure]
) -> None:
    """The answer is dark, so the map is on the black patches. A model with residual attention has both maps."""
    finds(model=Mapped().eval(), residual=residual)
    predict(tmp_path / "run", [spot], tmp_path / "out", console)
    (figure,) = figures
    assert [title.split(",")[0] for title in titles(figure)] == ["Block attention"] * residual + ["Grad-CAM"]
    panel = next(axes for axes in figure.axes if axes.get_title("left") == "Grad-CAM")
    assert [note.get_text() for note in panel.texts] == ["of dark; 4\u00d74 map"]
    drawn = pixels_of(panel)
    colors = drawn.max(2) - drawn.min(2)  # the image is gray
    assert colors[:8].mean() > 4 * colors[14:, :2].mean()
    assert written(tmp_path / "out") == ["1-spot.png", "predictions.csv"]
    assert "cannot draw" not in said(console)


def test_the_map_of_an_image_is_its_own(
    finds: Callable[..., None],
    images: Path,
    spot: Path,
    tmp_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each image gets the map of its own predicted class, in a batch with others and beside unreadable ones."""
    model = Mapped().eval()
    finds(model=model, residual=False)
    (images / "b.jpg").write_bytes((images / "b.jpg").read_bytes()[:100])
    given: list[Tensor] = []
    monkeypatch.setattr(overlays, "_draw_cam", lambda axes, seen, cam, label: given.append(cam))
    predict(tmp_path / "run", [images, spot], tmp_path / "out", console)
    readable = ["a.png", "more/c.PNG", "more/d [red]x.bmp", "more/deep/e.tif", str(spot)]
    assert len(given) == len(readable)
    for name, cam, answer in zip(readable, given, (1, 1, 0, 0, 1)):
        alone = grad_cam(model, as_input(Image.open(images / name).convert("RGB"))[None], [answer])
        assert alone is not None
        torch.testing.assert_close(cam, alone[0])


def test_a_map_that_is_zero_everywhere_is_said_to_be() -> None:
    seen = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    figure = overlays.overlay(Image.new("RGB", (20, 30)), seen, "title", "$dark", cam=torch.zeros(4, 4))
    panel = figure.axes[1]
    assert [note.get_text() for note in panel.texts] == ["0 everywhere: no place raises the logit of $dark"]
    assert not panel.child_axes  # a scale from 0 to 0 says nothing
    figure.canvas.draw()


def test_no_images_are_drawn_where_none_are_wanted(
    loaded: TrainedModel, images: Path, tmp_path: Path, console: Console
) -> None:
    predict(tmp_path / "run", [images], tmp_path / "out", console, overlays=False)
    assert written(tmp_path / "out") == ["predictions.csv"]
    assert "cannot draw" not in said(console)


def test_a_model_with_no_map_is_said_once_and_not_drawn(
    finds: Callable[..., None], images: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "BATCH", 2)
    finds(residual=False, label="linear", model=nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2)))
    predict(tmp_path / "run", [images], tmp_path / "out", console)
    predict(tmp_path / "run", [images], tmp_path / "other", console, overlays=False)
    assert said(console).count("cannot draw Grad-CAM for this model: no layer that the logits depend on keeps") == 1
    assert "attention" not in said(console)
    assert written(tmp_path / "out") == ["predictions.csv"]


@pytest.mark.parametrize("model", [Lightness, Mapped])
def test_attention_that_cannot_be_drawn_is_said_once_and_the_rest_goes_on(
    model: type[Lightness],
    finds: Callable[..., None],
    images: Path,
    tmp_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
    figures: list[Figure],
) -> None:
    """Grad-CAM goes on too, where there is one."""

    def refuse(*given: Any, **more: Any) -> None:
        raise ValueError("the block has 17 tokens, which are no grid")

    finds(model=model().eval())
    monkeypatch.setattr(overlays, "attention_overlay", refuse)
    monkeypatch.setattr(prediction, "BATCH", 2)
    target = predict(tmp_path / "run", [images], tmp_path / "out", console)
    assert said(console).count("cannot draw attention maps for this model: the block has 17 tokens") == 1
    assert len(table(target)) == 5
    assert len(written(target.parent)) == (6 if model is Mapped else 1)
    assert all(titles(figure) == ["Grad-CAM"] for figure in figures)


def test_a_gradient_that_cannot_be_computed_is_said_once_and_attention_is_drawn(
    loaded: TrainedModel,
    images: Path,
    tmp_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
    figures: list[Figure],
) -> None:
    def refuse(*given: Any) -> None:
        raise RuntimeError("an operation has no gradient")

    monkeypatch.setattr(overlays, "grad_cam", refuse)
    monkeypatch.setattr(prediction, "BATCH", 2)
    predict(tmp_path / "run", [images], tmp_path / "out", console)
    assert said(console).count("cannot draw Grad-CAM for this model: an operation has no gradient") == 1
    assert [len(titles(figure)) for figure in figures] == [1] * 5


class Windowed(Lightness):
    """Its attention sees two windows of each image, of 2 x 2 patches: a square, but not that of the image."""

    def forward(self, images: Tensor) -> Tensor:
        top, bottom = images[:, :, :8, :8], images[:, :, 8:, :8]
        super().forward(torch.cat((top, bottom)))
        mean = images.mean((1, 2, 3))
        return 4 * torch.stack((mean, -mean), 1)


def test_windows_are_not_drawn_as_images(
    finds: Callable[..., None], images: Path, tmp_path: Path, console: Console
) -> None:
    finds(model=Windowed().eval())
    predict(tmp_path / "run", [images], tmp_path / "out", console)
    assert said(console).count("cannot draw attention maps for this model: its last block attends in windows") == 1
    assert written(tmp_path / "out") == ["predictions.csv"]


def test_damaged_images_are_named_and_skipped(
    loaded: TrainedModel, images: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "BATCH", 2)
    (images / "b.jpg").write_bytes((images / "b.jpg").read_bytes()[:100])
    (images / "c.png").write_text("not an image")  # with b.jpg a batch of which nothing can be read
    rows = table(predict(tmp_path / "run", [images / "a.png", images / "more", images], tmp_path / "o", console))
    assert [Path(row["file"]).name for row in rows] == [
        "a.png",
        "c.PNG",
        "d [red]x.bmp",
        "e.tif",
        "b.jpg",
        "c.png",
    ]
    for row in rows[:4]:
        assert (row["error"], row["predicted"] != "") == ("", True)
    for row in rows[4:]:
        assert str(Path(row["file"])) in row["error"]
        assert f"skipped: {row['error']}" in " ".join(said(console).split())
        assert {row[name] for name in ("predicted", "probability", "p_light", "p_dark")} == {""}
    made = written(tmp_path / "o")
    assert made == ["1-a.png", "2-c.png", "3-d [red]x.png", "4-e.png", "predictions.csv"]


def test_a_decoder_may_raise_a_runtime_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Pillow's does for damaged AVIF files."""

    def damaged(path: Path) -> None:
        raise RuntimeError("Failed to decode image: Missing or empty image item")

    monkeypatch.setattr(Image, "open", damaged)
    with pytest.raises(CommandError, match=r"b\.avif is a damaged image: Failed to decode image"):
        read_image(tmp_path / "b.avif")


def test_nothing_is_written_where_no_image_can_be_read(loaded: TrainedModel, tmp_path: Path, console: Console) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("not an image")
    with pytest.raises(
        CommandError, match=r"none of the 2 images can be read; the first error: .*a\.png is not an image"
    ):
        predict(tmp_path / "run", [tmp_path], tmp_path / "out", console)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_keeps_what_is_done(
    loaded: TrainedModel, images: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "BATCH", 2)
    load_image = prediction.load_image

    def interrupted(path: Path, window: Any) -> Any:
        if path.name == "c.PNG":
            raise KeyboardInterrupt
        return load_image(path, window)

    monkeypatch.setattr(prediction, "load_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path / "run", [images], tmp_path / "out", console)
    assert [Path(row["file"]).name for row in table(tmp_path / "out" / "predictions.csv")] == ["a.png", "b.jpg"]
    assert "stopped after 2 of 5 images" in said(console)


def test_ctrl_c_before_anything_is_done_leaves_nothing(
    loaded: TrainedModel, images: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, window: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "load_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path / "run", [images], tmp_path / "out", console)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(loaded: TrainedModel, images: Path, tmp_path: Path, console: Console) -> None:
    out = tmp_path / "out"
    predict(tmp_path / "run", [images], out, console)
    before = (out / "predictions.csv").read_bytes()
    with pytest.raises(CommandError, match=r"predictions\.csv exists already and is not overwritten: choose an"):
        predict(tmp_path / "run", [images / "a.png"], out, console)
    assert (out / "predictions.csv").read_bytes() == before
    (out / "predictions.csv").unlink()
    with pytest.raises(CommandError, match=r"1-a\.png exists already"):
        predict(tmp_path / "run", [images], out, console)


def test_a_folder_within_the_searched_one_is_not_read_back(
    loaded: TrainedModel, images: Path, tmp_path: Path, console: Console
) -> None:
    for name in ("out", "other"):  # the second one skips the drawings of the first one
        assert len(table(predict(tmp_path / "run", [images], images / name, console))) == 5
    assert "note: skipped 1 folder that rsattn wrote: out\n" in said(console)
    assert "inside the data" in " ".join(said(console).split())  # lines are wrapped
    everywhere = predict(tmp_path / "run", [images / "more"], images, console, overlays=False)
    assert len(table(everywhere)) == 3


def test_an_output_folder_is_no_data(loaded: TrainedModel, images: Path, tmp_path: Path, console: Console) -> None:
    predict(tmp_path / "run", [images], tmp_path / "out", console)
    with pytest.raises(CommandError, match=r"rsattn wrote the folder .*out, so its images are not read as data"):
        predict(tmp_path / "run", [tmp_path / "out"], tmp_path / "other", console)
    assert not (tmp_path / "other").exists()


def test_drawings_are_kept_apart_from_images_of_the_user(
    loaded: TrainedModel, images: Path, tmp_path: Path, console: Console
) -> None:
    before = sorted(images.rglob("*"))
    with pytest.raises(CommandError, match=r"has files that rsattn did not write.*choose another --out"):
        predict(tmp_path / "run", [images / "more"], images, console)
    assert sorted(images.rglob("*")) == before


def test_a_failed_start_leaves_no_drawings_in_the_way(
    loaded: TrainedModel, images: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], overlays.overlay

    def fail(*given: Any, **more: Any) -> Any:
        drawn.append(given)
        if len(drawn) == 3:
            raise OSError(28, "No space left on device")
        return draw(*given, **more)

    monkeypatch.setattr(overlays, "overlay", fail)
    with pytest.raises(OSError, match="No space left"):
        predict(tmp_path / "run", [images], tmp_path / "out", console)
    assert not (tmp_path / "out").exists()


def test_an_image_given_twice_is_read_once(
    loaded: TrainedModel, images: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    given = [Path("more/c.PNG"), images, images / "a.png"]
    rows = table(predict(tmp_path / "run", given, tmp_path / "out", console))
    assert [Path(row["file"]).name for row in rows] == ["c.PNG", "a.png", "b.jpg", "d [red]x.bmp", "e.tif"]
    assert rows[0]["file"] == "more/c.PNG"


def test_what_is_not_there_is_named(
    loaded: TrainedModel, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsattn.cli.scans.is_installed", lambda package: False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "I1.dcm").write_bytes(128 * b"\0" + b"DICM")
    for name, says in (
        ("nowhere", "there is no .*nowhere"),
        ("empty", "there are no images in .*empty: give image files"),
        ("scans", r"there are no images in .*scans: .* to read DICOM files: pip install .*; give image files"),
    ):
        with pytest.raises(CommandError, match=says):
            predict(tmp_path / "run", [tmp_path / name], tmp_path / "out", console)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_there_is_named(images: Path, tmp_path: Path, console: Console) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(CommandError, match=r"run has no checkpoints/last\.ckpt"):
        predict(tmp_path / "run", [images], tmp_path / "out", console)
    with pytest.raises(CommandError, match=r"there is no .*last\.ckpt"):
        predict(tmp_path / "last.ckpt", [images], tmp_path / "out", console)
    assert not (tmp_path / "out").exists()


def test_answers_that_are_not_numbers_are_refused(
    loaded: TrainedModel, images: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.model, "forward", lambda images: torch.full((len(images), 2), torch.nan))
    with pytest.raises(CommandError, match="the probabilities of the model are NaN"):
        predict(tmp_path / "run", [images], tmp_path / "out", console, overlays=False)
    assert not (tmp_path / "out").exists()


def test_images_do_not_depend_on_those_beside_them(
    loaded: TrainedModel, finds: Callable[..., None], images: Path, tmp_path: Path, console: Console
) -> None:
    """Where a batch shares its best head, each image is a batch."""
    assert isinstance(loaded.model, Lightness)
    predict(tmp_path / "run", [images], tmp_path / "out", console, overlays=False)
    assert loaded.model.batches == [5]
    finds(options=replace(loaded.options, scope="batch"))
    predict(tmp_path / "run", [images], tmp_path / "other", console, overlays=False)
    assert loaded.model.batches == [5, 1, 1, 1, 1, 1]


def test_batches_are_no_larger_than_those_of_the_training(
    loaded: TrainedModel, finds: Callable[..., None], images: Path, tmp_path: Path, console: Console
) -> None:
    """Its gradients would need more memory than training did."""
    assert isinstance(loaded.model, Lightness)
    finds(options=replace(loaded.options, batch_size=2))
    predict(tmp_path / "run", [images], tmp_path / "out", console, overlays=False)
    assert loaded.model.batches == [2, 2, 1]


def test_the_terminal_shows_the_first_twenty(loaded: TrainedModel, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    for number in range(23):
        Image.new("RGB", (9, 9), (10 * number,) * 3).save(tmp_path / f"[b]{number:02}.png")
    predict(tmp_path / "run", [tmp_path], tmp_path / "out", console, overlays=False)
    assert "[b]19.png" in said(console)
    assert "[b]20.png" not in said(console)
    assert "the first 20 of 23 images" in said(console)
    assert "99.9%" in said(console) or "100.0%" in said(console)
    assert f"predictions: {tmp_path / 'out' / 'predictions.csv'}" in said(console)


def test_long_and_odd_names(loaded: TrainedModel, tmp_path: Path, console: Console) -> None:
    """Names of the maximum length, with a formula, a line break, and bytes that are not valid text."""
    names = ["\u00e4" * 120 + ".png", "$x^$\nline.png", b"\xff.png".decode(errors="surrogateescape")]
    for name in names:
        Image.new("RGB", (9, 9)).save(tmp_path / "plain.png")
        (tmp_path / "plain.png").rename(tmp_path / name)
    target = predict(tmp_path / "run", [tmp_path / name for name in names], tmp_path / "out", console)
    assert len(written(target.parent)) == 4
    assert b"\xff.png" in target.read_bytes()


def test_names_are_text_to_the_terminal_and_themselves_in_the_table(
    loaded: TrainedModel, finds: Callable[..., None], tmp_path: Path
) -> None:
    console = Console(file=io.StringIO(), width=400)
    finds(classes=("light", "dark\x1b[31m\n"))
    for name in ("a\x1b[2J\n.png", "b\x1b[2J\n.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / "plain.png")
        (tmp_path / "plain.png").rename(tmp_path / name)
    (tmp_path / "b\x1b[2J\n.png").write_text("no image")
    target = predict(tmp_path / "run", [tmp_path], tmp_path / "out", console)
    assert r"a\x1b[2J\n.png" in said(console)
    assert r"b\x1b[2J\n.png is not an image" in said(console).replace("\n", "")
    assert r"dark\x1b[31m\n" in said(console)
    assert "\x1b" not in said(console)
    rows = table(target)
    assert [Path(row["file"]).name for row in rows] == ["a\x1b[2J\n.png", "b\x1b[2J\n.png"]
    assert rows[0]["predicted"] == "dark\x1b[31m\n"


def test_linked_folders_are_followed_and_told(loaded: TrainedModel, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=400)
    asked, elsewhere = tmp_path / "asked", tmp_path / "elsewhere"
    for folder in (asked, elsewhere):
        folder.mkdir()
        Image.new("RGB", (9, 9)).save(folder / f"{folder.name}.png")
    (asked / "link").symlink_to(elsewhere)
    (asked / "circle").symlink_to(asked)
    rows = table(predict(tmp_path / "run", [asked], tmp_path / "out", console, overlays=False))
    assert [Path(row["file"]).name for row in rows] == ["asked.png", "elsewhere.png"]
    assert f"note: used 1 linked folder: link -> {elsewhere}" in said(console)
    assert "note: ignored 1 broken or circular link, such as circle" in said(console)
