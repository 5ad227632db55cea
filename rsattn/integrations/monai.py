"""MONAI: `SABlock`, the self-attention of its `ViT`, `UNETR`, `AutoencoderKL` and others, and SwinUNETR's windows.

Its `CrossAttentionBlock` is not changed. With `use_flash_attention` MONAI's `SABlock` applies attention dropout in
evaluation too; a patched block applies it in training only.
"""

from __future__ import annotations

from typing import Any

from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from ..call import unpacked
from ..epilogue import run_projection
from ..module import Residual, ResidualSelfAttention, attend_and_join
from .interface import Heads, Integration, causal_mask, packed_heads, split_heads
from .windows import WHY_NOT_FRESH, position_bias, window_mask


class ResidualSABlock(Residual, SABlock):
    """`SABlock` with its best head added to the projected output.

    A query whose keys are all masked gives 0 here (before the projection), and NaN in MONAI. Relative positions depend
    on the queries, so their bias is a mask (B, H, N, N), which is stored.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); `attn_mask` (B, N), 0 = hide.

        With `use_flash_attention` the mask is that of `scaled_dot_product_attention`, as in MONAI.
        """
        inputs: tuple[Tensor, ...]
        if self.use_combined_linear:
            inputs = (packed_heads(self.qkv(x), self.num_heads),)
        else:
            inputs = tuple(split_heads(p(x), self.num_heads) for p in (self.to_q, self.to_k, self.to_v))
        if self.attention_dtype is not None:  # not V: in MONAI too, another dtype than V's is an error
            query, key, value = unpacked(*inputs) if len(inputs) == 1 else inputs
            inputs = query.to(self.attention_dtype), key.to(self.attention_dtype), value
        dropout_p = self.drop_weights.p if self.training else 0.0
        call = self.options.call(*inputs, attn_mask=_mask(self, x, attn_mask), dropout_p=dropout_p, scale=self.scale)
        if self.rel_positional_embedding is not None:
            call.attn_mask = self._position_bias(x, call.query, call.attn_mask)
        return attend_and_join(call, self._project, self)

    def _position_bias(self, x: Tensor, query: Tensor, mask: Tensor | None) -> Tensor:
        """What MONAI's relative positions add to the scores, (B, H, N, N), -inf where the mask hides."""
        batch, heads, length, _ = query.shape
        no_scores = query.new_zeros(batch, heads, length, length)
        embedding: Any = self.rel_positional_embedding
        bias: Tensor = embedding(x, no_scores, query)
        return bias if mask is None else bias.masked_fill(~mask, float("-inf"))

    def _project(self, joined: Tensor) -> Tensor:
        layers = (self.out_proj, self.drop_output) if self.include_fc else (self.drop_output,)
        return run_projection(joined, *layers)


def _mask(attention: Any, x: Tensor, attn_mask: Tensor | None) -> Tensor | None:
    """MONAI's mask, or that of its causal attention, as one that broadcasts to (B, H, N, N)."""
    if attention.causal:
        if attn_mask is not None:
            raise ValueError(
                "this attention was built with causal=True, and takes no attn_mask; leave it out, as in MONAI"
            )
        return causal_mask(x.shape[1], x.device)
    if attn_mask is None or attention.use_flash_attention:
        return attn_mask
    return (attn_mask != 0)[:, None, None, :]


class ResidualWindowAttention(Residual, WindowAttention):
    """`WindowAttention` with each window's best head added to the projected output."""

    def forward(self: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B * windows, N, D) -> (B * windows, N, D); `mask` (windows, N, N) is added to the scores."""
        length = x.shape[1]  # a small image has smaller windows
        bias = position_bias(self.relative_position_bias_table, self.relative_position_index[:length, :length])
        qkv = packed_heads(self.qkv(x), self.num_heads)
        dropout_p = self.attn_drop.p if self.training else 0.0
        call = self.options.call(qkv, attn_mask=window_mask(bias, mask), dropout_p=dropout_p, scale=self.scale)
        return attend_and_join(call, self._project, self)

    def _project(self: Any, joined: Tensor) -> Tensor:
        return run_projection(joined, self.proj, self.proj_drop)


class FreshSABlock(ResidualSelfAttention):
    """A newly initialized attention, called as `SABlock`."""

    causal: bool
    use_flash_attention: bool

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """As `ResidualSABlock.forward`."""
        return super().forward(x, _mask(self, x, attn_mask))


class Monai(Integration):
    fresh = FreshSABlock

    def changes(self) -> dict[type[nn.Module], type[nn.Module]]:
        return {SABlock: ResidualSABlock, WindowAttention: ResidualWindowAttention}

    def refusal(self, module: Any) -> str | None:
        if isinstance(module, SABlock) and module.save_attn:
            return "save_attn=True keeps N x N probabilities, which rsattn never stores; use rsattn.record instead"
        return None

    def refusal_of_fresh(self, module: Any) -> str | None:
        if isinstance(module, WindowAttention):
            return WHY_NOT_FRESH
        if module.rel_positional_embedding is not None:
            return "a newly initialized attention would lose this one's relative positions"
        if not module.include_fc:
            return "a newly initialized attention has an output projection, and this one has none (include_fc=False)"
        return None

    def heads(self, module: Any) -> Heads:
        if isinstance(module, WindowAttention):
            return Heads(
                module.dim,
                module.num_heads,
                module.dim // module.num_heads,
                qkv_bias=module.qkv.bias is not None,
                proj_bias=True,
                attn_drop=module.attn_drop.p,
                proj_drop=module.proj_drop.p,
            )
        projection = module.qkv if module.use_combined_linear else module.to_q
        return Heads(
            module.hidden_input_size if module.include_fc else module.inner_dim,
            module.num_heads,
            module.dim_head,
            qkv_bias=projection.bias is not None,
            proj_bias=True,
            attn_drop=module.drop_weights.p,
            proj_drop=module.drop_output.p,
        )

    def make_fresh(self, module: Any, *shape: Any) -> ResidualSelfAttention:
        fresh: Any = super().make_fresh(module, *shape)
        fresh.causal, fresh.use_flash_attention = module.causal, module.use_flash_attention
        return fresh


integration = Monai()
