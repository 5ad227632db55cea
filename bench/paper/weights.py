"""A pretrained ViT-S/14, from a quantized file of Hugging Face's Dinov2 names to a file timm's model takes.

    python -m bench.paper.weights vit_s14_backbone_int8.npz vit_s14.pt

The file holds matrices as `NAME|q` (int8) with a scale per row `NAME|s`, weight = q * s, and the rest in float16.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RENAMED = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm.": "norm.",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


def dequantized(arrays: dict[str, NDArray[np.generic]]) -> dict[str, Tensor]:
    """Hugging Face's names and float32 tensors."""
    weights = {}
    for name, array in arrays.items():
        plain, _, kind = name.partition("|")
        if kind == "s":
            continue
        values = torch.from_numpy(array.astype(np.float32))
        if kind == "q":
            scale = torch.from_numpy(np.asarray(arrays[f"{plain}|s"], np.float32))
            values = values * scale.view(-1, *[1] * (values.dim() - 1))
        weights[plain] = values
    return weights


def for_timm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names: Q, K and V in one projection, everything else one to one; the unused mask token is dropped."""
    renamed = {}
    for name, values in weights.items():
        if name == "embeddings.mask_token" or ".attention.attention." in name:
            continue
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        renamed[name] = values
    for name in [name for name in weights if ".attention.attention.query." in name]:
        packed = torch.cat([weights[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")])
        target = name.replace("encoder.layer.", "blocks.").replace("attention.attention.query", "attn.qkv")
        renamed[target] = packed
    return renamed


def main(source: Path, target: Path) -> None:
    with np.load(source) as arrays:
        torch.save(for_timm(dequantized(dict(arrays))), target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
