"""What only `nn.MultiheadAttention` has: its masks, weights, unbatched input, and kernels that go around it."""

from __future__ import annotations

import warnings

import pytest
import torch
from case import DIM, HEADS
from library_torch import encoder
from oracle import naive_attention, naive_merge, normal
from torch import Tensor, nn
from torch.nn import functional

import rsattn

LENGTH, BATCH = 11, 3
PADDING = torch.arange(LENGTH) >= torch.tensor([[11], [7], [4]])
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
PER_HEAD = normal(BATCH * HEADS, LENGTH, LENGTH, seed=9) > 1.0
PER_HEAD[..., 0] = False
MASKS = {
    "none": {},
    "padding": {"key_padding_mask": PADDING},
    "float-padding": {"key_padding_mask": torch.zeros(BATCH, LENGTH).masked_fill(PADDING, -1.5).double()},
    "causal": {"attn_mask": CAUSAL},
    "per-head": {"attn_mask": PER_HEAD},
    "both": {"attn_mask": CAUSAL, "key_padding_mask": PADDING},
    "both-float": {"attn_mask": normal(LENGTH, LENGTH, seed=7), "key_padding_mask": PADDING.double() * -2.0},
}


def attention(**options: object) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(DIM, HEADS, dtype=torch.float64, **{"batch_first": True, **options}).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return module


def heads(module: nn.MultiheadAttention, x: Tensor) -> list[Tensor]:
    packed = functional.linear(x, module.in_proj_weight, module.in_proj_bias).unflatten(-1, (3, HEADS, -1))
    return list(packed.permute(2, 0, 3, 1, 4))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("need_weights", [False, True], ids=["fast", "weights"])
