"""timm: `Attention` (ViT, DeiT, most others), `AttentionRope` (DINOv3, EVA-02), EVA's, BEiT's and Swin's own.

The residual is the best head's output before timm's optional norm and gate of the joined heads; it is added after
`proj_drop`. LayerScale and DropPath come after the attention, so they scale the residual too.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.swin_transformer import WindowAttention
from timm.models.swin_transformer_v2 import WindowAttention as WindowAttentionV2
from timm.models.swin_transformer_v2_cr import WindowMultiHeadAttention
from torch import Tensor, nn
from torch.nn import functional

from ..call import unpacked
from ..epilogue import run_projection
from ..module import Residual, ResidualOptions, ResidualSelfAttention, attend_and_join
from .interface import Heads, Integration, causal_mask, has_own_forward, packed_heads, split_heads
from .windows import WHY_NOT_FRESH, continuous_position_bias, for_cosines, window_mask

Inputs = tuple[Tensor, ...]
"""Q, K and V, or one packed tensor (B, N, 3, H, E)."""


def _finish(attention: Any, x: Tensor, inputs: Inputs, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    """Compute the module's output from Q, K and V, alike for all of timm's attention classes."""

    def project(joined: Tensor) -> Tensor:
        norm, gate = getattr(attention, "norm", None), getattr(attention, "gate", None)
        if norm is not None:
            joined = norm(joined)
        if gate is not None:
            joined = joined * gate(x).sigmoid()
        return run_projection(joined, attention.proj, attention.proj_drop)

    dropout_p = attention.attn_drop.p if attention.training else 0.0
    mask, options = _mask(x, attn_mask, is_causal), attention.options
    call = options.call(*inputs, attn_mask=mask, dropout_p=dropout_p, scale=attention.scale)
    return attend_and_join(call, project, attention)


def _qk_norms_are_identities(attention: Any) -> bool:
    """Whether calling the norms of Q and K makes no difference: identities without hooks."""
    return all(
        type(norm) is nn.Identity
        and not has_own_forward(norm)
        and not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)
        for norm in (attention.q_norm, attention.k_norm)
    )


def _mask(x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor | None:
    if not is_causal:
        return attn_mask
    if attn_mask is not None:
        raise ValueError("attn_mask and is_causal=True exclude each other; put both into attn_mask")
    return causal_mask(x.shape[1], x.device)


class ResidualAttention(Residual, Attention):
    """timm's `Attention` with its best head added to the projected output.

    Pass it to a timm model as `attn_layer=ResidualAttention`. It has no gate by default, as in Sharma & Verma,
    arXiv 2306.01594; a subclass with other `options` changes that. Weights of the plain model have no gates: load
    those first and then call `rsattn.patch`.

    Args:
        *args: as in `timm.layers.Attention`.
        **kwargs: as in `timm.layers.Attention`.

    Attributes:
        options: class attribute, a `rsattn.ResidualOptions`.
        gamma: (D,) parameter, the gate, or None.

    Raises:
        ValueError: `options.merge` does not fit the heads (in the forward pass).

    Example:
        >>> import timm
        >>> import torch
        >>> import rsattn
        >>> from rsattn.integrations.timm import ResidualAttention
        >>> class Confident(ResidualAttention):
        ...     options = rsattn.ResidualOptions(norm="confidence", init_values=0.0)
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=4, attn_layer=Confident)
        >>> model(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 4])
        >>> model.blocks[0].attn.gamma.shape
        torch.Size([192])
    """

    options = ResidualOptions()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        weight = self.proj.weight
        self.register_parameter("gamma", self.options.gate(len(weight), weight.device, weight.dtype))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compute the attention of each sample's tokens, as timm's `Attention.forward`.

        Args:
            x: (B, N, D). Differentiable.
            attn_mask: as in `rsattn.residual_attention`; broadcastable to (B, H, N, N).
            is_causal: whether each token attends only to itself and the tokens before it.

        Returns:
            (B, N, D).

        Raises:
            ValueError: both `attn_mask` and `is_causal` are given, or the mask does not fit.
        """
        qkv = packed_heads(self.qkv(x), self.num_heads)
        if _qk_norms_are_identities(self):
            return _finish(self, x, (qkv,), attn_mask, is_causal)
        query, key, value = unpacked(qkv)
        return _finish(self, x, (self.q_norm(query), self.k_norm(key), value), attn_mask, is_causal)


