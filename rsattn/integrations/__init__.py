"""The libraries `rsattn.patch` knows, one file each, imported only if the user already imported the library."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import cast

from .interface import Heads, Integration, Undo, refusal_of_any

# Library -> what its integration looks for. The integration is in the file of the library's name.
LOOKS_FOR = {
    "dinov2": "layers.Attention, layers.MemEffAttention (the models of facebookresearch/dinov2)",
    "monai": "SABlock (networks.nets.ViT, UNETR and others) and SwinUNETR's WindowAttention, from MONAI 1.4 on",
    "pytorch_pretrained_vit": "transformer.Block",
    "timm": "Attention, AttentionRope, EvaAttention, BEiT's Attention and Swin's WindowAttention, from timm 1.0.20 on",
    "torch": "nn.MultiheadAttention (torchvision's VisionTransformer, nn.TransformerEncoderLayer)",
    "torchvision": "ShiftedWindowAttention and ShiftedWindowAttentionV2 (SwinTransformer)",
    "transformers": (
        "the attention of AST, BEiT, CLAP (sound), CLIP (images), DeiT, DINOv2, DINOv3, Donut, I-JEPA, MaskFormer, "
        "Pixio, SigLIP, Swin, Swin v2, Swin2SR, TIPSv2, ViT, ViTMAE, ViTMSN and ViViT, from 5.18 on"
    ),
    "vit_pytorch": "Attention of vit, simple_vit, vit_3d and simple_vit_3d, from vit-pytorch 1.5 on",
}


def loaded_integrations() -> list[Integration]:
    """The integrations of the libraries that this process has imported; a warning for an unsupported version."""
    found = []
    for library in LOOKS_FOR:
        if library not in sys.modules:
            continue
        try:
            found.append(cast(Integration, importlib.import_module(f"{__name__}.{library}").integration))
        except ImportError as error:
            version = getattr(sys.modules[library], "__version__", "of unknown version")
            warnings.warn(
                f"rsattn cannot patch the {library} imported here ({version}): {error}. It looks for "
                f"{LOOKS_FOR[library]}; install a version that has these, or another version of rsattn",
                stacklevel=4,
            )
    return found


__all__ = ["LOOKS_FOR", "Heads", "Integration", "Undo", "loaded_integrations", "refusal_of_any"]
