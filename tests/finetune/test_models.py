"""The models: their structure, the sources of their weights, and the errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import MakeOptions
from torch import nn

from rsattn import ResidualSelfAttention
from rsattn.cli.command import CommandError
from rsattn.finetune.models import OURS, build, is_residual, refuse_images_of_another_size, rows_left_out
from rsattn.finetune.skipped import residual_is_missing_in
from rsattn.recording import residual_modules

TIMM = "vit_tiny_patch16_224"


@pytest.mark.parametrize("name", [*OURS, TIMM])
def test_every_model_ends_in_one_linear_layer_of_its_classes(name: str, make_options: MakeOptions) -> None:
    built = build(make_options(model=name, image_size=64), classes=3)
    classifier = built.model.get_submodule(built.classifier)
    assert isinstance(classifier, nn.Linear)
    assert classifier.out_features == 3
    assert built.model.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    assert len(built.mean) == len(built.std) == 3


@pytest.mark.parametrize("name", ["resvit", "cnn", TIMM])
def test_weights_depend_on_the_seed_alone(name: str, make_options: MakeOptions) -> None:
    def numbers(seed: int) -> list[torch.Tensor]:
        return list(build(make_options(model=name, image_size=64, seed=seed), 3).model.state_dict().values())

    torch.manual_seed(7)
    first = numbers(1)
    torch.manual_seed(8)
    before = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(first, numbers(1)))
    assert torch.equal(before, torch.get_rng_state())
    assert not all(torch.equal(a, b) for a, b in zip(first, numbers(2)))


@pytest.mark.parametrize(("name", "patch"), [("resvit", False), (TIMM, True)])
def test_a_residual_model_has_the_settings_asked_for(name: str, patch: bool, make_options: MakeOptions) -> None:
    options = make_options(model=name, patch=patch, image_size=64, norm="confidence", scope="batch", merge="slot")
    assert is_residual(options)
    modules = residual_modules(build(options, 3).model).values()
    assert {(m.options.norm, m.options.scope, m.options.merge) for m in modules} == {("confidence", "batch", "slot")}


@pytest.mark.parametrize("name", ["vit", TIMM, "cnn"])
def test_a_plain_model_has_none(name: str, make_options: MakeOptions) -> None:
    options = make_options(model=name, image_size=64)
    assert not is_residual(options)
    assert not residual_modules(build(options, 3).model)


@pytest.mark.parametrize(("name", "patch", "width"), [("resvit", False, 96), (TIMM, True, 192)])
def test_full_width_is_four_fresh_heads_as_wide_as_the_tokens(
    name: str, patch: bool, width: int, make_options: MakeOptions
) -> None:
    options = make_options(model=name, patch=patch, image_size=64, full_width=True)
    modules = list(residual_modules(build(options, 3).model).values())
    assert modules
    for module in modules:
        assert isinstance(module, ResidualSelfAttention)
        assert (module.num_heads, module.head_dim) == (4, width)


@pytest.mark.parametrize("name", ["resvit", "cnn", "resnet18", TIMM])
def test_weights_from_a_file_are_all_taken_but_the_classifier(
    name: str, make_options: MakeOptions, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    trained = build(make_options(model=name, image_size=64, seed=5), classes=7).model.state_dict()
    torch.save(trained, path)
    built = build(make_options(model=name, image_size=64, weights=str(path)), classes=3)
    for key, value in built.model.state_dict().items():
        if not key.startswith(built.classifier):
            assert torch.equal(value, trained[key]), key


def test_position_embeddings_are_resized_to_the_images(make_options: MakeOptions, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    small = build(make_options(model=TIMM, image_size=32), 3).model.state_dict()
    torch.save(small, path)
    built = build(make_options(model=TIMM, image_size=64, weights=str(path)), 3)
    assert built.model.state_dict()["pos_embed"].shape[1] == 1 + 16
    assert torch.equal(built.model.state_dict()["blocks.0.mlp.fc1.weight"], small["blocks.0.mlp.fc1.weight"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(model="resvitt"), r"unknown model 'resvitt'.* such as resvit"),
        (dict(model="resnet-18"), "such as resnet18, resnet18d"),
        (dict(model="vit_small"), "a timm model, such as vit_small_"),
        (dict(model="vit", image_size=21), "not a multiple of the 5-pixel"),
        (dict(model="vit", weights="pretrained"), "no pretrained weights for a tiny vit"),
        (dict(model="cnn", weights="pretrained"), "no pretrained weights for the cnn"),
        (dict(model="cnn", weights="nowhere.pt"), "cannot read the weights nowhere.pt: .* --weights pretrained and"),
        (dict(model="resnet18", patch=True), "cannot have residual attention"),
        (dict(model="vit_tiny_r_s16_p8_224", image_size=36), "cannot be built for --image-size 36: AssertionError"),
    ],
)
def test_what_cannot_be_built_is_said_in_a_sentence(
    changes: dict[str, object], words: str, make_options: MakeOptions
) -> None:
    with pytest.raises(CommandError, match=words):
        build(make_options(**changes), 3)


@pytest.mark.parametrize(("name", "size"), [(TIMM, 8), ("cnn", 4), ("alexnet", 16)])
def test_images_that_are_too_small_for_the_model_are_refused(name: str, size: int, make_options: MakeOptions) -> None:
    with pytest.raises(CommandError, match=rf"^{name} cannot take images of --image-size {size} \(.+\): give a larger"):
        refuse_images_of_another_size(make_options(model=name, image_size=size), 3)
    refuse_images_of_another_size(make_options(model=name, image_size=64), 3)


def test_rows_in_no_patch_are_counted(make_options: MakeOptions) -> None:
    sizes = {"vit_tiny_patch16_224": (16, 4), "resnet18": (1, 0), "vit": (1, 0)}
    for name, expected in sizes.items():
        options = make_options(model=name, image_size=36)
        assert rows_left_out(build(options, 3).model, options) == expected


def test_weights_of_another_model_are_refused_by_name(make_options: MakeOptions, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(build(make_options(model="cnn"), 3).model.state_dict(), path)
    with pytest.raises(CommandError, match="does not fit a tiny resvit: missing"):
        build(make_options(weights=str(path)), 3)


def test_no_network_is_a_sentence_with_two_ways_out(make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(CommandError, match=r"no network.*--weights none.*--weights PATH"):
        build(make_options(model="resnet18", image_size=64, weights="pretrained"), 3)


@pytest.mark.parametrize("name", ["vgg11", "densenet121", "resnet10t", "vit_tiny_patch16_224"])
def test_models_of_timm_s_that_know_no_image_size_or_drop_path_are_built(name: str, make_options: MakeOptions) -> None:
    built = build(make_options(model=name, image_size=32, drop_path=0.1), 3)
    assert isinstance(built.model.get_submodule(built.classifier), nn.Linear)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224"])
def test_windows_keep_their_attention(name: str, make_options: MakeOptions) -> None:
    """Whatever the image's size it gets a residual, but not the authors' heads, which have no position bias."""
    pytest.importorskip("timm", reason="pip install timm")
    options = make_options(model=name, patch=True, image_size=60)
    built = build(options, 2)
    assert len(residual_modules(built.model)) == 12
    assert built.model.eval()(torch.zeros(1, 3, 60, 60)).shape == (1, 2)
    with pytest.raises(CommandError, match=f"(?s)^{name} cannot have residual.* would lose this one's position"):
        build(replace(options, full_width=True), 2)


def test_attention_that_has_no_residual_is_counted(make_options: MakeOptions) -> None:
    pytest.importorskip("timm", reason="pip install timm")
    options = make_options(model="vit_base_patch16_siglip_224", patch=True, image_size=32)
    skipped = build(options, 2).skipped
    assert list(skipped) == ["attn_pool"]
    said = residual_is_missing_in(skipped)
    assert said.startswith(
        "no residual in 1 attention module of the model: rsattn does not know timm.layers.attention_pool"
    )
    assert residual_is_missing_in(build(make_options(), 2).skipped) == ""