def _rotated(attention: Any, tokens: Tensor, rope: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Q or K (B, H, N, E) with the rotary embedding on all but the prefix tokens."""
    if rope is None:
        return tokens
    prefix = attention.num_prefix_tokens
    half = getattr(attention, "rotate_half", False)
    rotated = apply_rot_embed_cat(tokens[:, :, prefix:], rope, half=half)
    return torch.cat([tokens[:, :, :prefix], rotated], dim=2).to(dtype)


class _WithRope(Residual, nn.Module):
    """What `AttentionRope` and `EvaAttention` share: rotary embeddings, and Q, K, V in one projection or in three."""

    def forward(
        self: Any, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, D) -> (B, N, D); `rope` as timm's model makes it; `attn_mask` as in `ResidualAttention`."""
        if self.qkv is None:
            key_heads = getattr(self, "num_kv_heads", self.num_heads)
            query = split_heads(self.q_proj(x), self.num_heads)
            key, value = split_heads(self.k_proj(x), key_heads), split_heads(self.v_proj(x), key_heads)
        else:
            qkv = packed_heads(_packed_projection(self, x), self.num_heads)
            if rope is None and _qk_norms_are_identities(self):
                return _finish(self, x, (qkv,), attn_mask, is_causal)
            query, key, value = unpacked(qkv)
        query = _rotated(self, self.q_norm(query), rope, value.dtype)
        key = _rotated(self, self.k_norm(key), rope, value.dtype)
        if key.shape[1] < self.num_heads:
            shared = self.num_heads // key.shape[1]
            key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
        return _finish(self, x, (query, key, value), attn_mask, is_causal)


def _packed_projection(attention: Any, x: Tensor) -> Tensor:
    """Q, K and V from a linear layer whose bias may be three parameters of the attention (K's is zero)."""
    if getattr(attention, "q_bias", None) is None:
        packed: Tensor = attention.qkv(x)
        return packed
    bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    return functional.linear(x, attention.qkv.weight, bias)


class ResidualAttentionRope(_WithRope, AttentionRope):
    """timm's `AttentionRope` with its best head added to the projected output."""


class ResidualEvaAttention(_WithRope, EvaAttention):
    """timm's `EvaAttention` with its best head added to the projected output."""


class ResidualBeitAttention(Residual, BeitAttention):
    """BEiT's attention with its best head added; its relative position bias is a float mask."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); `shared_rel_pos_bias` (H, N, N) is added to the scores."""
        qkv = packed_heads(_packed_projection(self, x), self.num_heads)
        bias = shared_rel_pos_bias
        if self.relative_position_bias_table is not None:
            own = self._get_rel_pos_bias()
            bias = own if bias is None else own + bias
        return _finish(self, x, (qkv,), bias, False)


class ResidualWindowAttention(Residual, WindowAttention):
    """Swin's attention with each window's best head added to the projected output."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B * windows, N, D) -> (B * windows, N, D); `mask` (windows, N, N) is added to the scores."""
        qkv = packed_heads(self.qkv(x), self.num_heads)
        return _finish(self, x, (qkv,), window_mask(self._get_rel_pos_bias(), mask), False)


class ResidualWindowAttentionV2(Residual, WindowAttentionV2):
    """Swin v2's attention with each window's best head added to the projected output."""

    scale = 1.0  # Q holds the learned one

    def forward(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `ResidualWindowAttention.forward`."""
        query, key, value = unpacked(packed_heads(_packed_projection(self, x), self.num_heads))
        query, key = for_cosines(query, key, self.logit_scale)
        bias = continuous_position_bias(self.cpb_mlp, self.relative_coords_table, self.relative_position_index)
        return _finish(self, x, (query, key, value), window_mask(bias, mask), False)


class ResidualWindowMultiHeadAttention(Residual, WindowMultiHeadAttention):
    """The attention of timm's other Swin v2, `swinv2_cr`, with each window's best head added."""

    scale = 1.0

    def forward(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `ResidualWindowAttention.forward`."""
        query, key, value = unpacked(packed_heads(self.qkv(x), self.num_heads))
        query, key = for_cosines(query, key, self.logit_scale.view(-1, 1, 1))
        mask = window_mask(self._relative_positional_encodings(), mask)
        return _finish(self, x, (query, key, value), mask, False)


class FreshAttention(ResidualSelfAttention):
    """A newly initialized attention, called as timm's `Attention`."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """As `ResidualAttention.forward`."""
        return super().forward(x, _mask(x, attn_mask, is_causal))


class Timm(Integration):
    fresh = FreshAttention

    def changes(self) -> dict[type[nn.Module], type[nn.Module]]:
        return {
            Attention: ResidualAttention,
            AttentionRope: ResidualAttentionRope,
            EvaAttention: ResidualEvaAttention,
            BeitAttention: ResidualBeitAttention,
            WindowAttention: ResidualWindowAttention,
            WindowAttentionV2: ResidualWindowAttentionV2,
            WindowMultiHeadAttention: ResidualWindowMultiHeadAttention,
        }

    def refusal_of_fresh(self, module: Any) -> str | None:
        if isinstance(module, AttentionRope | EvaAttention):
            return "a newly initialized attention would lose this one's position embedding"
        if type(module) is not Attention:
            return WHY_NOT_FRESH
        extras = {
            "a norm of Q and K": not isinstance(module.q_norm, nn.Identity),
            "a norm of the joined heads": not isinstance(module.norm, nn.Identity),
            "a gate": getattr(module, "gate", None) is not None,
            "an output of another dimension": module.proj.out_features != module.qkv.in_features,
        }
        present = [extra for extra, has in extras.items() if has]
        return f"a newly initialized attention would lose {' and '.join(present)}" if present else None

    def heads(self, module: Any) -> Heads:
        projection = module.qkv if module.qkv is not None else module.q_proj
        has_bias = projection.bias is not None or getattr(module, "q_bias", None) is not None
        return Heads(
            module.proj.out_features,
            module.num_heads,
            module.proj.in_features // module.num_heads,
            qkv_bias=has_bias,
            proj_bias=module.proj.bias is not None,
            attn_drop=module.attn_drop.p,
            proj_drop=module.proj_drop.p,
        )


integration = Timm()
