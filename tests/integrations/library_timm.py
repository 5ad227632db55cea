"""timm's models whose attention `patch` changes."""

from __future__ import annotations

from functools import partial

import timm
from case import DIM, HEADS, IMAGE, Case
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.vision_transformer import VisionTransformer
from torch import nn

SIZES = dict(img_size=IMAGE, patch_size=8, embed_dim=DIM, depth=2, num_heads=HEADS, num_classes=5, attn_drop_rate=0.25)
BLOCKS = ["blocks.0.attn", "blocks.1.attn"]


def case(name: str, model: type[nn.Module], fresh: bool = False, packed: bool = False, **options: object) -> Case:
    return Case(f"timm-{name}", partial(model, **SIZES, **options), BLOCKS, fresh=fresh, packed=packed)


def swin(version: type[nn.Module]) -> nn.Module:
    """Four windows of 16 tokens, in the second block shifted by half a window."""
    sizes = {**SIZES, "patch_size": 4, "num_heads": (HEADS,), "window_size": 4}
    del sizes["depth"], sizes["attn_drop_rate"]
    model = version(**sizes, depths=(2,), attn_drop_rate=0.25, drop_path_rate=0.0)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)  # a new version 2 multiplies what its attention gives by 0
    return model


def swin_case(name: str, version: type[nn.Module], stage: str = "layers.0", packed: bool = False) -> Case:
    return Case(f"timm-{name}", partial(swin, version), [f"{stage}.{b}" for b in BLOCKS], fresh=False, packed=packed)


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
    swin_case("swin", SwinTransformer, packed=True),
    swin_case("swin-v2", SwinTransformerV2),
    swin_case("swin-v2-cr", SwinTransformerV2Cr, "stages.0"),
]
