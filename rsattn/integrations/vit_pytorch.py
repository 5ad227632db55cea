"""vit-pytorch: the `Attention` of its `ViT` (and of `MAE`, `T2TViT` and `DistillableViT`) and of its `SimpleViT`.

Its models of volumes and videos have separate classes with the same code. All begin with a LayerNorm, which a newly
initialized attention keeps. The library's `Recorder` hooks a softmax module that is not called here, so it returns
None; use `rsattn.record` for the norms and best heads.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from vit_pytorch.simple_vit import Attention as SimpleAttention
from vit_pytorch.simple_vit_3d import Attention as SimpleAttention3d
from vit_pytorch.vit import Attention
from vit_pytorch.vit_3d import Attention as Attention3d

from ..epilogue import run_projection
from ..module import Residual, ResidualSelfAttention, attend_and_join
from .interface import Heads, Integration, packed_heads


class _Normed(Residual, nn.Module):
    """What these attentions share."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        qkv = packed_heads(self.to_qkv(self.norm(x)), self.heads)
        call = self.options.call(qkv, dropout_p=_dropout(self) if self.training else 0.0, scale=self.scale)
        return attend_and_join(call, self._project, self)

    def _project(self: Any, joined: Tensor) -> Tensor:
        return run_projection(joined, self.to_out)


def _dropout(attention: Any) -> float:
    return attention.dropout.p if hasattr(attention, "dropout") else 0.0  # `SimpleViT` has none


class ResidualAttention(_Normed, Attention):
    """`vit_pytorch.vit.Attention` with its best head added to the projected output."""


class ResidualSimpleAttention(_Normed, SimpleAttention):
    """`vit_pytorch.simple_vit.Attention` with its best head added to the projected output."""


class ResidualAttention3d(_Normed, Attention3d):
    """`vit_pytorch.vit_3d.Attention` with its best head added to the projected output."""


class ResidualSimpleAttention3d(_Normed, SimpleAttention3d):
    """`vit_pytorch.simple_vit_3d.Attention` with its best head added to the projected output."""


class FreshAttention(ResidualSelfAttention):
    """A newly initialized attention after the LayerNorm module of the library's attention."""

    norm: nn.LayerNorm

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, N, D) -> (B, N, D)."""
        return super().forward(self.norm(x))


class VitPytorch(Integration):
    fresh = FreshAttention

    def changes(self) -> dict[type[nn.Module], type[nn.Module]]:
        return {
            Attention: ResidualAttention,
            SimpleAttention: ResidualSimpleAttention,
            Attention3d: ResidualAttention3d,
            SimpleAttention3d: ResidualSimpleAttention3d,
        }

    def heads(self, module: Any) -> Heads:
        return Heads(
            module.to_qkv.in_features,
            module.heads,
            module.to_qkv.out_features // (3 * module.heads),
            qkv_bias=False,
            proj_bias=hasattr(module, "dropout"),
            attn_drop=_dropout(module),
            proj_drop=_dropout(module),
        )

    def make_fresh(self, module: Any, *shape: Any) -> ResidualSelfAttention:
        fresh: Any = super().make_fresh(module, *shape)
        fresh.norm = module.norm
        return fresh


integration = VitPytorch()
