"""timm's models whose attention `patch` changes."""

from __future__ import annotations

from functools import partial

import timm
from case import DIM, HEADS, IMAGE, Case
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

SIZES = dict(img_size=IMAGE, patch_size=8, embed_dim=DIM, depth=2, num_heads=HEADS, num_classes=5, attn_drop_rate=0.25)
BLOCKS = ["blocks.0.attn", "blocks.1.attn"]


def case(name: str, model: type[nn.Module], fresh: bool = False, packed: bool = False, **options: object) -> Case:
    return Case(f"timm-{name}", partial(model, **SIZES, **options), BLOCKS, fresh=fresh, packed=packed)


def deit() -> nn.Module:
    return timm.create_model("deit_tiny_distilled_patch16_224", **SIZES)


CASES = [
    case("vit", VisionTransformer, fresh=True, packed=True, init_values=0.5),
    case("vit-qk-norm", VisionTransformer, qk_norm=True, scale_attn_norm=True),
    Case("timm-deit", deit, BLOCKS),
    case("eva", Eva, qkv_fused=False),
    case("eva02", Eva, qkv_fused=True, use_rot_pos_emb=True, scale_attn_inner=True),
    case("dinov3", Eva, attn_type="rope", use_rot_pos_emb=True, rope_type="dinov3", num_reg_tokens=2),
    case("rope-half", Eva, attn_type="rope", use_rot_pos_emb=True, rope_rotate_half=True),
    case("beit", Beit, packed=True, use_abs_pos_emb=False, use_rel_pos_bias=True),
    case("beit-shared-bias", Beit, packed=True, use_abs_pos_emb=False, use_shared_rel_pos_bias=True),
]
