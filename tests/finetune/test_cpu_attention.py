"""Matrix products in place of PyTorch's fused attention: where they are used, and that they compute the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from runs import MakeOptions

from rsattn.finetune.models import build

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch finds a GPU, which keeps the fused kernel")


@pytest.mark.parametrize(
    ("precision", "image_size", "fused"),
    [("bf16-mixed", 224, False), ("bf16-mixed", 288, True), ("32-true", 224, True)],
)
def test_fused_attention_is_off_in_bfloat16_with_at_most_256_patches(
    precision: str, image_size: int, fused: bool, make_options: MakeOptions
) -> None:
    options = make_options(model="vit_tiny_patch16_224", image_size=image_size, precision=precision)
    blocks = build(options, 2).model.get_submodule("blocks")
    assert {block.get_submodule("attn").fused_attn for block in blocks.children()} == {fused}


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_other_models_stay_as_they_are(name: str, make_options: MakeOptions) -> None:
    options = make_options(model=name, image_size=224)
    models = [build(replace(options, precision=p), 2).model for p in ("bf16-mixed", "32-true")]
    found, expected = ([getattr(module, "fused_attn", None) for module in model.modules()] for model in models)
    assert found == expected


def test_the_products_compute_the_same(make_options: MakeOptions) -> None:
    options = make_options(model="vit_tiny_patch16_224", image_size=64, precision="bf16-mixed")
    fast, usual = (build(replace(options, precision=p), 2).model.eval() for p in (options.precision, "32-true"))
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for model in (fast, usual):
        model(images).logsumexp(1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for found, expected in zip(*gradients):
        # float32 with the sums in another order
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
