"""The residual alone: adding the best head's output to the projected output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import rsattn
from rsattn import reference

from ..baselines import EAGER, RSATTN
from ..cases import Case, Setup
from ..clock import Variant, copies
from ..shapes import Shape, real_shapes
from .attention import dtypes

MODELS = ("ViT-B/16 at 224", "ViT-B/16 at 384", "the paper's authors'")


def cases(device: torch.device) -> list[Case]:
    shapes = real_shapes(device)
    return [Case("epilogue", shapes[model], dtype, model=model) for model in MODELS for dtype in dtypes(device)]


def names(case: Case, device: torch.device) -> list[str]:
    return [RSATTN, EAGER]


def token_dim(shape: Shape) -> int:
    """D; a full-width head has E = D."""
    return shape.dim if shape.head_dim < 768 else shape.head_dim


def moved(case: Case) -> int:
    """Bytes moved: the projected output is read and written, the best head is read."""
    shape = case.shape
    return shape.batch * shape.length * (2 * token_dim(shape) + shape.head_dim) * case.itemsize


def setup(case: Case, device: torch.device) -> Setup:
    shape = case.shape
    like: dict[str, Any] = {"device": device, "dtype": case.torch_dtype}
    sets = []
    for _ in range(copies(device, moved(case))):
        output = torch.randn(shape.batch, shape.length, shape.heads, shape.head_dim, **like).transpose(1, 2)
        norms = torch.rand(shape.batch, shape.heads, device=device)
        projected = torch.randn(shape.batch, shape.length, token_dim(shape), **like)
        sets.append((projected, rsattn.ResidualAttention(output, norms, norms.argmax(1))))

    @torch.no_grad()
    def ours(index: int) -> Tensor:
        return rsattn.add_best_head(*sets[index])

    @torch.no_grad()
    def eager(index: int) -> Tensor:
        projected, attention = sets[index]
        return reference.add_best_head(projected, attention.output, attention.best_head, "tile")

    want = eager(0)

    def check(name: str, result: Any) -> None:
        torch.testing.assert_close(result, want, rtol=0, atol=0)

    return Setup({RSATTN: Variant(ours), EAGER: Variant(eager)}, len(sets), check)
