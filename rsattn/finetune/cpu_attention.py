"""Matrix products instead of PyTorch's fused attention, which trains slowly on a CPU in bfloat16."""

from __future__ import annotations

import torch
from torch import nn

from .options import Options

# One Intel Xeon core with AMX, torch 2.13, 16 images, 6 heads of 64, forward and backward: the fused kernel takes 3.4
# times as long with 65 tokens, 1.7 times with 257 and 0.8 times with 1025. The products keep all probabilities.
MOST_PATCHES = 256


def use_matrix_products(model: nn.Module, options: Options) -> None:
    """Turn off the fused attention of a timm ViT where it makes training slower; other models stay as they are."""
    if torch.cuda.is_available() or options.precision != "bf16-mixed":
        return
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    if not isinstance(patches, int) or patches > MOST_PATCHES:
        return
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
