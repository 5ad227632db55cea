"""PyTorch's own `nn.MultiheadAttention`, and with it torchvision's ViT and `nn.TransformerEncoderLayer`.

In evaluation those call fused kernels that read the attention's weights and never call the module itself. A patched
attention therefore reports projections of different dimensions, which those kernels do not support, and a patched
encoder does not turn padded batches into nested tensors, which only those kernels support.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..epilogue import run_projection
from ..module import Residual, ResidualSelfAttention, attend_and_join
from .interface import Heads, Integration, Undo, packed_heads, split_heads

Weights = tuple[Tensor, Tensor | None]


class ResidualMultiheadAttention(Residual, nn.MultiheadAttention):
    """`nn.MultiheadAttention` with its best head added to the projected output.

    A query whose keys are all masked gives 0 here (before the projection), and NaN in PyTorch.
    """

    @property
    def _qkv_same_embed_dim(self) -> bool:
        return False  # so that nn.TransformerEncoderLayer does not call its fused kernel

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results of `nn.MultiheadAttention.forward`; in its masks True = ignore.

        With `need_weights` (PyTorch's default) the probabilities, before dropout, are computed again and stored:
        (B, N, M), or (B, H, N, M) when not averaged. Pass `need_weights=False` to avoid that.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            raise TypeError("residual attention takes no nested tensors; pad them and pass key_padding_mask")
        _refuse_causal_without_mask(is_causal, attn_mask)
        batched = query.dim() == 3
        together = query is key and key is value
        query, key, value = (
            t.unsqueeze(0) if not batched else t if self.batch_first else t.transpose(0, 1) for t in (query, key, value)
        )
        if together and self.in_proj_weight is not None:
            projected = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
            inputs: tuple[Tensor, ...] = (packed_heads(projected, self.num_heads),)
        else:
            inputs = tuple(
                split_heads(functional.linear(t, weight, bias), self.num_heads)
                for t, (weight, bias) in zip((query, key, value), self._projections())
            )
        mask = _merged(attn_mask, key_padding_mask, self.num_heads, query.shape[0], key.shape[1], batched)
        call = self.options.call(*inputs, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)
        query, key = call.query, call.key
        result = attend_and_join(call, self._project, self)
        weights = _probabilities(query, key, mask) if need_weights else None
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return result.squeeze(0), None if weights is None else weights.squeeze(0)
        return result if self.batch_first else result.transpose(0, 1), weights

    def _project(self, joined: Tensor) -> Tensor:
        return run_projection(joined, self.out_proj)

    def _projections(self) -> list[Weights]:
        biases: tuple[Tensor | None, ...] = (None,) * 3
        if self.in_proj_bias is not None:
            biases = self.in_proj_bias.chunk(3)
        if self.in_proj_weight is None:
            weights: tuple[Tensor, ...] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            weights = self.in_proj_weight.chunk(3)
        return list(zip(weights, biases))


def _refuse_causal_without_mask(is_causal: bool, attn_mask: Tensor | None) -> None:
    if is_causal and attn_mask is None:
        raise ValueError("is_causal=True only says that attn_mask is causal, but there is no attn_mask; pass it")


def _merged(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, heads: int, batch: int, keys: int, batched: bool
) -> Tensor | None:
    """PyTorch's two masks as one that broadcasts to (B, H, N, M): True = take part, or added to the scores.

    Raises:
        ValueError: a mask is of another batch, which `rsattn.residual_attention` would repeat.
    """
    masks = []
    if attn_mask is not None and attn_mask.dim() == 3:
        if attn_mask.shape[0] != batch * heads:
            raise ValueError(
                f"attn_mask of three dimensions must have one mask for each of {batch} samples and {heads} heads, "
                f"{batch * heads}; got {tuple(attn_mask.shape)}"
            )
        masks.append(attn_mask.unflatten(0, (batch, heads)))
    elif attn_mask is not None:
        masks.append(attn_mask)
    if key_padding_mask is not None:
        expected = (batch, keys) if batched else (keys,)
        if key_padding_mask.shape != expected:
            raise ValueError(
                f"key_padding_mask must be {'(batch, keys)' if batched else '(keys,)'} = {expected}; got "
                f"{tuple(key_padding_mask.shape)}"
            )
        masks.append(key_padding_mask.reshape(batch, 1, 1, keys))
    masks = [~mask if mask.dtype == torch.bool else mask for mask in masks]
    if len(masks) < 2:
        return masks[0] if masks else None
    if masks[0].dtype == masks[1].dtype == torch.bool:
        return masks[0] & masks[1]
    return _added(masks[0]) + _added(masks[1])


def _added(mask: Tensor) -> Tensor:
    """A mask, True = take part, as numbers that are added to the scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=torch.get_default_dtype()).masked_fill(~mask, float("-inf"))


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + _added(mask).to(scores.dtype)
    return scores.softmax(-1).nan_to_num(0.0)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same tensor; a full backward hook turns each argument into a separate view."""
    return one is other or (
        one.shape == other.shape and one.stride() == other.stride() and one.data_ptr() == other.data_ptr()
    )


class FreshMultiheadAttention(ResidualSelfAttention):
    """A newly initialized attention, called as `nn.MultiheadAttention`: self-attention only, returns no weights."""

    batch_first = True
    in_proj_bias = None  # so that nn.TransformerEncoderLayer does not call its fused kernel

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """The same (B, N, D) three times -> (B, N, D) and None; masks as in `nn.MultiheadAttention`."""
        if not (_same(query, key) and _same(key, value)):
            raise ValueError(
                "attention patched with num_heads or head_dim is self-attention only: pass one tensor three times"
            )
        _refuse_causal_without_mask(is_causal, attn_mask)
        mask = _merged(attn_mask, key_padding_mask, self.num_heads, query.shape[0], query.shape[1], batched=True)
        return super().forward(query, mask), None


class Torch(Integration):
    fresh = FreshMultiheadAttention

    def changes(self) -> dict[type[nn.Module], type[nn.Module]]:
        return {nn.MultiheadAttention: ResidualMultiheadAttention}

    def refusal(self, module: nn.MultiheadAttention) -> str | None:
        if module.bias_k is not None or module.add_zero_attn:
            return "add_bias_kv and add_zero_attn add a key that is not a token, which would distort the norms"
        return None

    def refusal_of_fresh(self, module: nn.MultiheadAttention) -> str | None:
        if not module.batch_first:
            return "a newly initialized attention takes (batch, length, dim); build this one with batch_first=True"
        if module.kdim != module.embed_dim or module.vdim != module.embed_dim:
            return "a newly initialized attention is self-attention, but here kdim or vdim is not embed_dim"
        return None

    def heads(self, module: nn.MultiheadAttention) -> Heads:
        bias = module.in_proj_bias is not None
        return Heads(module.embed_dim, module.num_heads, module.head_dim, bias, bias, module.dropout, 0.0)

    def prepare(self, model: nn.Module) -> Undo:
        nesting = [m for m in model.modules() if isinstance(m, nn.TransformerEncoder) and m.use_nested_tensor]
        for encoder in nesting:
            encoder.use_nested_tensor = False

        return partial(_nest_again, nesting)


def _nest_again(encoders: list[nn.TransformerEncoder]) -> None:
    for encoder in encoders:
        encoder.use_nested_tensor = True


integration = Torch()
