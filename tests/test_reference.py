"""The reference is the specification, so it is tested against loops that share none of its code (`oracle`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from oracle import (
    LAYOUTS,
    MASKS,
    MERGES,
    NORMS,
    SCOPES,
    Naive,
    gap_is_clear,
    make_inputs,
    make_mask,
    naive_attention,
    naive_merge,
    normal,
    philox_keep,
    seed_after,
)
from torch import Tensor

from rsattn import ResidualAttention, add_best_head, residual_attention

# B, H, N, M, E: odd on purpose, cross attention among them.
SIZES = [
    (2, 3, 1, 1, 16),
    (2, 3, 2, 1, 40),
    (2, 2, 1, 65, 64),
    (1, 3, 63, 63, 80),
    (3, 2, 65, 2, 16),
    (2, 3, 65, 111, 192),
    (1, 1, 111, 63, 40),
    (2, 3, 197, 197, 64),
    (0, 2, 5, 7, 16),
]


def name(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


attend = functools.partial(residual_attention, backend="reference")


@functools.cache
def case(size: tuple[int, ...], kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Naive]:
    query, key, value = make_inputs(*size)
    mask = make_mask(kind, *size[:4])
    return query, key, value, mask, naive_attention(query, key, value, mask)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("size", SIZES, ids=name)
def test_equals_loops_in_float64(size: tuple[int, ...], kind: str, norm: str, scope: str) -> None:
    query, key, value, mask, expected = case(size, kind)
    result = attend(query, key, value, mask, norm=norm, scope=scope)
    # Sums of at most 197 terms of size about 10, each rounded at 1e-16: far below 1e-12, and any mistake is above.
    torch.testing.assert_close(result.output, expected.output, rtol=1e-12, atol=1e-12)
    assert result.norms.dtype == torch.float32
    # The float64 norms agree to 1e-13, so their float32 roundings are the same number or neighbors (2^-23).
    torch.testing.assert_close(result.norms, expected.norms[norm].float(), rtol=2**-23, atol=0.0)
    assert result.best_head.dtype == torch.int64
    ranked = expected.norms[norm].sum(0, keepdim=True) if scope == "batch" else expected.norms[norm]
    exact = norm == "entrywise"  # whole numbers: even ties are decided
    clear = gap_is_clear(ranked, 0.0 if exact else 2**-22 * size[0] * size[2]).expand(size[0]) | exact
    assert result.best_head[clear].tolist() == [h for h, sure in zip(expected.best(norm, scope), clear) if sure]
    # With one visible key, or none, heads tie to the last bit; otherwise no sample may hide behind the gap.
    assert clear.all() or size[3] == 1 or kind in ("padding", "blind")


@pytest.mark.parametrize("kind", ["none", "bool", "float", "padding", "two_dim", "per_head"])
@pytest.mark.parametrize("size", SIZES, ids=name)
def test_output_is_pytorchs_attention(size: tuple[int, ...], kind: str) -> None:
    query, key, value, mask, _ = case(size, kind)
    for scale in (None, 0.3):
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)
        got = attend(query, key, value, mask, scale=scale).output
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # two float64 orders of summation


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dropout_p", [0.3, 0.9])
def test_dropout_follows_the_published_stream(dropout_p: float, kind: str, norm: str) -> None:
    """Loops under the mask that plain integers draw: the output, and which norm sees dropout and which does not."""
    size = (2, 3, 11, 7, 16)
    query, key, value, mask, plain = case(size, kind)
    keep = philox_keep(seed_after(42), dropout_p, size[:4])
    expected = naive_attention(query, key, value, mask, keep, dropout_p)
    torch.manual_seed(42)
    result = attend(query, key, value, mask, dropout_p, norm=norm)
    torch.testing.assert_close(result.output, expected.output, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.norms, expected.norms[norm].float(), rtol=2**-22, atol=0.0)
    assert result.best_head.tolist() == expected.best(norm, "sample")
    if norm != "entrywise":
        assert torch.equal(result.norms, attend(query, key, value, mask, norm=norm).norms)
        assert torch.equal(plain.norms[norm], expected.norms[norm])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["none", "float", "padding", "blind"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(2, 3, 65, 111, 40), (1, 2, 197, 197, 64), (2, 2, 2, 63, 192)], ids=name)
def test_low_precision_stays_within_its_rounding(
    size: tuple[int, ...], dtype: torch.dtype, kind: str, norm: str
) -> None:
    query, key, value = make_inputs(*size, dtype=dtype)
    mask = make_mask(kind, *size[:4], dtype=dtype)
    exact = naive_attention(query, key, value, mask)  # in float64, on the rounded inputs
    result = attend(query, key, value, mask, norm=norm)
    assert result.output.dtype == dtype

    # A score is rounded to the dtype after the product and after the scale (2u of its size, before the mask), and
    # summed over E in float32. An absolute error d in every score changes every probability by a factor within
    # exp(2d). The probabilities are rounded to the dtype (u), summed over M in float32 and the result rounded (u).
    u, u32 = torch.finfo(dtype).eps / 2, torch.finfo(torch.float32).eps / 2
    size_of = lambda a, b: (a.double().abs() @ b.double().abs()).max().item()  # noqa: E731
    scale = 1 / math.sqrt(size[4])
    scores = (query.double() @ key.double().transpose(-2, -1)).abs().max().item() * scale
    drift = 2 * u * scores + (size[4] + 4) * u32 * size_of(query, key.transpose(-2, -1)) * scale
    spread = math.expm1(2 * drift) + 8 * u32
    bound = (spread + 2 * u + (size[3] + 2) * u32) * value.double().abs().max().item()
    assert (result.output.double() - exact.output).abs().max().item() <= bound
    error = (result.norms.double() - exact.norms[norm]).abs()
    relative = spread + (size[2] + 2) * u32
    assert (error <= relative * exact.norms[norm]).all()
    clear = gap_is_clear(exact.norms[norm], relative * exact.norms[norm].max().item())
    best = exact.norms[norm].argmax(1)
    assert torch.equal(result.best_head[clear], best[clear])
    if dtype == torch.float32 and norm == "induced":
        assert clear.all()  # in float32 no sample may hide behind the bound


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(2, 3, 65, 65, 40), (2, 3, 63, 111, 16)], ids=name)
def test_any_strides_give_the_same(size: tuple[int, ...], layout: str) -> None:
    query, key, value = make_inputs(*size, layout=layout)
    mask = make_mask("bool", *size[:4])
    plain = attend(*make_inputs(*size), mask)
    result = attend(query, key, value, mask.transpose(2, 3).contiguous().transpose(2, 3))
    # BLAS may choose another order of summation for other strides, no more.
    torch.testing.assert_close(result.output, plain.output, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(result.norms, plain.norms, rtol=2**-23, atol=0.0)
    assert torch.equal(result.best_head, plain.best_head)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_joining_the_heads_copies_nothing(batch: int, layout: str) -> None:
    output = attend(*make_inputs(batch, 3, 5, 5, 16, layout=layout)).output
    joined = output.transpose(1, 2)
    assert joined.is_contiguous()
    assert joined.flatten(2).data_ptr() == output.data_ptr()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm", NORMS)
def test_rows_that_see_nothing(norm: str, scope: str) -> None:
    """Output 0, no contribution to any norm, but they count among the rows `confidence` averages over."""
    query, key, value = make_inputs(2, 2, 8, 5, 16)
    for blind in (torch.tensor(False), torch.tensor(-math.inf)):  # masks of no dimension, bool and floating
        result = attend(query, key, value, blind, norm=norm, scope=scope)
        assert torch.equal(result.output, torch.zeros_like(query))
        assert torch.equal(result.norms, torch.zeros(2, 2))
        assert result.best_head.tolist() == [0, 0]
    half = torch.ones(8, 1, dtype=torch.bool)
    half[3:] = False
    result = attend(query, key, value, half, norm=norm, scope=scope)
    seeing = attend(query[:, :, :3], key, value, norm=norm, scope=scope)
    assert torch.equal(result.output[:, :, 3:], torch.zeros(2, 2, 5, 16, dtype=torch.float64))
    torch.testing.assert_close(result.output[:, :, :3], seeing.output, rtol=1e-13, atol=1e-13)  # order of sums
    share = 3 / 8 if norm == "confidence" else 1.0
    torch.testing.assert_close(result.norms, seeing.norms * share, rtol=2**-22, atol=0.0)  # two float32 roundings


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm", ["induced", "confidence"])
def test_ties_go_to_the_lowest_head(norm: str, scope: str) -> None:
    query, key, value = make_inputs(3, 4, 9, 9, 16)
    for head in (1, 3):  # every query sees one key only, the first: both norms reach their largest value
        query[:, head], key[:, head] = 10.0, -10.0
        key[:, head, 0] = 10.0
    result = attend(query, key, value, norm=norm, scope=scope)
    assert torch.equal(result.norms[:, 1], result.norms[:, 3])
    assert result.best_head.tolist() == [1, 1, 1]
    alike = attend(*(t[:, :1].expand(-1, 4, -1, -1) for t in (query, key, value)), norm=norm, scope=scope)
    assert alike.best_head.tolist() == [0, 0, 0]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm", NORMS)
def test_nan_wins(norm: str, scope: str) -> None:
    query, key, value = make_inputs(2, 4, 9, 9, 16)
    query[1, 3, 4, 0] = query[1, 2, 0, 5] = math.nan
    torch.manual_seed(0)
    result = attend(query, key, value, dropout_p=0.2 if norm == "entrywise" else 0.0, norm=norm, scope=scope)
    assert result.norms[1].isnan().tolist() == [False, False, True, True]
    assert not result.norms[0].isnan().any()
    assert int(result.best_head[1]) == 2  # the lowest of the NaN heads, as torch.argmax has it
    if scope == "batch":
        assert int(result.best_head[0]) == 2
    else:
        assert int(result.best_head[0]) == int(result.norms[0].argmax())


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sample_does_not_depend_on_its_batch_mates(dtype: torch.dtype, norm: str, dropout_p: float) -> None:
    query, key, value = make_inputs(3, 4, 65, 65, 40, dtype=dtype)
    mask = make_mask("padding", 3, 4, 65, 65)

    def run(query: Tensor, key: Tensor, value: Tensor, scope: str = "sample") -> ResidualAttention:
        torch.manual_seed(5)
        return attend(query, key, value, mask, dropout_p, norm=norm, scope=scope, return_received=True)

    mates = make_inputs(3, 4, 65, 65, 40, dtype=dtype, seed=1)
    for t, own in zip(mates, (query, key, value)):
        t[1] = own[1]
    mates[0][0] = math.nan
    # Bitwise: the shapes are the same, so every matrix product takes the same path.
    for own, other in zip(run(query, key, value), run(*mates)):
        assert torch.equal(own[1], other[1])
    # scope="batch" is the one that does depend: the NaN mate decides for all.
    if norm == "induced":
        assert run(*mates, scope="batch").best_head.tolist() == [0, 0, 0]


@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_alone_chooses_the_same_head(norm: str) -> None:
    query, key, value = make_inputs(5, 6, 33, 33, 16)
    together = attend(query, key, value, norm=norm)
    for b in range(5):
        alone = attend(query[b : b + 1], key[b : b + 1], value[b : b + 1], norm=norm)
        # Not bitwise: another batch size may take another path through BLAS. 1e-13 is float64 rounding.
        torch.testing.assert_close(alone.output[0], together.output[b], rtol=1e-13, atol=1e-13)
        assert int(alone.best_head) == int(together.best_head[b])
    if norm != "entrywise":
        assert len(set(together.best_head.tolist())) > 1  # the samples do differ


def test_batch_scope_sums_the_norms() -> None:
    result = attend(*make_inputs(7, 5, 21, 21, 16), scope="batch", norm="confidence")
    assert result.best_head.tolist() == [int(result.norms.double().sum(0).argmax())] * 7
    own = attend(*make_inputs(7, 5, 21, 21, 16), norm="confidence").best_head
    assert len(set(own.tolist())) > 1


def residual(merge: str, norm: str, scope: str, dropout_p: float, fixed: Tensor | None) -> Callable[..., Tensor]:
    """A function of (query, key, value, weight, mask) for gradcheck."""

    def function(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, mask: Tensor | None = fixed) -> Tensor:
        torch.manual_seed(11)  # one dropout mask for every finite difference
        attention = attend(query, key, value, mask, dropout_p, norm=norm, scope=scope)
        projected = attention.output.transpose(1, 2).flatten(2) @ weight
        return add_best_head(projected, attention, merge=merge)

    return function


@pytest.mark.parametrize(("merge", "dropout_p"), [("tile", 0.0), ("slot", 0.4)])
@pytest.mark.parametrize(
    ("kind", "norm", "scope"),
    [
        ("none", "induced", "sample"),
        ("bool", "confidence", "batch"),
        ("float", "induced", "sample"),
        ("blind", "entrywise", "batch"),
        ("float_blind", "confidence", "sample"),
        ("padding", "entrywise", "sample"),
    ],
)
def test_first_and_second_derivatives(kind: str, norm: str, scope: str, merge: str, dropout_p: float) -> None:
    size = (2, 2, 2, 3, 2)
    inputs = [t.requires_grad_() for t in (*make_inputs(*size), normal(4, 4, seed=9))]
    mask = make_mask(kind, *size[:4])
    function = residual(merge, norm, scope, dropout_p, mask)
    if mask is not None and mask.is_floating_point():
        # Where the mask is -inf a finite difference is no number; those entries stay outside the leaf.
        closed = mask == -math.inf
        inner = function
        inputs.append(mask.masked_fill(closed, 0.0).requires_grad_())
        function = lambda q, k, v, w, m: inner(q, k, v, w, m.masked_fill(closed, -math.inf))  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_norms_and_choice_carry_no_gradient() -> None:
    query, key, value = (t.requires_grad_() for t in make_inputs(2, 3, 5, 5, 16))
    for norm in NORMS:
        result = attend(query, key, value, dropout_p=0.1, norm=norm)
        assert result.output.requires_grad
        assert not result.norms.requires_grad
        assert not result.best_head.requires_grad


@pytest.mark.parametrize("merge", MERGES)
def test_the_residuals_gradient_reaches_the_best_head_only(merge: str) -> None:
    """dV_h = P_h^T dO_h with dO_h the projection's part for every head, merge^T(dY) added for the best alone."""
    query, key, value = make_inputs(3, 4, 9, 7, 2)
    value.requires_grad_()
    weight, grad = normal(8, 8, seed=1), normal(3, 9, 8, seed=2)
    result = attend(query, key, value)
    joined = result.output.transpose(1, 2).flatten(2)
    add_best_head(joined @ weight, result, merge=merge).backward(grad)
    naive = naive_attention(query, key, value)
    best = naive.best("induced", "sample")
    assert len(set(best)) > 1
    for b in range(3):
        for h in range(4):
            d_output = grad[b] @ weight.T[:, 2 * h : 2 * h + 2]
            if h == best[b]:
                slots = range(4) if merge == "tile" else [h]
                for slot in slots:
                    d_output = d_output + grad[b][:, 2 * slot : 2 * slot + 2]
            expected = naive.probs[b, h].T @ d_output
            torch.testing.assert_close(value.grad[b, h], expected, rtol=1e-12, atol=1e-12)  # float64 sums


