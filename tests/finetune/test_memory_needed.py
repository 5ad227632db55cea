"""The memory of a run, counted without allocation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from runs import MakeOptions, memory_of
from torch import Tensor, nn

from rsattn.cli.command import CommandError
from rsattn.finetune import memory
from rsattn.finetune.fitting import refuse_what_cannot_fit
from rsattn.finetune.memory import memory_needed
from rsattn.finetune.models import Built, build

GB = 10**9
TIMM = "vit_tiny_patch16_224"
pytestmark = pytest.mark.usefixtures("on_a_cpu", "counted_anew")


def bytes_of(model: nn.Module) -> int:
    return sum(4 * parameter.numel() for parameter in model.parameters())


def test_a_linear_layer_needs_what_can_be_counted_by_hand(
    make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 images of 16 pixels: the batch, and only logits, losses and their gradients in addition."""
    layer = 4 * (3 * 16 * 16 * 2 + 2)
    monkeypatch.setattr(
        memory,
        "build",
        lambda *args, **kwargs: Built(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)), "1", (0.0,), (1.0,)),
    )
    needed = memory_of(make_options())
    assert (needed.weights, needed.gradients, needed.moments) == (layer, layer, 2 * layer)
    batch = 4 * 8 * 3 * 16 * 16
    assert batch < needed.activations < batch + 500
    assert needed.step == needed.total == 4 * layer + needed.activations


@pytest.mark.parametrize("changes", [{}, {"model": "vit"}, {"init_values": 0.0}, {"full_width": True}])
def test_a_vit_needs_its_parameters_four_times(changes: dict[str, object], make_options: MakeOptions) -> None:
    options = make_options(**changes)
    needed, size = memory_of(options, 3), bytes_of(build(options, 3).model)
    assert (needed.weights, needed.gradients, needed.moments) == (size, size, 2 * size)
    assert needed.embedding == 4 * 96 * (3 * 4 * 4 + 1)


@pytest.mark.parametrize("changes", [{"model": "alexnet"}, {"model": "cnn"}, {"model": TIMM, "patch": True}])
def test_every_model_can_be_counted(changes: dict[str, object], make_options: MakeOptions) -> None:
    options = make_options(image_size=64, drop_path=0.1, **changes)
    assert memory_of(options).gradients == bytes_of(build(options, 2).model)


@pytest.mark.parametrize("model", ["vit", "resvit", "resnet18", TIMM])
def test_larger_images_and_batches_need_more(model: str, make_options: MakeOptions) -> None:
    options = make_options(model=model, size="small", image_size=64)
    small = memory_of(options)
    assert memory_of(replace(options, image_size=128)).activations > 2 * small.activations
    assert memory_of(replace(options, batch_size=64)).activations > 4 * small.activations


def test_only_what_stores_all_probabilities_grows_with_their_number(make_options: MakeOptions) -> None:
    """Four times the pixels give four times the tokens: the library's attention stores N x N values, rsattn's N."""
    growth = {
        model: memory_of(make_options(model=model, size="base", image_size=1024)).activations
        / memory_of(make_options(model=model, size="base", image_size=512)).activations
        for model in ("vit", "resvit")
    }
    assert growth["resvit"] < 5 < 10 < growth["vit"]


def test_half_precision_holds_less(make_options: MakeOptions) -> None:
    options = make_options(batch_size=512)
    single, double = memory_of(options), memory_of(replace(options, precision="64-true"))
    assert memory_of(replace(options, precision="bf16-mixed")).activations < single.activations
    assert double.weights == 2 * single.weights
    assert double.activations > 1.9 * single.activations


def test_what_is_frozen_has_no_gradient_and_keeps_nothing(make_options: MakeOptions) -> None:
    trained = memory_of(make_options(batch_size=64, augment="mirror"))
    frozen = memory_of(make_options(batch_size=64, augment="mirror", freeze=True))
    assert frozen.gradients == 4 * (96 * 2 + 2)
    assert frozen.activations < trained.activations / 3
    kept = memory_of(make_options(batch_size=8, freeze=True))  # features are computed 32 at a time
    assert kept.activations > memory_of(make_options(batch_size=8, freeze=True, augment="mirror")).activations


def test_images_are_kept_up_to_a_limit(make_options: MakeOptions) -> None:
    assert memory_of(make_options(), images=100).images == 100 * 3 * 16 * 16
    assert memory_of(make_options(), images=10**9).images == 0


def test_absurd_sizes_are_counted_too(make_options: MakeOptions) -> None:
    needed = memory_of(make_options(image_size=100_000))
    assert needed.weights > 700 * GB
    assert needed.embedding > 0.99 * needed.weights
    assert memory_of(make_options(model="vit", size="base", image_size=4096)).step > 10_000 * GB


def test_what_cannot_be_built_is_refused_in_the_words_of_the_model(make_options: MakeOptions) -> None:
    with pytest.raises(CommandError, match="not a multiple of the 16-pixel patches"):
        memory_needed(make_options(size="base", image_size=100), 2)


def test_a_model_that_needs_data_is_not_counted(make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reads(nn.Linear):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels.flatten(1) if float(pixels.sum()) else pixels)

    monkeypatch.setattr(memory, "build", lambda *args, **kwargs: Built(Reads(768, 2), "", (0.0,), (1.0,)))
    assert memory_needed(make_options(), 2) is None
    refuse_what_cannot_fit(make_options())
