"""ViT-B/16 and the images that it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..weights import MODEL

if TYPE_CHECKING:
    from PIL.Image import Image

PATCH = 16


def center_square(image: Image, size: int) -> Image:
    """The shorter side resized to `size`, the longer one cropped about its center."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)


def as_input(square: Image) -> Tensor:
    """(1, 3, S, S) float32 with mean 0.5 and deviation 0.5 taken out, as the model was trained."""
    import numpy as np

    pixels = torch.from_numpy(np.array(square, dtype=np.float32) / 255.0)
    return ((pixels - 0.5) / 0.5).permute(2, 0, 1)[None].contiguous()


def build_model(image_size: int, seed: int) -> nn.Module:
    """ViT-B/16 with random weights that depend on `seed` alone."""
    from pytorch_pretrained_vit import ViT

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = ViT(MODEL, pretrained=False, image_size=image_size)
    return model.eval()
