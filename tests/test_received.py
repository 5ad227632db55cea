"""The attention received: column sums of P against the loops of the oracle, and what it must not store.

tests/kernels/test_column_sums.py has the kernels.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from oracle import LAYOUTS, MASKS, make_inputs, make_mask, naive_attention, normal
from torch import Tensor
from watching import LargestTensor

import rsattn
from rsattn import attention_received, reference
from rsattn.call import Call
from rsattn.contract import NORMS
from rsattn.reference import ROWS

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 13, 9, 8
SCALE = 0.31
EPS = torch.finfo(torch.float32).eps
# Every sum has QUERIES terms below 1, each an exponential of a score (WIDTH roundings) over a sum of KEYS terms.
TOLERANCE = EPS * QUERIES * (WIDTH + KEYS + 16)


def inputs(dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> tuple[Tensor, Tensor, Tensor]:
    return make_inputs(BATCH, HEADS, QUERIES, KEYS, WIDTH, dtype=dtype, layout=layout)


def expected(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    return naive_attention(query, key, value, mask, scale=SCALE).probs.sum(dim=2)


BACKENDS = pytest.mark.parametrize("backend", ["reference", None])


@pytest.mark.parametrize("rows", [1, 4, QUERIES, ROWS])
@pytest.mark.parametrize("mask", MASKS)
def test_is_the_column_sums_of_the_probabilities(mask: str, rows: int) -> None:
    query, key, value = inputs(torch.float64)
    masked = make_mask(mask, BATCH, HEADS, QUERIES, KEYS)
    got = reference.attention_received(Call((query, key, key), masked, scale=SCALE), rows)
    assert got.dtype == torch.float32
    # Computed in float64, and rounded once.
    torch.testing.assert_close(got.double(), expected(query, key, value, masked), rtol=EPS, atol=1e-13)


@BACKENDS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_computed_in_float32_whatever_it_is_given(dtype: torch.dtype, layout: str, backend: str | None) -> None:
    query, key, value = inputs(dtype, layout)
    got = attention_received(query, key, scale=SCALE, backend=backend)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected(query, key, value), rtol=0.0, atol=TOLERANCE)


@BACKENDS
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mask", MASKS)
def test_beside_the_output(mask: str, norm: Any, backend: str | None) -> None:
    query, key, value = inputs()
    masked = make_mask(mask, BATCH, HEADS, QUERIES, KEYS, dtype=torch.float32)
    both = rsattn.residual_attention(
        query, key, value, masked, 0.5, scale=SCALE, norm=norm, backend=backend, return_received=True
    )
    assert both.received is not None
    torch.testing.assert_close(both.received.double(), expected(query, key, value, masked), rtol=0.0, atol=TOLERANCE)
    alone = attention_received(query, key, masked, scale=SCALE, backend=backend)
    torch.testing.assert_close(both.received, alone, rtol=0.0, atol=TOLERANCE)


@BACKENDS
def test_beside_the_output_of_packed_inputs(backend: str | None) -> None:
    qkv = normal(BATCH, QUERIES, 3, HEADS, WIDTH, dtype=torch.float32)
    got = rsattn.residual_attention_qkvpacked(qkv, backend=backend, return_received=True).received
    query, key, _ = qkv.permute(2, 0, 3, 1, 4)
    assert got is not None
    torch.testing.assert_close(got, attention_received(query, key, backend=backend), rtol=0.0, atol=TOLERANCE)


def test_is_not_computed_unless_asked_for() -> None:
    assert rsattn.residual_attention(*inputs()).received is None


@BACKENDS
def test_autocast_rounds_the_inputs_and_nothing_else(backend: str | None) -> None:
    query, key, value = inputs()
    rounded = [tensor.to(torch.bfloat16) for tensor in (query, key, value)]
    with torch.autocast("cpu", torch.bfloat16):
        got = attention_received(query, key, scale=SCALE, backend=backend)
        both = rsattn.residual_attention(query, key, value, scale=SCALE, backend=backend, return_received=True)
    assert both.received is not None
    torch.testing.assert_close(got.double(), expected(*rounded), rtol=0.0, atol=TOLERANCE)
    if backend is None:  # eager PyTorch rounds the scores of its matrix product
        torch.testing.assert_close(both.received, got, rtol=0.0, atol=TOLERANCE)


@BACKENDS
def test_the_scale_is_that_of_residual_attention_when_not_given(backend: str | None) -> None:
    query, key, _ = inputs()
    got = attention_received(query, key, backend=backend)
    assert torch.equal(got, attention_received(query, key, scale=1.0 / math.sqrt(WIDTH), backend=backend))


@BACKENDS
def test_adds_up_to_the_queries_that_see_a_key(backend: str | None) -> None:
    query, key, _ = inputs()
    mask = make_mask("blind", BATCH, HEADS, QUERIES, KEYS)
    assert mask is not None
    seeing = mask.any(dim=-1).sum(dim=-1)
    assert (seeing < QUERIES).any()
    got = attention_received(query, key, mask, scale=SCALE, backend=backend).double().sum(dim=-1)
    torch.testing.assert_close(got, seeing.double(), rtol=0.0, atol=KEYS * TOLERANCE)


@BACKENDS
def test_a_hidden_nan_stays_hidden(backend: str | None) -> None:
    query, key, _ = inputs()
    mask = torch.ones(QUERIES, KEYS, dtype=torch.bool)
    mask[:, 4] = False
    clean = attention_received(query, key, mask, scale=SCALE, backend=backend)
    key[:, :, 4] = torch.nan
    assert torch.equal(attention_received(query, key, mask, scale=SCALE, backend=backend), clean)


@BACKENDS
def test_carries_no_gradient(backend: str | None) -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs()]
    assert not attention_received(*leaves[:2], backend=backend).requires_grad
    both = rsattn.residual_attention(*leaves, backend=backend, return_received=True)
    assert both.received is not None
    assert not both.received.requires_grad
    assert both.output.requires_grad


@BACKENDS
def test_a_compiled_call(backend: str | None) -> None:
    query, key, value = inputs()
    compiled = torch.compile(attention_received, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query, key, backend=backend), attention_received(query, key, backend=backend))
    both = torch.compile(rsattn.residual_attention, fullgraph=True, backend="aot_eager")
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    got = both(*leaves, backend=backend, return_received=True)
    want = rsattn.residual_attention(query, key, value, backend=backend, return_received=True)
    torch.testing.assert_close(got.received, want.received, rtol=0.0, atol=TOLERANCE)
    assert not got.received.requires_grad


@pytest.mark.parametrize(
    ("query", "key", "wanted"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), "must be \\(batch, heads, length, head_dim\\)"),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5), "must share one shape"),
    ],
)
def test_inputs_that_do_not_fit(query: Tensor, key: Tensor, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        attention_received(query, key)


@BACKENDS
@pytest.mark.parametrize("mask", ["none", "padding"])
def test_stores_no_square_tensor(mask: str, backend: str | None) -> None:
    length = 4096
    query = torch.ones(1, 1, length, 4)
    hidden = None if mask == "none" else torch.arange(length) < 4000
    with LargestTensor() as seen:
        attention_received(query, query, hidden, scale=SCALE, backend=backend)
    assert 0 < seen.nbytes <= ROWS * length * query.element_size()
