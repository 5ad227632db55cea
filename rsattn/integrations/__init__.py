"""The libraries `rsattn.patch` knows, one file each, imported only if the user already imported the library."""

from __future__ import annotations

import importlib
import sys
from typing import cast

from .interface import Heads, Integration, Undo

# Library -> what its integration looks for. The file of this folder that has the library's name knows how.
LOOKS_FOR = {
    "pytorch_pretrained_vit": "transformer.Block",
    "timm": "layers.Attention, layers.AttentionRope, EvaAttention, beit.Attention",
    "torch": "nn.MultiheadAttention (torchvision's VisionTransformer, nn.TransformerEncoderLayer)",
}


def loaded_integrations() -> list[Integration]:
    """The integrations whose library is imported in this process."""
    return [
        cast(Integration, importlib.import_module(f"{__name__}.{library}").integration)
        for library in LOOKS_FOR
        if library in sys.modules
    ]


__all__ = ["LOOKS_FOR", "Heads", "Integration", "Undo", "loaded_integrations"]
