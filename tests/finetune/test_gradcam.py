"""Grad-CAM against captum and against its formula, on every kind of model, which stays as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from runs import MakeOptions

from rsattn.finetune import gradcam
from rsattn.finetune.gradcam import cams, grad_cam
from rsattn.finetune.models import build
from rsattn.finetune.options import Options


def images(side: int) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))


def started(options: Options) -> Any:
    """The model with a classifier that is not 0, as it is in an untrained ViT."""
    built = build(options, 2)
    classifier: Any = built.model.get_submodule(built.classifier)
    torch.nn.init.normal_(classifier.weight, generator=torch.Generator().manual_seed(1))
    return built.model.eval()


@pytest.mark.parametrize("frozen", [False, True])
def test_of_a_cnn_it_is_captums(frozen: bool, make_options: MakeOptions) -> None:
    model = build(make_options(model="resnet18", image_size=64), 2).model.eval()
    expected = LayerGradCam(model, model.layer4).attribute(images(64), target=[0, 1, 1], relu_attributions=True)
    model.requires_grad_(not frozen)
    found = grad_cam(model, images(64), [0, 1, 1])
    assert found is not None
    torch.testing.assert_close(found, expected[:, 0].detach())
    assert found.max() > 0


def test_of_the_small_cnn_it_is_the_formula(make_options: MakeOptions) -> None:
    """The ReLU after the last convolution, whose map the pooling would halve."""
    model: Any = build(make_options(model="cnn"), 2).model.eval()
    names = list(dict(model.named_children()))
    after = names.index("relu3") + 1
    features = model[:after](images(16)).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(model[after:](features)[:, 0].sum(), features)
    expected = torch.einsum("bc,bchw->bhw", slopes.mean((2, 3)), features).clamp(min=0).detach()
    found = grad_cam(model, images(16), [0, 0, 0])
    assert found is not None
    assert found.shape == (3, 4, 4)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["vit", "resvit"])
def test_of_a_vit_it_weights_the_tokens_before_the_last_attention(name: str, make_options: MakeOptions) -> None:
    model = started(make_options(model=name))
    kept = {}
    norm = model.transformer.blocks[-1].norm1
    hook = norm.register_forward_hook(lambda module, inputs, output: kept.update(tokens=output))
    logits = model(images(16))
    hook.remove()
    (slopes,) = torch.autograd.grad(logits[:, 1].sum(), kept["tokens"])
    tokens, slopes = kept["tokens"][:, 1:], slopes[:, 1:]  # without the class token
    expected = (slopes.mean(1, keepdim=True) * tokens).sum(2).clamp(min=0).detach()
    found = grad_cam(model, images(16), [1, 1, 1])
    assert found is not None
    torch.testing.assert_close(found, expected.view(3, 4, 4))


@pytest.mark.parametrize(
    ("model", "side", "patch", "rows"),
    [
        ("cnn", 16, False, 4),
        ("alexnet", 64, False, 3),  # not the 6 that its adaptive pooling repeats
        ("resnet18", 64, False, 2),
        ("vit", 16, False, 4),
        ("resvit", 16, False, 4),
        ("vit_tiny_patch16_224", 64, False, 4),
        ("vit_tiny_patch16_224", 64, True, 4),
        ("vit_small_patch14_dinov2", 56, False, 4),
        ("swin_tiny_patch4_window7_224", 64, True, 2),
        ("convnext_atto", 64, False, 2),
        ("convit_tiny", 64, False, 4),  # not the 17 x 17 of its attention
    ],
)
def test_every_model_has_a_map_and_stays_as_it_was(
    model: str, side: int, patch: bool, rows: int, make_options: MakeOptions
) -> None:
    built = started(make_options(model=model, image_size=side, patch=patch))
    before = {name: value.clone() for name, value in built.state_dict().items()}
    flags = [parameter.requires_grad for parameter in built.parameters()]
    with torch.inference_mode():
        found = grad_cam(built, images(side), [0, 1, 0])
    assert found is not None
    assert found.shape == (3, rows, rows)
    assert found.isfinite().all()
    assert (found >= 0).all()
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())
    assert [parameter.requires_grad for parameter in built.parameters()] == flags
    assert all(parameter.grad is None for parameter in built.parameters())
    assert not any(module._forward_hooks for module in built.modules())


def test_a_map_with_as_many_rows_as_channels_is_not_turned() -> None:
    """(B, 4, 4, 4): the channels are first."""
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 4, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    model = torch.nn.Sequential(*layers).eval()
    expected = LayerGradCam(model, model[0]).attribute(images(4), target=0, relu_attributions=True)
    torch.testing.assert_close(grad_cam(model, images(4), [0, 0, 0]), expected[:, 0].detach())


def test_a_trained_cnn_s_map_is_on_the_square_that_makes_the_class(make_options: MakeOptions) -> None:
    """One class is noise, the other has a bright square in it, which covers 4 of the 16 positions of the map.

    A map that knows no place has a quarter of its mass there. Positions beside the square see it too, so not all of the
    mass can be there. In ViTs as small as this one, the map of the last block has no more than that quarter: its tokens
    have mixed. There the formula is tested, and no place is promised.
    """
    draw = torch.Generator().manual_seed(0)

    def made(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images, classes, and masks (count, 16, 16) of the squares."""
        pixels, masks = torch.randn(count, 3, 16, 16, generator=draw) / 4, torch.zeros(count, 16, 16, dtype=torch.bool)
        labels = torch.arange(count) % 2
        for image, mask in zip(pixels[1::2], masks[1::2]):
            top, left = (4 * int(torch.randint(3, (), generator=draw)) for _ in range(2))
            image[:, top : top + 8, left : left + 8] += 2
            mask[top : top + 8, left : left + 8] = True
        return pixels, labels, masks

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the dropout
        model = build(make_options(model="cnn"), 2).model
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(40):
            pixels, labels, _ = made(32)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(pixels), labels).backward()
            optimizer.step()
    pixels, labels, masks = made(32)
    assert (model.eval()(pixels).argmax(1) == labels).all()
    found = grad_cam(model, pixels[1::2], labels[1::2])
    assert found is not None
    assert float((found * masks[1::2, ::4, ::4]).sum() / found.sum()) > 1.5 / 4


def test_images_are_computed_in_batches_of_the_training(
    make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    compute = gradcam.grad_cam
    monkeypatch.setattr(
        gradcam, "grad_cam", lambda model, batch, t: sizes.append(len(batch)) or compute(model, batch, t)
    )
    model = build(make_options(model="cnn"), 2).model.eval()
    loaded: Any = SimpleNamespace(model=model, options=make_options(batch_size=2), device=torch.device("cpu"))
    found = cams(loaded, images(16), [0, 1, 0])
    assert sizes == [2, 1]
    together = compute(model, images(16), [0, 1, 0])
    assert together is not None
    for one, expected in zip(found, together):
        torch.testing.assert_close(torch.zeros(4, 4) if one is None else one, expected)


def test_a_model_that_forgets_places_has_no_map() -> None:
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16, 2))
    assert grad_cam(flat.eval(), images(4), [0, 0, 1]) is None