@pytest.mark.parametrize("kind", ["blind", "float_blind"])
def test_rows_that_see_nothing_leave_no_nan_in_gradients(kind: str) -> None:
    size = (2, 2, 5, 6, 16)
    query, key, value = (t.requires_grad_() for t in make_inputs(*size, dtype=torch.float32))
    mask = make_mask(kind, *size[:4], dtype=torch.float32)
    if kind == "float_blind":
        mask.requires_grad_()
    attend(query, key, value, mask).output.sum().backward()
    for t in (query, key, value, mask):
        assert t.grad is None or t.grad.isfinite().all()
    assert torch.equal(query.grad[:, 0, 2], torch.zeros(2, 16))  # the row that sees nothing
    assert query.grad[:, 0, 1].abs().max() > 0


def test_whole_step_equals_loops() -> None:
    """Attention, selection, projection and merge in one go against loops, for both merges."""
    size = (2, 3, 13, 13, 4)
    query, key, value, _, naive = case(size, "none")
    result = attend(query, key, value)
    projected = result.output.transpose(1, 2).flatten(2) @ normal(12, 12, seed=4)
    for merge in MERGES:
        expected = naive_merge(projected, naive.output, naive.best("induced", "sample"), merge)
        got = add_best_head(projected, result, merge=merge)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # float64 sums


