"""A mask that is learned: its gradient through autograd on every way, in the caller's own shape and dtype.

tests/kernels/test_mask_gradient.py compares the kernels with float64.
"""

from __future__ import annotations

import pytest
import torch
from oracle import normal
from torch import Tensor

import rsattn
from rsattn import residual_attention, residual_attention_qkvpacked

BATCH, HEADS, QUERIES, KEYS, WIDTH = 4, 3, 7, 6, 8
# float32 sums of the products of up to BATCH * HEADS * QUERIES terms, in two orders.
TOLERANCE = dict(rtol=1e-4, atol=1e-5)
SHAPES = [
    (QUERIES, KEYS),
    (KEYS,),
    (HEADS, 1, KEYS),
    (HEADS, QUERIES, KEYS),
    (1, HEADS, QUERIES, KEYS),
    (BATCH, 1, 1, KEYS),
    (BATCH, HEADS, QUERIES, KEYS),
    (2, HEADS, QUERIES, KEYS),
    (2, 1, QUERIES, KEYS),
    (HEADS, QUERIES, 1),
    (1,),
    (),
]


@pytest.fixture(params=["triton", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    reasons = rsattn.backends()[request.param].reasons
    if reasons:
        pytest.skip("; ".join(reasons))
    return request.param


@pytest.fixture
def device(backend: str) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and backend != "cpu" else "cpu")


def inputs(device: torch.device, batch: int = BATCH) -> list[Tensor]:
    lengths = (QUERIES, KEYS, KEYS)
    return [
        normal(batch, HEADS, n, WIDTH, seed=seed, dtype=torch.float32).to(device).requires_grad_()
        for seed, n in enumerate(lengths)
    ]


def bias(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(*shape, seed=9, dtype=dtype).to(device).requires_grad_()


def gradients(leaves: list[Tensor], mask: Tensor, backend: str, dropout_p: float = 0.0) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    output = residual_attention(*leaves, mask, dropout_p, backend=backend).output
    upstream = normal(*output.shape, seed=5, dtype=torch.float32).to(output.device)
    return torch.autograd.grad(output, [*leaves, mask], upstream)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_has_the_gradient_of_the_reference(
    backend: str, device: torch.device, shape: tuple[int, ...], dropout_p: float
) -> None:
    leaves, mask = inputs(device), bias(shape, device)
    for got, want in zip(
        gradients(leaves, mask, backend, dropout_p), gradients(leaves, mask, "reference", dropout_p), strict=True
    ):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("shape", [(HEADS, QUERIES, 1), (1,)], ids=str)
def test_a_number_added_to_all_scores_of_a_query_changes_nothing(
    backend: str, device: torch.device, shape: tuple[int, ...]
) -> None:
    assert not gradients(inputs(device), bias(shape, device), backend)[-1].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_has_the_dtype_of_the_mask(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    leaves, mask = inputs(device), bias((HEADS, QUERIES, KEYS), device, dtype)
    got, want = (gradients(leaves, mask, name)[-1] for name in (backend, "reference"))
    assert got.dtype == dtype
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, want, rtol=max(rounding, 1e-4), atol=max(rounding, 1e-5))


def test_of_the_mask_alone(backend: str, device: torch.device) -> None:
    """Only the bias is trained: the projection before is frozen."""
    leaves, mask = [tensor.detach() for tensor in inputs(device)], bias((HEADS, QUERIES, KEYS), device)
    got, want = (
        torch.autograd.grad(residual_attention(*leaves, mask, backend=name).output.square().sum(), mask)[0]
        for name in (backend, "reference")
    )
    torch.testing.assert_close(got, want, **TOLERANCE)


def test_is_not_computed_for_a_mask_that_is_fixed(backend: str, device: torch.device) -> None:
    leaves, mask = inputs(device), bias((HEADS, QUERIES, KEYS), device).detach()
    output = residual_attention(*leaves, mask, backend=backend).output
    assert output.grad_fn is not None
    assert not output.grad_fn.next_functions[-1][0]


def test_of_packed_inputs_with_the_residual(backend: str, device: torch.device) -> None:
    """Through a module's way: the best head's gradient comes through the handle."""
    module = rsattn.ResidualSelfAttention(HEADS * WIDTH, HEADS, backend=backend).to(device)
    twin = rsattn.ResidualSelfAttention(HEADS * WIDTH, HEADS, backend="reference").to(device)
    twin.load_state_dict(module.state_dict())
    x, mask = normal(2, QUERIES, HEADS * WIDTH, dtype=torch.float32).to(device), bias((HEADS, QUERIES, QUERIES), device)
    got, want = (torch.autograd.grad(each(x, mask).square().sum(), mask)[0] for each in (module, twin))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_compiled(backend: str, device: torch.device, packed: bool) -> None:
    leaves, mask = inputs(device), bias((HEADS, QUERIES, QUERIES if packed else KEYS), device)

    def loss(mask: Tensor, *leaves: Tensor) -> Tensor:
        entry = residual_attention_qkvpacked if packed else residual_attention
        return entry(*leaves, mask, backend=backend).output.square().sum()

    if packed:
        leaves = [normal(BATCH, QUERIES, 3, HEADS, WIDTH, dtype=torch.float32).to(device).requires_grad_()]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(mask, *leaves), [mask, *leaves]) for f in (compiled, loss))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.0)


def test_an_empty_batch_gives_zeros(backend: str, device: torch.device) -> None:
    leaves, mask = inputs(device, batch=0), bias((HEADS, QUERIES, KEYS), device)
    got = torch.autograd.grad(residual_attention(*leaves, mask, backend=backend).output.sum(), mask)[0]
    assert torch.equal(got, torch.zeros_like(mask))


@pytest.mark.parametrize("length", [0, 3, 8])
def test_a_batch_axis_that_does_not_repeat_evenly_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="batch axis may also have a length that divides the batch"):
        residual_attention(*inputs(torch.device("cpu")), torch.zeros(length, 1, QUERIES, KEYS))


def test_a_batch_axis_that_repeats(backend: str, device: torch.device) -> None:
    leaves, mask = inputs(device), bias((2, 1, QUERIES, KEYS), device)
    repeated = mask.repeat(2, 1, 1, 1)
    for name in (backend, "reference"):
        got, want = (residual_attention(*leaves, values, backend=name) for values in (mask, repeated))
        assert torch.equal(got.output, want.output)
        assert torch.equal(got.norms, want.norms)
        assert torch.equal(
            *(rsattn.attention_received(*leaves[:2], values, backend=name) for values in (mask, repeated))
        )
