"""DINOv2's vision transformer, with the attention its builders put in and the one that is its default."""

from __future__ import annotations

from functools import partial

from case import DIM, HEADS, IMAGE, Case
from dinov2.layers.attention import Attention, MemEffAttention
from dinov2.layers.block import NestedTensorBlock
from dinov2.models.vision_transformer import DinoVisionTransformer
from torch import nn


def vision_transformer(attention: type[nn.Module]) -> nn.Module:
    block = partial(NestedTensorBlock, attn_class=attention, attn_drop=0.25)
    return DinoVisionTransformer(
        img_size=IMAGE, patch_size=8, embed_dim=DIM, depth=2, num_heads=HEADS, init_values=0.5, block_chunks=0,
        block_fn=block,
    )  # fmt: skip


def case(name: str, attention: type[nn.Module]) -> Case:
    return Case(f"dinov2-{name}", lambda: vision_transformer(attention), ["blocks.0.attn", "blocks.1.attn"])


CASES = [case("attention", Attention), case("mem-eff-attention", MemEffAttention)]
