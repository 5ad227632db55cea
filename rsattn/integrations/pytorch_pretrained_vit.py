"""pytorch_pretrained_vit, the library of the paper's experiments: its `Block` owns the output projection.

The library's attention keeps its probabilities alive in `attn.scores` "for visualization"; a patched block
never computes that tensor and drops the last one. The library's mask is (B, N), nonzero = keep.
"""

from __future__ import annotations

from pytorch_pretrained_vit.transformer import Block
from torch import Tensor, nn

from ..contract import check_merge_widths
from ..module import ResidualOptions, ResidualSelfAttention, Sink, attend_and_join
from .interface import Undo


class ResidualBlock(Block):
    """The library's block with its own weights; only what happens between Q, K, V and the skip differs."""

    options: ResidualOptions
    sink: Sink | None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, N, D) -> (B, N, D); mask (B, N), nonzero = keep."""
        normed = self.norm1(x)
        query, key, value = (self._heads(p(normed)) for p in (self.attn.proj_q, self.attn.proj_k, self.attn.proj_v))
        dropout_p = self.attn.drop.p if self.training else 0.0
        x = x + attend_and_join(query, key, value, _key_mask(mask), dropout_p, self._project, self.options, self.sink)
        return x + self.drop(self.pwff(self.norm2(x)))

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(2, (self.attn.n_heads, -1)).transpose(1, 2)

    def _project(self, joined: Tensor) -> Tensor:
        return self.drop(self.proj(joined))


class FreshBlock(Block):
    """The library's block around a `ResidualSelfAttention`, which projects and drops out by itself."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, N, D) -> (B, N, D); mask (B, N), nonzero = keep."""
        x = x + self.attn(self.norm1(x), _key_mask(mask))
        return x + self.drop(self.pwff(self.norm2(x)))


def _key_mask(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else (mask != 0)[:, None, None, :]


def recognises(module: nn.Module) -> bool:
    return type(module) is Block


def swap(module: Block, options: ResidualOptions) -> Undo:
    dim = module.proj.out_features
    check_merge_widths(dim, module.attn.n_heads, dim // module.attn.n_heads, options.merge)
    module.attn.scores = None
    module.__class__ = ResidualBlock
    module.options = options
    module.sink = None

    def undo() -> None:
        module.__class__ = Block
        del module.options, module.sink

    return undo


def replace(module: Block, options: ResidualOptions, num_heads: int | None, head_dim: int | None) -> Undo:
    attn, proj = module.attn, module.proj
    fresh = ResidualSelfAttention(
        proj.out_features,
        attn.n_heads if num_heads is None else num_heads,
        head_dim,
        attn_drop=attn.drop.p,
        proj_drop=module.drop.p,
        norm=options.norm,
        scope=options.scope,
        merge=options.merge,
        backend=options.backend,
        device=proj.weight.device,
        dtype=proj.weight.dtype,
    )
    fresh.train(module.training)
    module.attn, module.proj = fresh, nn.Identity()
    module.__class__ = FreshBlock

    def undo() -> None:
        module.__class__ = Block
        module.attn, module.proj = attn, proj
        # While they were out, `train`, `eval` and `to` did not reach them.
        weight = fresh.proj.weight
        for old in (attn, proj):
            old.train(module.training).to(weight.device, weight.dtype)

    return undo
