"""Matrix products in place of PyTorch's fused attention: where they are used, and that they are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console
from runs import MakeOptions

from rsattn.finetune import running, training
from rsattn.finetune.classifier import Classifier
from rsattn.finetune.cpu_attention import use_matrix_products
from rsattn.finetune.loading import load
from rsattn.finetune.models import build
from rsattn.finetune.run_folder import RunFolder

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch finds a GPU, which keeps the fused kernel")


@pytest.mark.parametrize(
    ("precision", "image_size", "fused"),
    [("bf16-mixed", 224, False), ("bf16-mixed", 288, True), ("32-true", 224, True)],
)
def test_fused_attention_is_off_in_bfloat16_with_at_most_256_patches(
    precision: str, image_size: int, fused: bool, make_options: MakeOptions
) -> None:
    options = make_options(model="vit_tiny_patch16_224", image_size=image_size, precision=precision)
    model = build(options, 2).model
    use_matrix_products(model, options)
    blocks = model.get_submodule("blocks")
    assert {block.get_submodule("attn").fused_attn for block in blocks.children()} == {fused}


def test_only_training_uses_the_products(
    make_options: MakeOptions, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run predicts with the fused kernel, which is faster without a backward pass."""
    options = make_options(model="vit_tiny_patch16_224", image_size=32, precision="bf16-mixed", epochs=1)
    seen = []
    monkeypatch.setattr(training, "Classifier", lambda *given: seen.append(given[2].model) or Classifier(*given))
    running.run(options, console)
    loaded = load(RunFolder(Path(options.out)).tested).model
    fused = [model.get_submodule("blocks.0.attn").fused_attn for model in (*seen, loaded)]
    assert fused == [False, True]


def test_the_products_compute_the_same(make_options: MakeOptions) -> None:
    options = make_options(model="vit_tiny_patch16_224", image_size=64, precision="bf16-mixed")
    products, usual = (build(options, 2).model.eval() for _ in range(2))
    use_matrix_products(products, options)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for model in (products, usual):
        model(images).logsumexp(1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for found, expected in zip(*gradients):
        # float32 with the sums in another order
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
