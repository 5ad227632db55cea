"""Grad-CAM against captum and against its formula, on every kind of model, which stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from runs import MakeOptions

from rsattn.finetune.gradcam import grad_cam
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


def test_of_a_vit_it_weights_the_tokens_before_the_last_attention(make_options: MakeOptions) -> None:
    model = started(make_options())
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
    ("model", "side", "patch"),
    [
        ("cnn", 16, False),
        ("alexnet", 64, False),
        ("resnet18", 64, False),
        ("vit", 16, False),
        ("resvit", 16, False),
        ("vit_tiny_patch16_224", 64, True),
        ("vit_small_patch14_dinov2", 56, False),
        ("swin_tiny_patch4_window7_224", 64, True),
        ("convnext_atto", 64, False),
    ],
)
def test_every_model_has_a_map_and_stays_as_it_was(
    model: str, side: int, patch: bool, make_options: MakeOptions
) -> None:
    built = started(make_options(model=model, image_size=side, patch=patch))
    before = {name: value.clone() for name, value in built.state_dict().items()}
    flags = [parameter.requires_grad for parameter in built.parameters()]
    with torch.inference_mode():
        found = grad_cam(built, images(side), [0, 1, 0])
    assert found is not None
    assert found.shape[0] == 3
    assert found.shape[1] == found.shape[2] > 1
    assert found.isfinite().all()
    assert (found >= 0).all()
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())
    assert [parameter.requires_grad for parameter in built.parameters()] == flags
    assert all(parameter.grad is None for parameter in built.parameters())
    assert not any(module._forward_hooks for module in built.modules())


def test_a_model_that_forgets_places_has_no_map() -> None:
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16, 2))
    assert grad_cam(flat.eval(), images(4), [0, 0, 1]) is None
