"""DINOv2's own repository (also through `torch.hub`): `Attention` and `MemEffAttention`.

In older versions `attn_drop` is an `nn.Dropout`; in newer ones it is a number, and `Attention` can be causal. With
xFormers `MemEffAttention` ignores `attn_drop`; a patched one applies it in training, as the library does without
xFormers.
"""

from __future__ import annotations

from typing import Any

from dinov2.layers.attention import Attention, MemEffAttention
from torch import Tensor, nn

from ..epilogue import run_projection
from ..module import Residual, ResidualSelfAttention, attend_and_join
from .interface import Heads, Integration, causal_mask, packed_heads


class ResidualAttention(Residual, Attention):
    """DINOv2's `Attention` with its best head added to the projected output."""

    def forward(self, x: Tensor, is_causal: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        qkv = packed_heads(self.qkv(x), self.num_heads)
        mask = causal_mask(x.shape[1], x.device) if is_causal else None
        dropout_p = _dropout(self) if self.training else 0.0
        call = self.options.call(qkv, attn_mask=mask, dropout_p=dropout_p, scale=self.scale)
        return attend_and_join(call, self._project, self)

    def _project(self, joined: Tensor) -> Tensor:
        return run_projection(joined, self.proj, self.proj_drop)


class ResidualMemEffAttention(ResidualAttention, MemEffAttention):
    """DINOv2's `MemEffAttention` with its best head added to the projected output."""

    def forward(self, x: Tensor, attn_bias: Any = None) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        _check_no_bias(attn_bias)
        return super().forward(x)


def _dropout(attention: Any) -> float:
    return getattr(attention.attn_drop, "p", attention.attn_drop)


def _check_no_bias(attn_bias: Any) -> None:
    if attn_bias is not None:
        raise ValueError(
            "attn_bias joins images of several sizes into one sequence, in which no image has norms of its own; call "
            "the model with one tensor at a time instead of a list"
        )


class FreshAttention(ResidualSelfAttention):
    """A newly initialized attention, called as DINOv2's `Attention`."""

    def forward(self, x: Tensor, is_causal: bool = False) -> Tensor:  # type: ignore[override]
        """(B, N, D) -> (B, N, D)."""
        return super().forward(x, causal_mask(x.shape[1], x.device) if is_causal else None)


class FreshMemEffAttention(ResidualSelfAttention):
    """A newly initialized attention, called as DINOv2's `MemEffAttention`."""

    def forward(self, x: Tensor, attn_bias: Any = None) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        _check_no_bias(attn_bias)
        return super().forward(x)


class Dinov2(Integration):
    def changes(self) -> dict[type[nn.Module], type[nn.Module]]:
        return {Attention: ResidualAttention, MemEffAttention: ResidualMemEffAttention}

    def heads(self, module: Any) -> Heads:
        return Heads(
            module.proj.out_features,
            module.num_heads,
            module.proj.in_features // module.num_heads,
            qkv_bias=module.qkv.bias is not None,
            proj_bias=module.proj.bias is not None,
            attn_drop=_dropout(module),
            proj_drop=module.proj_drop.p,
        )

    def make_fresh(self, module: Any, *shape: Any) -> ResidualSelfAttention:
        fresh = super().make_fresh(module, *shape)
        fresh.__class__ = FreshMemEffAttention if isinstance(module, MemEffAttention) else FreshAttention
        return fresh


integration = Dinov2()
