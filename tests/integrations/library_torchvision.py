"""torchvision's models whose attention `patch` changes; its vision transformer is PyTorch's attention."""

from __future__ import annotations

from typing import Any

from case import DIM, HEADS, Case
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

WINDOW = 4
BLOCKS = ["features.1.0.attn", "features.1.1.attn"]


def swin(**options: object) -> nn.Module:
    """Four windows of 16 tokens, in the second block shifted by half a window."""
    return SwinTransformer(
        [4, 4], DIM, [2], [HEADS], [WINDOW, WINDOW], attention_dropout=0.25, stochastic_depth_prob=0.0, num_classes=5,
        **options,
    )  # fmt: skip


def swin_v2() -> nn.Module:
    return swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


def windows(attention: Any, output: Tensor) -> Tensor:
    """(B, height, width, D) -> (B * windows, 16, D); the image is shifted as the attention shifted it."""
    shifted = output.roll([-step for step in attention.shift_size], (1, 2))
    cut = shifted.unfold(1, WINDOW, WINDOW).unfold(2, WINDOW, WINDOW)  # (B, rows, columns, D, 4, 4)
    return cut.permute(0, 1, 2, 4, 5, 3).reshape(-1, WINDOW * WINDOW, output.shape[-1])


CASES = [
    Case("torchvision-swin", swin, BLOCKS, fresh=False, as_tokens=windows),
    Case("torchvision-swin-v2", swin_v2, BLOCKS, fresh=False, packed=False, as_tokens=windows),
]
