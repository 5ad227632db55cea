"""Matrix products instead of PyTorch's fused attention, which trains slowly on a CPU in bfloat16."""

from __future__ import annotations

import torch
from torch import nn

from .options import Options

# `python -m bench.cpu_training`, one core of an Intel Xeon with AMX, torch 2.13: with the products, a step of ViT-S/14
# is 1.51 times as fast with 64 patches, 1.27 times with 256 and 0.87 times with 1024. They keep all probabilities.
MOST_PATCHES = 256


def use_matrix_products(model: nn.Module, options: Options) -> None:
    """Turn off the fused attention of a timm ViT where it makes training slower.

    For training only: without a backward pass the fused kernel is faster.
    """
    if torch.cuda.is_available() or options.precision != "bf16-mixed":
        return
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    if not isinstance(patches, int) or patches > MOST_PATCHES:
        return
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
