"""MONAI's networks whose attention `patch` changes, and its block alone with what the networks do not use."""

from __future__ import annotations

import torch
from case import DIM, HEADS, IMAGE, Case
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets import UNETR, ViT
from monai.networks.nets.swin_unetr import BasicLayer
from oracle import normal
from torch import Tensor, nn

RATE = 0.25


def vit() -> nn.Module:
    return ViT(
        3, (IMAGE, IMAGE), (8, 8), DIM, 40, 2, HEADS, classification=True, num_classes=5, dropout_rate=RATE,
        spatial_dims=2, qkv_bias=True,
    )  # fmt: skip


def unetr(*size: int) -> nn.Module:
    """As small as it gets: patches of 16 and 12 blocks are fixed."""
    return UNETR(1, 2, size, 4, DIM, 40, HEADS, norm_name="instance", dropout_rate=RATE, spatial_dims=len(size))


def block(**options: object) -> nn.Module:
    return nn.Sequential(SABlock(DIM, HEADS, RATE, **options))


def flash() -> nn.Module:
    model = block(use_flash_attention=True)
    model[0].dropout_rate = 0.0  # what MONAI drops with in evaluation too, where its result is to be compared
    return model


def positions_3d() -> nn.Module:
    return block(rel_pos_embedding="decomposed", input_size=(2, 2, 2))  # MONAI 1.6 can do cubes only


def swin(*window: int) -> nn.Module:
    """A stage of SwinUNETR: two windows along each axis, in the second block shifted by half a window."""
    return BasicLayer(DIM, 2, HEADS, window, [0.0, 0.0], qkv_bias=True, attn_drop=RATE)


def swin_case(*window: int) -> Case:
    image = (2, DIM, *(2 * length for length in window))
    return Case(
        f"monai-swin-{len(window)}d",
        lambda: swin(*window),
        ["blocks.0.attn", "blocks.1.attn"],
        lambda dtype: normal(*image, dtype=dtype),
        fresh=False,
    )


def unetr_case(*size: int) -> Case:
    return Case(
        f"monai-unetr-{len(size)}d",
        lambda: unetr(*size),
        [f"vit.blocks.{i}.attn" for i in range(12)],
        lambda dtype: normal(2, 1, *size, dtype=dtype),
    )


def tokens(dtype: torch.dtype) -> Tensor:
    return normal(3, 12, DIM, dtype=dtype)


def block_case(name: str, fresh: bool = True, packed: bool = True, **options: object) -> Case:
    return Case(f"monai-{name}", lambda: block(**options), ["0"], tokens, fresh=fresh, packed=packed)


CASES = [
    Case("monai-vit", vit, ["blocks.0.attn", "blocks.1.attn"], call=lambda model, images: model(images)[0]),
    unetr_case(IMAGE, IMAGE),
    unetr_case(IMAGE, IMAGE, 16),
    block_case("causal", packed=False, causal=True, sequence_length=16, use_combined_linear=False),
    block_case("unprojected", include_fc=False, fresh=False),
    block_case("positions-2d", rel_pos_embedding="decomposed", input_size=(3, 4), fresh=False),
    Case("monai-positions-3d", positions_3d, ["0"], lambda dtype: normal(3, 8, DIM, dtype=dtype), fresh=False),
    Case("monai-flash", flash, ["0"], tokens),
    swin_case(4, 4),
    swin_case(2, 2, 2),
]
