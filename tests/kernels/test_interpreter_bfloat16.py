"""bfloat16 in the interpreter: rounds as PyTorch does, and is enabled only in tests."""

from unittest import mock

import interpreter_bfloat16
import pytest
import torch
import triton
import triton.language as tl
from cases import Case, assert_within_budget, in_dtype
from triton.runtime import interpreter

from rsattn import BackendError, reference, residual_attention

BF16, SINGLE = torch.bfloat16, torch.float32
SIZE = 16


@triton.jit
def every_operation(A, B, NUMBERS, SUM, PRODUCT, ONE_MORE, LARGER, CAST, WIDENED, DOT, N: tl.constexpr):
    n = tl.arange(0, N)
    at = n[:, None] * N + n[None, :]
    a = tl.load(A + at)
    b = tl.load(B + at, mask=n[:, None] < N - 1, other=0.0)
    tl.store(SUM + at, a + b)
    tl.store(PRODUCT + at, a * b)
    tl.store(ONE_MORE + at, a + 1.0)
    tl.store(LARGER + at, tl.where(a > b, a, b))
    tl.store(CAST + at, tl.load(NUMBERS + at).to(tl.bfloat16))
    tl.store(WIDENED + at, tl.load(NUMBERS + at).to(tl.bfloat16).to(tl.float32))
    tl.store(DOT + at, tl.dot(a, tl.trans(b)))  # the store casts


def check_every_operation() -> None:
    """The same bits as PyTorch."""
    generator = torch.Generator().manual_seed(0)
    # Integers: float32 holds every sum of their products exactly in any order.
    a, b = (torch.randint(-100, 100, (SIZE, SIZE), generator=generator).to(BF16) for _ in range(2))
    numbers = torch.randn(SIZE, SIZE, generator=generator)
    tie, largest, smallest = 2.0**-8, torch.finfo(SINGLE).max, 2.0**-133
    numbers[0, :10] = torch.tensor(
        [1 + tie, 1 + 3 * tie, -1 - tie, 0.0, -0.0, torch.inf, torch.nan, largest, smallest, 1.5 * smallest]
    )
    below = torch.arange(SIZE)[:, None] < SIZE - 1
    masked = torch.where(below, b, 0)
    rounded = numbers.to(BF16)
    want = [a + masked, a * masked, a + 1, torch.maximum(a, masked), rounded, rounded.float()]
    want.append((a.float() @ masked.float().T).to(BF16))
    got = [torch.empty_like(tensor) for tensor in want]
    every_operation[(1,)](a, b, numbers, *got, SIZE)
    for name, ours, torchs in zip(("sum", "product", "one more", "larger", "cast", "widened", "dot"), got, want):
        torch.testing.assert_close(ours, torchs, rtol=0.0, atol=0.0, equal_nan=True, msg=f"{name} differs")


def test_every_operation():
    with interpreter_bfloat16.enabled():
        check_every_operation()


def test_a_cast_that_cuts_off_is_found():
    """The interpreter's own cast, which is why it is replaced."""
    with (
        interpreter_bfloat16.enabled(),
        mock.patch.object(interpreter, "_convert_float", interpreter_bfloat16.own_cast),
        pytest.raises(AssertionError, match="cast differs"),
    ):
        check_every_operation()


def test_only_tests_compute_it():
    call = Case(queries=20, width=16, dtype=BF16).call(torch.device("cpu"))
    mask = torch.randn(20, 20, generator=torch.Generator().manual_seed(0)).to(BF16)
    with interpreter_bfloat16.enabled():
        output = residual_attention(*call.inputs, mask, backend="triton").output
    with pytest.raises(BackendError, match="computes bfloat16 wrongly"):
        residual_attention(*call.inputs, mask, backend="triton")
    call.attn_mask = mask
    exact = in_dtype(call, torch.float64)
    assert_within_budget("output", output, reference.attention(call).output, reference.attention(exact).output)
