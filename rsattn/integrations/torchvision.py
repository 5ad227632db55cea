"""torchvision: `ShiftedWindowAttention` and `ShiftedWindowAttentionV2`, of its `SwinTransformer`.

They divide the image into windows and shift it themselves, inside one function that also attends; a patched one does
the same in steps. torchvision's `VisionTransformer` contains `nn.MultiheadAttention`, which is PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from ..call import unpacked
from ..epilogue import run_projection
from ..module import Residual, attend_and_join
from .interface import Heads, Integration, packed_heads
from .windows import WHY_NOT_FRESH, for_cosines, window_mask

Inputs = tuple[Tensor, ...]
"""Q, K and V, or one packed tensor (B * windows, N, 3, H, E)."""


class _ShiftedWindows(Residual, nn.Module):
    """What both versions share; they differ in `_inputs` and `_scale`."""

    _scale: float | None = None

    def forward(self: Any, x: Tensor) -> Tensor:
        """(B, height, width, D) -> (B, height, width, D)."""
        height, width = x.shape[1:3]
        rows, columns = window = self.window_size
        padded = functional.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        size = padded.shape[1:3]
        # A window as large as the image needs no shift.
        shift = [0 if side <= edge else step for side, edge, step in zip(size, window, self.shift_size)]
        shifted = any(shift)
        if shifted:
            padded = padded.roll((-shift[0], -shift[1]), dims=(1, 2))
        tokens = _windows(padded, window)
        mask = window_mask(self.get_relative_position_bias(), _shift_mask(padded, window, shift) if shifted else None)
        dropout_p = self.attention_dropout if self.training else 0.0
        call = self.options.call(*self._inputs(tokens), attn_mask=mask, dropout_p=dropout_p, scale=self._scale)
        image = _image(attend_and_join(call, self._project, self), size, window)
        if shifted:
            image = image.roll((shift[0], shift[1]), dims=(1, 2))
        return image[:, :height, :width].contiguous()

    def _project(self: Any, joined: Tensor) -> Tensor:
        return functional.dropout(run_projection(joined, self.proj), self.dropout, self.training)


class ResidualShiftedWindowAttention(_ShiftedWindows, ShiftedWindowAttention):
    """Swin's attention with each window's best head added to the projected output."""

    def _inputs(self: Any, tokens: Tensor) -> Inputs:
        return (packed_heads(self.qkv(tokens), self.num_heads),)


class ResidualShiftedWindowAttentionV2(_ShiftedWindows, ShiftedWindowAttentionV2):
    """Swin v2's attention with each window's best head added to the projected output."""

    _scale = 1.0  # Q holds the learned one

    def _inputs(self: Any, tokens: Tensor) -> Inputs:
        bias = self.qkv.bias
        if bias is not None:  # its part for K counts as zero, and is not learned
            of_query, of_key, of_value = bias.chunk(3)
            bias = torch.cat((of_query, torch.zeros_like(of_key), of_value))
        query, key, value = unpacked(packed_heads(functional.linear(tokens, self.qkv.weight, bias), self.num_heads))
        return (*for_cosines(query, key, self.logit_scale), value)


def _windows(image: Tensor, window: list[int]) -> Tensor:
    """(B, height, width, C) -> (B * windows, N, C), the windows of an image one after the other, row by row."""
    grid = image.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return grid.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _image(tokens: Tensor, size: torch.Size, window: list[int]) -> Tensor:
    """`_windows` undone: (B * windows, N, C) -> (B, height, width, C)."""
    (height, width), (rows, columns) = size, window
    grid = tokens.view(-1, height // rows, width // columns, rows, columns, tokens.shape[-1])
    return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _shift_mask(image: Tensor, window: list[int], shift: list[int]) -> Tensor:
    """(windows, N, N): -100, as in torchvision, between tokens of a window that were no neighbors before the shift.

    The last `shift` rows and columns came around the edge. They share the last windows with some that did not.
    """
    sides = zip(image.shape[1:3], shift)
    rows, columns = (torch.arange(side, device=image.device) >= side - step for side, step in sides)
    region = 2 * rows.long()[:, None] + columns
    regions = _windows(region[None, :, :, None], window)[..., 0]
    apart = regions[:, :, None] != regions[:, None, :]
    return image.new_zeros(apart.shape).masked_fill(apart, -100.0)


class Torchvision(Integration):
    def changes(self) -> dict[type[nn.Module], type[nn.Module]]:
        return {
            ShiftedWindowAttention: ResidualShiftedWindowAttention,
            ShiftedWindowAttentionV2: ResidualShiftedWindowAttentionV2,
        }

    def refusal_of_fresh(self, module: Any) -> str | None:
        return WHY_NOT_FRESH

    def heads(self, module: Any) -> Heads:
        return Heads(
            module.proj.out_features,
            module.num_heads,
            module.proj.in_features // module.num_heads,
            qkv_bias=module.qkv.bias is not None,
            proj_bias=module.proj.bias is not None,
            attn_drop=module.attention_dropout,
            proj_drop=module.dropout,
        )


integration = Torchvision()
