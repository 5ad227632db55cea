"""vit-pytorch's models whose attention `patch` changes."""

from __future__ import annotations

from case import DIM, HEADS, IMAGE, Case
from torch import nn
from vit_pytorch import SimpleViT, ViT

SIZES = dict(image_size=IMAGE, patch_size=8, num_classes=5, dim=DIM, depth=2, mlp_dim=40)


def vit() -> nn.Module:
    return ViT(**SIZES, heads=HEADS, dim_head=DIM // HEADS, dropout=0.25)


def simple_vit() -> nn.Module:
    model = SimpleViT(**SIZES, heads=HEADS, dim_head=DIM // HEADS)
    model.to_latent = nn.Dropout(0.25)  # the library has none here, and training is to differ from evaluation
    return model


BLOCKS = ["transformer.layers.0.0", "transformer.layers.1.0"]

CASES = [
    Case("vit_pytorch-vit", vit, BLOCKS),
    Case("vit_pytorch-simple-vit", simple_vit, BLOCKS, dropout=0.0),
]
