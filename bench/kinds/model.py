"""A whole ViT-B/16: the library's model with eager attention, the same weights on SDPA, and the patched model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import rsattn

from .. import baselines
from ..cases import Case, Setup
from ..clock import Variant
from ..inputs import tell_heads_apart
from ..shapes import Shape

PIXELS = {197: 224, 577: 384}
# The rounding error of twelve layers.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}


def cases(device: torch.device) -> list[Case]:
    def case(batch: int, length: int, train: bool) -> Case:
        dtype = "bfloat16" if device.type == "cuda" else "float32"
        return Case("model", Shape(batch, 12, length, 64), dtype, train, f"ViT-B/16 at {PIXELS[length]}")

    if device.type == "cuda":
        return [case(64, 197, False), case(64, 197, True), case(32, 577, False), case(32, 577, True)]
    return [case(1, 197, False), case(1, 197, True), case(1, 577, False)]


def names(case: Case, device: torch.device) -> list[str]:
    return [baselines.RSATTN, baselines.SDPA, baselines.EAGER]


class SdpaAttention(nn.Module):
    """pytorch_pretrained_vit's attention through SDPA, the fastest form of its block."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q, self.k, self.v = attention.proj_q, attention.proj_k, attention.proj_v
        self.heads = attention.n_heads

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        def split(tensor: Tensor) -> Tensor:
            return tensor.unflatten(2, (self.heads, -1)).transpose(1, 2)

        output, _ = baselines.sdpa(split(self.q(x)), split(self.k(x)), split(self.v(x)))
        return output.transpose(1, 2).flatten(2)


def _forget(attention: Any, *_: object) -> None:
    """Drop the probabilities that the library keeps: they keep an autograd graph, which a CUDA graph cannot capture."""
    attention.scores = None


def setup(case: Case, device: torch.device) -> Setup:
    """All models are in eval mode, because each would draw other dropout masks and they could not be compared."""
    from pytorch_pretrained_vit import ViT

    pixels = PIXELS[case.shape.length]

    def new() -> Any:
        torch.manual_seed(0)
        vit = ViT("B_16_imagenet1k", pretrained=False, image_size=pixels)
        nn.init.normal_(vit.fc.weight, std=0.02)  # the library initializes it with zeros, which would hide all errors
        for block in vit.transformer.blocks:
            tell_heads_apart(block.attn.proj_q.weight, case.shape.heads)
        return vit.eval().to(device, case.torch_dtype)

    models: dict[str, Any] = {baselines.RSATTN: new(), baselines.SDPA: new(), baselines.EAGER: new()}
    rsattn.patch(models[baselines.RSATTN], init_values=None)
    for block in models[baselines.SDPA].transformer.blocks:
        block.attn = SdpaAttention(block.attn)
    for block in models[baselines.EAGER].transformer.blocks if case.train else ():
        block.attn.register_forward_hook(_forget)
    images = torch.randn(case.shape.batch, 3, pixels, pixels, device=device, dtype=case.torch_dtype)

    def step(vit: nn.Module) -> Callable[[int], tuple[Tensor, ...]]:
        def forward(index: int) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (vit(images),)

        parameters = [parameter for parameter in vit.parameters() if parameter.requires_grad]

        def both(index: int) -> tuple[Tensor, ...]:
            return torch.autograd.grad(vit(images).square().mean(), parameters)

        return both if case.train else forward

    def check(name: str, result: tuple[Tensor, ...]) -> None:
        """Check the output of the first image; tests/ checks the gradients."""
        with torch.no_grad():
            mine = models[name](images[:1])
            if name == baselines.RSATTN:
                reference = new()
                rsattn.patch(reference, init_values=None, backend="reference")
                want = reference(images[:1])
            else:
                want = models[baselines.EAGER](images[:1])
        error = float((mine.double() - want.double()).norm() / want.double().norm())
        if not error <= TOLERANCE[case.torch_dtype]:
            raise AssertionError(f"{name} is off by {error:.1e} of its size in {case.dtype}")

    return Setup({name: Variant(step(vit)) for name, vit in models.items()}, 1, check, tuple(models))
