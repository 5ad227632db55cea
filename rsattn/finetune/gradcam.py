"""Grad-CAM: which parts of an image raise the logit of a class, for any model that sees a map of the image.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization". The layer is
the last one whose positions influence the logit: the last feature map of a CNN before it is pooled, that of a Swin
transformer, and in a ViT that classifies by its class token, the normalization before the last block's attention.

The tokens of a ViT have mixed before its last block, so what a token carries need not come from its place. Trained on
images whose class is a bright square, the tiny ViTs have maps that are no stronger on the square than elsewhere; those
of the cnn are about twice as strong there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .loading import TrainedModel

MOST_LAYERS = 16  # the last ones, whose outputs are kept


def grad_cam(model: nn.Module, images: Tensor, targets: Sequence[int] | Tensor) -> Tensor | None:
    """The Grad-CAM of each image.

    The model stays as it is: no gradients, hooks or flags are left.

    Args:
        model: (B, 3, S, S) -> logits (B, classes), in evaluation mode.
        images: (B, 3, S, S), normalized, on the device of the model.
        targets: B class indices.

    Returns:
        (B, rows, columns) float32 on the CPU, 0 or larger, of the size of the layer's map; None where no layer keeps
        the positions of the image.
    """
    kept: deque[Tensor] = deque(maxlen=MOST_LAYERS)
    pooled: list[Tensor] = []  # a container that ends in pooling gives the same tensor
    inside = _inside_attention(model)

    def keep(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor) or not output.requires_grad or len(output) != len(images):
            return
        if "Pool" in type(module).__name__:
            pooled.append(output)
        elif not any(output is one for one in pooled) and _is_map(module, output, inside):
            kept.append(output)

    hooks = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = model(images.clone().requires_grad_())
            chosen = logits.gather(1, torch.as_tensor(targets, device=logits.device)[:, None]).sum()
            outputs = list(kept)
            gradients = torch.autograd.grad(chosen, outputs, allow_unused=True) if outputs else ()
    finally:
        for hook in hooks:
            hook.remove()
    for output, gradient in zip(reversed(outputs), reversed(gradients)):
        if gradient is None:
            continue
        values, slopes = _channels_last(output.detach()), _channels_last(gradient)
        if values is not None and slopes is not None and slopes.any():
            weights = slopes.mean((1, 2), keepdim=True)
            return (weights * values).sum(3).clamp(min=0).float().cpu()
    return None


def cams(loaded: TrainedModel, inputs: Tensor, targets: Sequence[int]) -> list[Tensor | None]:
    """The Grad-CAM of each image, computed in batches of the size of the training.

    Args:
        inputs: (B, 3, S, S), normalized, on any device.
        targets: B class indices.

    Returns:
        For each image (rows, columns) as in `grad_cam`; None where the model has no map, or the map is 0 everywhere.
    """
    size = loaded.options.batch_size
    found: list[Tensor | None] = []
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        maps = grad_cam(loaded.model, batch.to(loaded.device), targets[start : start + size])
        found += [None] * len(batch) if maps is None else [one if one.any() else None for one in maps]
    return found


def _inside_attention(model: nn.Module) -> set[nn.Module]:
    """The modules inside attention, whose four axes are heads and tokens, not rows and columns of the image."""
    attention = [one for one in model.modules() if "Attention" in type(one).__name__ or "Attn" in type(one).__name__]
    return {inner for outer in attention for inner in outer.modules() if inner is not outer}


def _is_map(module: nn.Module, output: Tensor, inside_attention: set[nn.Module]) -> bool:
    """Whether the output has positions of the image: a feature map, or normalized tokens.

    Not every library calls its attention so (timm's ConViT has `GPSA` and `MHSA`), but all of them drop out its matrix.
    """
    if output.dim() == 4:
        return module not in inside_attention and not isinstance(module, nn.Dropout)
    return output.dim() == 3 and "Norm" in type(module).__name__


def _channels_last(values: Tensor) -> Tensor | None:
    """(B, rows, columns, channels) of a square feature map, or of tokens without class and register tokens; else None.

    Images are square, so a feature map whose last two axes are equal has its channels first.
    """
    if values.dim() == 3:
        side = math.isqrt(values.shape[1])
        values = values[:, values.shape[1] - side * side :].unflatten(1, (side, side))
    elif values.shape[2] == values.shape[3]:
        values = values.permute(0, 2, 3, 1)
    return values if values.shape[1] == values.shape[2] > 1 else None
