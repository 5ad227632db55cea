"""DINOv2 beyond what every library has: joined images, and its attention as today's repository has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from case import DIM, HEADS
from dinov2.layers.attention import Attention, MemEffAttention
from dinov2.layers.block import NestedTensorBlock
from oracle import naive_attention, naive_merge, normal
from torch import Tensor
from watch import calls_of

import rsattn

FRESH = pytest.mark.parametrize("fresh", [{}, {"num_heads": 2}], ids=["swap", "fresh"])
KINDS = pytest.mark.parametrize("kind", [Attention, MemEffAttention])


def tokens() -> Tensor:
    return normal(3, 11, DIM)


def build(kind: Any) -> Any:
    torch.manual_seed(0)
    return kind(DIM, HEADS, qkv_bias=True, attn_drop=0.25).double().eval()


@FRESH
def test_images_joined_into_one_sequence_are_refused(fresh: dict[str, int]) -> None:
    attention = build(MemEffAttention)
    rsattn.patch(attention, init_values=None, **fresh)
    assert torch.equal(attention(tokens(), attn_bias=None), attention(tokens()))
    for call in (lambda: attention(tokens(), attn_bias=object()), lambda: attention(tokens(), object())):
        with pytest.raises(ValueError, match=r"attn_bias joins images of several sizes .* one tensor at a time"):
            call()


def test_a_patched_block_is_still_one_for_nested_tensors() -> None:
    """The library asks with `isinstance` before it joins images; the refusal comes after."""
    block = NestedTensorBlock(DIM, HEADS, attn_class=MemEffAttention)
    rsattn.patch(block, init_values=None)
    assert isinstance(block.attn, MemEffAttention)


def test_causal_as_in_todays_repository() -> None:
    """Its text blocks give `is_causal` as the second argument."""
    attention, x = build(Attention), tokens()
    query, key, value = attention.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    naive = naive_attention(query, key, value, torch.ones(11, 11, dtype=torch.bool).tril())
    projected = attention.proj(naive.output.transpose(1, 2).flatten(2))
    want = naive_merge(projected, naive.output, naive.best("induced", "sample"), "tile")
    rsattn.patch(attention, init_values=None)
    for got in (attention(x, True), attention(x, is_causal=True)):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)  # float64 sums


@KINDS
def test_a_scale_of_ones_own(kind: Any) -> None:
    attention, x = build(kind), tokens()
    attention.scale = 0.7
    (call,) = calls_of(attention, [""], lambda plain: plain(x))
    want = naive_merge(call.output, call.seen.output, call.seen.best("induced", "sample"), "tile")
    rsattn.patch(attention, init_values=None)
    torch.testing.assert_close(attention(x), want, rtol=1e-11, atol=1e-11)


@KINDS
def test_the_residual_joins_after_the_output_dropout(kind: Any) -> None:
    """With everything of the projection dropped, the best head is all that is left."""
    attention, x = build(kind), tokens()
    (call,) = calls_of(attention, [""], lambda plain: plain(x))
    want = naive_merge(torch.zeros_like(x), call.seen.output, call.seen.best("induced", "sample"), "tile")
    attention.attn_drop.p, attention.proj_drop.p = 0.0, 1.0
    rsattn.patch(attention, init_values=None)
    torch.testing.assert_close(attention.train()(x), want, rtol=1e-11, atol=1e-11)


@KINDS
@pytest.mark.parametrize("bias", [True, False])
def test_fresh_heads_have_the_biases_and_dropouts_of_the_attention(kind: Any, bias: bool) -> None:
    attention = kind(DIM, HEADS, qkv_bias=bias, proj_bias=not bias, attn_drop=0.25, proj_drop=0.5)
    rsattn.patch(attention, num_heads=2)
    assert (attention.qkv.bias is not None, attention.proj.bias is not None) == (bias, not bias)
    assert (attention.attn_drop, attention.proj_drop.p) == (0.25, 0.5)


def test_fresh_heads_can_be_causal() -> None:
    attention, x = build(Attention), tokens()
    rsattn.patch(attention, num_heads=1, head_dim=DIM)  # one head: it is the best whatever the last token is
    other = x.clone()
    other[:, -1] = 7.0
    assert torch.equal(attention(x, True)[:, :-1], attention(other, True)[:, :-1])
    assert not torch.equal(attention(x)[:, :-1], attention(other)[:, :-1])


@FRESH
@KINDS
def test_a_dropout_that_is_a_number_as_in_todays_repository(kind: Any, fresh: dict[str, int]) -> None:
    old, new = build(kind), build(kind)
    del new.attn_drop
    new.attn_drop = 0.25
    results = []
    for attention in (old, new):
        torch.manual_seed(1)  # of fresh heads
        rsattn.patch(attention, init_values=None, **fresh)
        calm = attention(tokens())
        torch.manual_seed(2)
        noisy = attention.train()(tokens())
        assert not torch.allclose(noisy, calm)
        results.append(noisy)
    assert torch.equal(*results)
