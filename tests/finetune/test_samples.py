"""The sample images of a report, and their attention maps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import MakeOptions

import rsattn
from rsattn.finetune.dataset import Normalize, Store
from rsattn.finetune.models import build
from rsattn.finetune.samples import attends_in_windows, draw_samples, most_confident_mistakes, some_of_each

NAME = "$down_ as long as it is"
FILES = [f"across/{number:02}.png" for number in range(6)] + [f"down/{number:02}.png" for number in range(6)]

PROBABILITIES = dict.fromkeys(range(12), torch.tensor([0.75, 0.25]))


def splits_of(root: Path) -> Any:
    rows = [SimpleNamespace(file=file) for file in FILES]
    return SimpleNamespace(store=Store(root, FILES, 16), rows=rows, labels=[0] * 6 + [1] * 6, classes=("across", NAME))


def test_classes_take_turns_and_files_keep_their_order(stripes: Path) -> None:
    assert some_of_each(splits_of(stripes), list(range(12))) == [0, 6, 1, 7, 2, 8, 3, 9]
    assert some_of_each(splits_of(stripes), [5, 4, 11]) == [5, 11, 4]


def test_windows_have_no_map_of_the_image(stripes: Path, make_options: MakeOptions) -> None:
    """Its blocks differ in windows and heads; the last one sees four windows of 2 x 2 patches."""
    pytest.importorskip("timm", reason="pip install timm")
    options = make_options(model="swin_tiny_patch4_window7_224", patch=True, image_size=32)
    model: Any = build(options, 2).model.eval()
    model.set_input_size((128, 128), window_size=2)
    identity = Normalize((0.0,) * 3, (1.0,) * 3)
    loaded: Any = SimpleNamespace(
        model=model, residual=True, normalize=identity, device=torch.device("cpu"), options=make_options()
    )
    splits = SimpleNamespace(store=Store(stripes, FILES, 128), labels=[0] * 12, classes=("across", NAME))
    figure = draw_samples(loaded, splits, [0, 1], PROBABILITIES)  # type: ignore[arg-type]
    assert {axes.get_title() for axes in figure.axes} <= {"", "Grad-CAM", "no Grad-CAM"}
    assert len(figure.axes) == 8  # one row of four pairs, without empty places for attention


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("windows", [1, 4])
def test_a_block_that_runs_twice_has_no_more_windows(windows: int, calls: int) -> None:
    received = [torch.ones(2 * windows, 3, 16)] * calls
    recorded = rsattn.Record({"first": rsattn.BlockRecord(), "last": rsattn.BlockRecord(received=received)})
    assert attends_in_windows(recorded, images=2) == (windows > 1)


@pytest.mark.parametrize("model", ["resvit", "cnn"])
def test_a_residual_model_s_images_have_their_attention_beside_them(
    model: str, stripes: Path, make_options: MakeOptions
) -> None:
    residual = model == "resvit"
    built = build(make_options(model=model), 2)
    classifier: Any = built.model.get_submodule(built.classifier)
    # That of an untrained ViT is 0.
    torch.nn.init.normal_(classifier.weight, generator=torch.Generator().manual_seed(0))
    loaded: Any = SimpleNamespace(
        model=built.model.eval(),
        residual=residual,
        normalize=Normalize((0.0,) * 3, (1.0,) * 3),
        device=torch.device("cpu"),
        options=make_options(),
    )
    shown = some_of_each(splits_of(stripes), list(range(12)))
    figure = draw_samples(loaded, splits_of(stripes), shown, PROBABILITIES)
    drawn = [axes for axes in figure.axes if axes.images]
    told = [axes.get_title() for axes in figure.axes]
    assert told.count("attention") == (8 if residual else 0)
    assert told.count("Grad-CAM") + told.count("no Grad-CAM") == 8
    assert len(drawn) == 8 + told.count("attention") + told.count("Grad-CAM")
    assert [axes.get_title("left") for axes in drawn if axes.get_title("left")][:2] == [
        "across\n\u2713 across 75 %",
        "$down_ \u2026s it is\n\u2717 across 75 %",
    ]
    figure.canvas.draw()  # in a formula, a lone dollar could not be read
    if residual:
        pixels = splits_of(stripes).store[0].float() / 255.0
        with torch.inference_mode(), rsattn.record(loaded.model, received=True) as record:
            loaded.model(pixels[None])
        own = rsattn.plot.attention_overlay(pixels, record).axes[0].images[0].get_array()
        torch.testing.assert_close(torch.as_tensor(drawn[1].images[0].get_array()), torch.as_tensor(own))


def test_mistakes_come_with_the_most_confident_first(stripes: Path) -> None:
    shares = {0: 0.2, 1: 0.9, 2: 0.4, 6: 0.6, 7: 0.1}  # of the first class
    probabilities = {index: torch.tensor([share, 1 - share]) for index, share in shares.items()}
    assert most_confident_mistakes(splits_of(stripes), probabilities) == [0, 2, 6]


def test_mistakes_that_predictions_csv_shows_as_equal_are_in_the_order_of_their_files(stripes: Path) -> None:
    shares = {8: 0.8, 7: 0.8 + 1e-7, 1: 0.2, 6: 0.8, 3: 0.9}  # of the first class; 3 is right
    probabilities = {index: torch.tensor([share, 1 - share]) for index, share in shares.items()}
    assert most_confident_mistakes(splits_of(stripes), probabilities) == [1, 6, 7, 8]
