"""vit-pytorch's models whose attention `patch` changes."""

from __future__ import annotations

import torch
from case import DIM, HEADS, IMAGE, Case
from oracle import normal
from torch import Tensor, nn
from vit_pytorch import SimpleViT, ViT, simple_vit_3d, vit_3d

SIZES = dict(image_size=IMAGE, patch_size=8, num_classes=5, dim=DIM, depth=2, mlp_dim=40)


def vit() -> nn.Module:
    return ViT(**SIZES, heads=HEADS, dim_head=DIM // HEADS, dropout=0.25)


def simple_vit() -> nn.Module:
    model = SimpleViT(**SIZES, heads=HEADS, dim_head=DIM // HEADS)
    model.to_latent = nn.Dropout(0.25)  # the library has none here, and training is to differ from evaluation
    return model


VOLUME = dict(image_size=16, image_patch_size=8, frames=8, frame_patch_size=2, num_classes=5, dim=DIM, depth=2)


def volume_vit() -> nn.Module:
    return vit_3d.ViT(**VOLUME, mlp_dim=40, heads=HEADS, dim_head=DIM // HEADS, dropout=0.25)


def volume_simple_vit() -> nn.Module:
    model = simple_vit_3d.SimpleViT(**VOLUME, mlp_dim=40, heads=HEADS, dim_head=DIM // HEADS)
    model.to_latent = nn.Dropout(0.25)
    return model


def volumes(dtype: torch.dtype) -> Tensor:
    return normal(2, 3, 8, 16, 16, dtype=dtype)


BLOCKS = ["transformer.layers.0.0", "transformer.layers.1.0"]

CASES = [
    Case("vit_pytorch-vit", vit, BLOCKS),
    Case("vit_pytorch-simple-vit", simple_vit, BLOCKS, dropout=0.0),
    Case("vit_pytorch-vit-3d", volume_vit, BLOCKS, volumes),
    Case("vit_pytorch-simple-vit-3d", volume_simple_vit, BLOCKS, volumes, dropout=0.0),
]
