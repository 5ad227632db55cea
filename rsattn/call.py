"""One call of residual attention: what a backend takes, and what its forward and backward passes return."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .contract import (
    NORMS,
    SCOPES,
    check_choice,
    check_dropout,
    check_inputs_are_tensors,
    check_mask,
    check_scale,
    check_tensors,
)


class Call:
    """The arguments of one call, made once and passed down through every layer.

    Attributes:
        inputs: the tensors that get gradients: (query, key, value), or the one packed tensor (B, N, 3, H, E) that
            those three are views of.
        query: (B, H, N, E).
        key, value: (B, H, M, E).
        attn_mask: None, or bool (True takes part) or floating (added to the scaled scores), broadcastable to
            (B, H, N, M); the batch axis may also repeat: its length divides B, and sample b uses entry b % length. A
            backend gets it with four dimensions, which it may read through `expanded_mask`.
        seed: (1,) int64, the dropout seed; None for no dropout.
        dropout_p: probability of dropping an attention probability.
        scale: factor of the scores.
        norm, scope, return_received: as in `rsattn.residual_attention`.
        mask_gradient: whether a backward pass computes the gradient of `attn_mask`.
        device_type: of the inputs, such as "cuda".
    """

    __slots__ = (
        "attn_mask",
        "device_type",
        "dropout_p",
        "inputs",
        "key",
        "mask_gradient",
        "norm",
        "query",
        "return_received",
        "scale",
        "scope",
        "seed",
        "value",
    )

    def __init__(
        self,
        inputs: tuple[Tensor, ...],
        attn_mask: Tensor | None = None,
        seed: Tensor | None = None,
        dropout_p: float = 0.0,
        scale: float | None = None,
        norm: str = "induced",
        scope: str = "sample",
        return_received: bool = False,
    ) -> None:
        """`scale` None is 1 / sqrt(head_dim), as in torch.nn.functional.scaled_dot_product_attention."""
        for tensor in inputs:
            if not isinstance(tensor, Tensor):
                check_inputs_are_tensors(inputs)
        self.take(inputs)
        self.attn_mask = attn_mask
        self.seed = seed
        self.dropout_p = dropout_p
        self.scale = default_scale(self.query) if scale is None else scale
        self.norm = norm
        self.scope = scope
        self.return_received = return_received
        self.mask_gradient = False
        self.device_type = self.query.device.type

    def take(self, inputs: tuple[Tensor, ...]) -> None:
        """Replace the inputs by other tensors of the same shapes."""
        self.inputs = inputs
        self.query, self.key, self.value = inputs if len(inputs) == 3 else unpacked(*inputs)

    @property
    def packed(self) -> bool:
        """Whether query, key and value are views of one tensor."""
        return len(self.inputs) == 1

    def on(self, *inputs: Tensor) -> Call:
        """The same call on other tensors."""
        choices = self.dropout_p, self.scale, self.norm, self.scope, self.return_received
        return Call(inputs, self.attn_mask, self.seed, *choices)

    def expand_to_four_dimensions(self) -> None:
        """Give the mask leading axes of size 1. Autograd takes them away from its gradient."""
        mask = self.attn_mask
        if mask is not None and mask.dim() < 4:
            self.attn_mask = mask.view((1,) * (4 - mask.dim()) + mask.shape)

    def expanded_mask(self) -> Tensor | None:
        """The mask as a view (repeat, H, N, M), with strides of 0 where it broadcasts; sample b uses b % repeat."""
        mask = self.attn_mask
        return None if mask is None else mask.expand(mask.shape[0], *self.query.shape[1:3], self.key.shape[2])

    def check(self) -> None:
        """Check every argument; an error says what was wrong, what was expected and what to do.

        Raises:
            ValueError: a shape, device, probability or choice that the contract does not allow.
            TypeError: a dtype that the contract does not allow.
        """
        check_choice("norm", self.norm, NORMS)
        check_choice("scope", self.scope, SCOPES)
        self.dropout_p = check_dropout(self.dropout_p)
        self.scale = check_scale(self.scale)
        check_tensors(self.query, self.key, self.value)
        if self.attn_mask is not None:
            check_mask(self.attn_mask, self.query, self.key)

    def wants_gradient(self) -> bool:
        """Whether autograd may ask for a gradient of query, key, value or the mask."""
        if torch.is_grad_enabled():
            for tensor in self.inputs:
                if tensor.requires_grad:
                    return True
            return self.attn_mask is not None and self.attn_mask.requires_grad
        return False

    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that may get a gradient: `inputs`, then the mask if it is learned."""
        mask = self.attn_mask
        return self.inputs if mask is None or not mask.requires_grad else (*self.inputs, mask)

    def has_tangent(self) -> bool:
        """Whether forward-mode AD may ask for a derivative."""
        return has_tangent(*self.inputs, self.attn_mask)

    def __repr__(self) -> str:
        """The inputs as error messages show them."""
        mask = self.attn_mask
        words = "no mask" if mask is None else f"{mask.dtype} mask {tuple(mask.shape)}"
        return f"query {tuple(self.query.shape)} {self.query.dtype} on {self.query.device}, {words}"


