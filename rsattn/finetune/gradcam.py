"""Grad-CAM: which parts of an image raise the logit of a class, for any model that sees a map of the image.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization". The layer is
the last one whose positions influence the logit: the last feature map of a CNN or a Swin transformer, and in a ViT that
classifies by its class token, the normalization before the last block's attention.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
    kept: deque[tuple[nn.Module, Tensor]] = deque(maxlen=MOST_LAYERS)

    def keep(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad and _is_map(module, output, len(images)):
            kept.append((module, output))

    hooks = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = model(images.clone().requires_grad_())
            chosen = logits.gather(1, torch.as_tensor(targets, device=logits.device)[:, None]).sum()
            outputs = [output for _, output in kept]
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


def _is_map(module: nn.Module, output: Tensor, images: int) -> bool:
    """Whether the output has positions: a feature map, or normalized tokens; not the windows of an image."""
    if len(output) != images:
        return False
    return output.dim() == 4 or (output.dim() == 3 and "Norm" in type(module).__name__)


def _channels_last(values: Tensor) -> Tensor | None:
    """(B, rows, columns, channels) of a feature map or of tokens, without class and register tokens; else None."""
    if values.dim() == 3:
        side = math.isqrt(values.shape[1])
        values = values[:, values.shape[1] - side * side :].unflatten(1, (side, side))
    elif values.shape[2] == values.shape[3] != values.shape[1] or values.shape[1] != values.shape[2]:
        values = values.permute(0, 2, 3, 1)
    return values if values.shape[1] == values.shape[2] > 1 else None
