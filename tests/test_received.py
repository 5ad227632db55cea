"""`attention_received`: column sums of P against the loops of the oracle, and what it must not store."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import LAYOUTS, MASKS, make_inputs, make_mask, naive_attention
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rsattn.received import ROWS, attention_received

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 13, 9, 8
SCALE = 0.31
EPS = torch.finfo(torch.float32).eps
# Every sum has QUERIES terms below 1, each an exponential of a score (WIDTH roundings) over a sum of KEYS terms.
TOLERANCE = EPS * QUERIES * (WIDTH + KEYS + 16)


class LargestTensor(TorchDispatchMode):
    """The size in numbers of the largest tensor made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


def inputs(dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> tuple[Tensor, Tensor, Tensor]:
    return make_inputs(BATCH, HEADS, QUERIES, KEYS, WIDTH, dtype=dtype, layout=layout)


def expected(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    return naive_attention(query, key, value, mask, scale=SCALE).probs.sum(dim=2)


@pytest.mark.parametrize("rows", [1, 4, QUERIES, ROWS])
@pytest.mark.parametrize("mask", MASKS)
def test_is_the_column_sums_of_the_probabilities(mask: str, rows: int) -> None:
    query, key, value = inputs(torch.float64)
    masked = make_mask(mask, BATCH, HEADS, QUERIES, KEYS)
    got = attention_received(query, key, masked, SCALE, rows)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected(query, key, value, masked), rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_computed_in_float32_whatever_it_is_given(dtype: torch.dtype, layout: str) -> None:
    query, key, value = inputs(dtype, layout)
    got = attention_received(query, key, None, SCALE)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected(query, key, value), rtol=0.0, atol=TOLERANCE)


def test_autocast_does_not_round_it() -> None:
    query, key, _ = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        got = attention_received(query, key, None, SCALE)
    assert torch.equal(got, attention_received(query, key, None, SCALE))


def test_the_scale_is_that_of_residual_attention_when_not_given() -> None:
    query, key, _ = inputs()
    assert torch.equal(
        attention_received(query, key, None, None), attention_received(query, key, None, 1.0 / math.sqrt(WIDTH))
    )


def test_adds_up_to_the_queries_that_see_a_key() -> None:
    query, key, _ = inputs(torch.float64)
    mask = make_mask("blind", BATCH, HEADS, QUERIES, KEYS)
    assert mask is not None
    seeing = mask.any(dim=-1).sum(dim=-1)
    assert (seeing < QUERIES).any()
    torch.testing.assert_close(attention_received(query, key, mask, SCALE).sum(dim=-1), seeing.double())


def test_a_hidden_nan_stays_hidden() -> None:
    query, key, _ = inputs()
    mask = torch.ones(QUERIES, KEYS, dtype=torch.bool)
    mask[:, 4] = False
    clean = attention_received(query, key, mask, SCALE)
    key[:, :, 4] = torch.nan
    assert torch.equal(attention_received(query, key, mask, SCALE), clean)


def test_carries_no_gradient() -> None:
    query, key, _ = inputs()
    assert not attention_received(query.requires_grad_(), key.requires_grad_(), None, SCALE).requires_grad


@pytest.mark.parametrize("rows", [0, -1])
def test_rows_of_nothing(rows: int) -> None:
    query, key, _ = inputs()
    with pytest.raises(RuntimeError, match="split"):
        attention_received(query, key, None, SCALE, rows)


@pytest.mark.parametrize("mask", ["none", "padding"])
def test_stores_blocks_of_rows_only(mask: str) -> None:
    length = 4096
    query = torch.ones(1, 1, length, 4)
    hidden = None if mask == "none" else torch.arange(length) < 4000
    with LargestTensor() as seen:
        attention_received(query, query, hidden, SCALE)
    assert 0 < seen.numel <= ROWS * length
