"""The peak rates of the device: the rate of a large matrix product and the bandwidth of a large copy."""

from __future__ import annotations

import torch

from ..cases import Case, Setup
from ..clock import Variant
from ..shapes import Shape
from .attention import dtypes

PRODUCT, COPY = "matrix product", "copy"
COPIED = 2**28  # bytes; a copy reads and writes this many


def cases(device: torch.device) -> list[Case]:
    side = 8192 if device.type == "cuda" else 1536
    return [Case("ceilings", Shape(1, 1, side, side), dtype) for dtype in dtypes(device)]


def names(case: Case, device: torch.device) -> list[str]:
    return [PRODUCT, COPY]


def flops(case: Case) -> int:
    return 2 * case.shape.length**3


def setup(case: Case, device: torch.device) -> Setup:
    side = case.shape.length
    left, right = (torch.randn(side, side, device=device, dtype=case.torch_dtype) for _ in range(2))
    source = torch.randn(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return Setup({PRODUCT: Variant(lambda _: left @ right), COPY: Variant(lambda _: target.copy_(source))})
