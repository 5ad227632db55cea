"""pytorch_pretrained_vit, the library of the paper's experiments: its `Block` owns the output projection.

The library's attention keeps its last probabilities in `attn.scores` "for visualization"; a patched block never
computes that tensor and removes the one that is there. The library's mask is (B, N), nonzero = keep.
"""

from __future__ import annotations

from functools import partial

from pytorch_pretrained_vit.transformer import Block
from torch import Tensor, nn

from ..epilogue import run_projection
from ..module import Residual, ResidualOptions, attend_and_join
from .interface import OWN_FORWARD, Heads, Integration, ModuleState, Undo, has_own_forward, split_heads


class ResidualBlock(Residual, Block):
    """The library's block with its own weights; only the steps between Q, K, V and the skip connection differ."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, N, D) -> (B, N, D); mask (B, N), nonzero = keep."""
        normed, attn = self.norm1(x), self.attn
        heads = (split_heads(p(normed), attn.n_heads) for p in (attn.proj_q, attn.proj_k, attn.proj_v))
        dropout_p = attn.drop.p if self.training else 0.0
        call = self.options.call(*heads, attn_mask=_key_mask(mask), dropout_p=dropout_p)
        x = x + attend_and_join(call, self._project, self)
        return x + self.drop(self.pwff(self.norm2(x)))

    def _project(self, joined: Tensor) -> Tensor:
        return run_projection(joined, self.proj, self.drop)


class FreshBlock(Block):
    """The library's block around a `ResidualSelfAttention`, which has its own projection and dropout."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, N, D) -> (B, N, D); mask (B, N), nonzero = keep."""
        x = x + self.attn(self.norm1(x), _key_mask(mask))
        return x + self.drop(self.pwff(self.norm2(x)))


def _key_mask(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else (mask != 0)[:, None, None, :]


class PytorchPretrainedVit(Integration):
    def changes(self) -> dict[type[nn.Module], type[nn.Module]]:
        return {Block: ResidualBlock}

    def refusal(self, module: Block) -> str | None:
        """A patched block calls the projections of its attention, never the attention itself."""
        return f"its attention: {OWN_FORWARD}" if has_own_forward(module.attn) else None

    def heads(self, module: Block) -> Heads:
        attn, proj = module.attn, module.proj
        dim = proj.out_features
        return Heads(
            dim,
            attn.n_heads,
            dim // attn.n_heads,
            qkv_bias=attn.proj_q.bias is not None,
            proj_bias=proj.bias is not None,
            attn_drop=attn.drop.p,
            proj_drop=module.drop.p,
        )

    def swap(self, module: Block, options: ResidualOptions) -> Undo:
        undo = super().swap(module, options)
        module.attn.scores = None
        return undo

    def replace(self, module: Block, options: ResidualOptions, num_heads: int | None, head_dim: int | None) -> Undo:
        """Keep the block and replace its attention and projection by a newly initialized attention."""
        attn, proj = module.attn, module.proj
        fresh = self.make_fresh(module, self.heads(module), options, num_heads, head_dim)
        module.attn, module.proj = fresh, nn.Identity()
        module.__class__ = FreshBlock
        attn.scores = None
        return partial(_put_back, module, attn, proj, ModuleState.of(fresh))


def _put_back(module: Block, attn: nn.Module, proj: nn.Module, state_before: ModuleState) -> None:
    state, present = ModuleState.of(module.attn), set(module.attn.parameters())
    module.__class__ = Block
    module.attn, module.proj = attn, proj
    for old in (attn, proj):
        state.apply_changes(state_before, old, present)


integration = PytorchPretrainedVit()