class Forward(NamedTuple):
    """The results of a backend's forward pass.

    Attributes:
        output: (B, H, N, E) in (B, N, H, E) order in memory, the inputs' dtype.
        norms: (B, H) float32.
        best_head: (B,) int64.
        statistics: (B, H, 2, N) float32, from which the backward pass recomputes P: the maximum of each row of scores,
            and log2 of the sum of exponentials relative to it. Units depend on the backend. None where autograd
            differentiates the forward pass itself.
        received: (B, H, M) float32, the sums over the queries of P before dropout; None unless `Call.return_received`.
    """

    output: Tensor
    norms: Tensor
    best_head: Tensor
    statistics: Tensor | None
    received: Tensor | None = None


class Gradients(NamedTuple):
    """The results of a backend's backward pass.

    Attributes:
        query, key, value: dQ (B, H, N, E), dK and dV (B, H, M, E).
        packed: (B, N, 3, H, E), the tensor that those three are views of, for a packed call.
        mask: in the shape of `Call.attn_mask`, float32 (from the reference, the mask's dtype): the sum of its gradients
            over the axes along which it broadcasts or repeats; None unless `Call.mask_gradient`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    packed: Tensor | None = None
    mask: Tensor | None = None

    @staticmethod
    def of(grads: Sequence[Tensor], mask: Tensor | None = None) -> Gradients:
        """From the gradients of `Call.inputs`."""
        query, key, value = grads if len(grads) == 3 else unpacked(*grads)
        return Gradients(query, key, value, None if len(grads) == 3 else grads[0], mask)

    def of_inputs(self) -> tuple[Tensor, ...]:
        """In the order of `Call.inputs`."""
        return self[:3] if self.packed is None else (self.packed,)


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors is a dual tensor of torch.autograd.forward_ad."""
    if forward_ad._current_level < 0:
        return False
    return any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def unpacked(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, (B, H, N, E) each, as views of a packed (B, N, 3, H, E)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def default_scale(query: Tensor) -> float:
    """1 / sqrt(head_dim); 1 for the shapes that `Call.check` refuses."""
    width = query.shape[-1] if query.dim() else 0
    return 1.0 / math.sqrt(width) if width else 1.0


def empty_heads(like: Tensor) -> Tensor:
    """An uninitialized (B, H, N, E) tensor in (B, N, H, E) memory order, so that joining the heads copies nothing."""
    batch, heads, length, width = size = like.shape
    strides = (length * heads * width, width, heads * width, 1)
    return torch.empty_strided(size, strides, dtype=like.dtype, device=like.device)


def empty_forward(call: Call) -> Forward:
    """Uninitialized results of a forward pass."""
    query = call.query
    batch, heads, length, _ = query.shape
    keys, device = call.key.shape[2], query.device
    received = None
    if call.return_received:
        received = torch.empty((batch, heads, keys), dtype=torch.float32, device=device)
    return Forward(
        empty_heads(query),
        torch.empty((batch, heads), dtype=torch.float32, device=device),
        torch.empty((batch,), dtype=torch.int64, device=device),
        torch.empty((batch, heads, 2, length), dtype=torch.float32, device=device),
        received,
    )


def empty_gradients(call: Call) -> Gradients:
    """Uninitialized results of a backward pass; for a packed call three views of one tensor."""
    if call.packed:
        packed = torch.empty(call.inputs[0].shape, dtype=call.query.dtype, device=call.query.device)
        return Gradients(*unpacked(packed), packed)
    return Gradients(empty_heads(call.query), empty_heads(call.key), empty_heads(call.value))