def test_masks(mask: str, need_weights: bool) -> None:
    """True = ignore, as PyTorch has it; the library's own output and weights are what is compared with."""
    module, x, given = attention(), normal(BATCH, LENGTH, DIM), MASKS[mask]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of masks of different types
        plain, weights = module(x, x, x, **given)
        _, per_head = module(x, x, x, **given, average_attn_weights=False)
    naive_best = [row.index(max(row)) for row in per_head.sum(-2).amax(-1).tolist()]
    value = heads(module, x)[2]
    expected = naive_merge(plain, per_head @ value, naive_best, "tile")
    rsattn.patch(module, init_values=None)
    got, got_weights = module(x, x, x, **given, need_weights=need_weights)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)  # float64 sums
    if not need_weights:
        assert got_weights is None
        return
    torch.testing.assert_close(got_weights, weights, rtol=1e-11, atol=1e-12)
    _, got_per_head = module(x, x, x, **given, average_attn_weights=False)
    torch.testing.assert_close(got_per_head, per_head, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_and_length_first(batch_first: bool) -> None:
    module, x = attention(batch_first=batch_first), normal(BATCH, LENGTH, DIM)
    rsattn.patch(module, init_values=None)
    given = x if batch_first else x.transpose(0, 1)
    whole, weights = module(given, given, given)
    whole = whole if batch_first else whole.transpose(0, 1)
    assert weights.shape == (BATCH, LENGTH, LENGTH)
    for b in range(BATCH):
        alone, alone_weights = module(x[b], x[b], x[b], key_padding_mask=torch.zeros(LENGTH, dtype=torch.bool))
        torch.testing.assert_close(alone, whole[b], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone_weights, weights[b], rtol=1e-12, atol=1e-12)


def test_a_row_that_sees_nothing_gives_the_bias() -> None:
    module, x = attention(), normal(BATCH, LENGTH, DIM)
    rsattn.patch(module, init_values=None)
    got, weights = module(x, x, x, key_padding_mask=torch.ones(BATCH, LENGTH, dtype=torch.bool))
    torch.testing.assert_close(got, module.out_proj.bias.expand_as(got))
    assert not weights.any()


@pytest.mark.parametrize("fresh", [False, True], ids=["swap", "fresh"])
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_the_encoders_own_kernels_do_not_go_around_it(padded: bool, fresh: bool) -> None:
    """In evaluation without gradients PyTorch would call fused kernels, on nested tensors where there is padding."""
    torch.manual_seed(0)
    model, x = encoder().eval(), normal(BATCH, LENGTH, DIM, dtype=torch.float32)
    mask = PADDING if padded else None
    assert model.use_nested_tensor
    patched = rsattn.patch(model, init_values=None, **({"num_heads": 4, "head_dim": 6} if fresh else {}))
    with torch.no_grad(), rsattn.record(model) as seen:
        quick = model(x, src_key_padding_mask=mask)
    assert seen.norms.shape == (2, BATCH, 4)
    slow = model(x, src_key_padding_mask=mask)  # gradients recorded: no fused kernel
    torch.testing.assert_close(quick, slow, rtol=1e-5, atol=1e-5)
    patched.undo()
    assert model.use_nested_tensor
    with torch.no_grad():
        assert not torch.allclose(model(x, src_key_padding_mask=mask)[0], quick[0], atol=1e-3)


def test_nested_tensors_are_refused() -> None:
    module = attention()
    rsattn.patch(module, init_values=None)
    nested = torch.nested.nested_tensor([normal(4, DIM), normal(7, DIM)], layout=torch.jagged)
    with pytest.raises(TypeError, match="no nested tensors; pad them"):
        module(nested, nested, nested)


def test_causal_needs_its_mask() -> None:
    module, x = attention(), normal(BATCH, LENGTH, DIM)
    rsattn.patch(module, init_values=None)
    with pytest.raises(ValueError, match="there is no attn_mask; pass it"):
        module(x, x, x, is_causal=True, need_weights=False)
    got, _ = module(x, x, x, attn_mask=CAUSAL, is_causal=True, need_weights=False)
    query, key, value = heads(module, x)
    naive = naive_attention(query, key, value, ~CAUSAL)
    plain = module.out_proj(naive.output.transpose(1, 2).flatten(2))
    torch.testing.assert_close(got, naive_merge(plain, naive.output, naive.best("induced", "sample"), "tile"))


@pytest.mark.parametrize("option", [{"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
def test_keys_that_are_no_tokens_are_refused_by_name(option: dict[str, bool]) -> None:
    model = nn.ModuleDict({"plain": attention(), "odd": attention(**option)})
    with pytest.raises(ValueError, match=r"cannot patch\n  odd \(MultiheadAttention: add_bias_kv and add_zero_attn"):
        rsattn.patch(model)
    assert type(model["plain"]) is nn.MultiheadAttention
    with rsattn.patch(model, blocks=[0], init_values=None) as patched:  # the others can still be chosen
        assert list(patched.modules) == ["plain"]


@pytest.mark.parametrize(
    ("option", "words"),
    [({"batch_first": False}, "batch_first=True"), ({"kdim": 8}, "kdim or vdim is not embed_dim")],
    ids=str,
)
def test_fresh_heads_are_refused_where_they_do_not_fit(option: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rsattn.patch(attention(**option), head_dim=DIM)


def test_fresh_heads_attend_to_themselves_only() -> None:
    module, x = attention(), normal(BATCH, LENGTH, DIM)
    rsattn.patch(module, num_heads=2, head_dim=DIM)
    assert module(x, x, x)[1] is None
    square = normal(LENGTH, LENGTH, DIM)
    for query, key in ((x, x.clone()), (square, square.transpose(0, 1))):
        with pytest.raises(ValueError, match="pass one tensor three times"):
            module(query, key, query)
    with pytest.raises(ValueError, match="there is no attn_mask; pass it"):
        module(x, x, x, is_causal=True)
    hidden = module(x, x, x, key_padding_mask=PADDING)[0]
    assert not torch.allclose(hidden[2], module(x, x, x)[0][2])
    short = x[2:, :4]
    torch.testing.assert_close(hidden[2, :4], module(short, short, short)[0][0])  # what is hidden does not count


@pytest.mark.parametrize("fresh", [{}, {"num_heads": 2}], ids=["kept", "fresh"])
def test_masks_of_another_batch_are_refused(fresh: dict[str, int]) -> None:
    """`rsattn.residual_attention` would repeat a mask whose length divides the batch."""
    module, x = attention(), normal(4, LENGTH, DIM)
    rsattn.patch(module, init_values=None, **fresh)
    number = fresh.get("num_heads", HEADS)
    for masks, says in (
        ({"key_padding_mask": PADDING[:2]}, rf"key_padding_mask must be \(batch, keys\) = \(4, {LENGTH}\); got \(2, "),
        ({"key_padding_mask": PADDING[0]}, rf"must be \(batch, keys\) = \(4, {LENGTH}\); got \({LENGTH},\)"),
        ({"attn_mask": CAUSAL.expand(2 * number, -1, -1)}, rf"4 samples and {number} heads, {4 * number}; got"),
    ):
        with pytest.raises(ValueError, match=says):
            module(x, x, x, need_weights=False, **masks)
    if not fresh:
        with pytest.raises(ValueError, match=rf"must be \(keys,\) = \({LENGTH},\); got"):
            module(x[0], x[0], x[0], key_padding_mask=PADDING)