def test_autocast_casts_the_inputs_but_not_float64() -> None:
    query, key, value = make_inputs(2, 3, 9, 9, 16, dtype=torch.float32)
    plain = attend(query.bfloat16(), key.bfloat16(), value.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = attend(query, key, value)
        wide = attend(query.double(), key.double(), value.double())
    assert torch.equal(cast.output, plain.output)
    assert torch.equal(cast.norms, plain.norms)
    assert cast.norms.dtype == torch.float32
    assert torch.equal(wide.output, attend(query.double(), key.double(), value.double()).output)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_meta_tensors(dropout_p: float) -> None:
    """Any device: shapes can be worked out without data, as for a model built on the meta device."""
    query, key, value = make_inputs(2, 3, 9, 7, 16, dtype=torch.bfloat16, device="meta")
    result = attend(query, key, value, dropout_p=dropout_p, return_received=True)
    inputs = make_inputs(2, 3, 9, 7, 16, dtype=torch.bfloat16)
    real = attend(*inputs, dropout_p=dropout_p, return_received=True)
    describe = lambda tensors: [(t.shape, t.stride(), t.dtype) for t in tensors]  # noqa: E731
    assert describe(result) == describe(real)
    projected = torch.zeros(2, 9, 48, device="meta")
    assert add_best_head(projected, result).shape == (2, 9, 48)


@pytest.mark.parametrize("heads", [6, 33])
def test_ties_over_a_batch_are_not_decided_by_the_order_of_sums(heads: int) -> None:
    """PyTorch adds the last of 6 or 33 columns in another order than the others."""
    for seed in range(20):
        query, key = (normal(16, 1, 10, 8, seed=seed + offset, dtype=torch.float32) for offset in (0, 100))
        query, key = query.expand(16, heads, 10, 8), key.expand(16, heads, 10, 8)
        assert set(attend(query, key, key, scope="batch").best_head.tolist()) == {0}
