"""A mask that is learned: its gradient through autograd on every way, in the caller's own shape and dtype.

tests/kernels/test_mask_gradient.py compares the kernels with float64.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from oracle import normal
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import rsattn
from rsattn import residual_attention, residual_attention_qkvpacked
from rsattn.backends.dispatch import BACKENDS
from rsattn.call import Call, Gradients

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


def test_is_computed_only_where_it_is_wanted(
    backend: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    kernels = BACKENDS[backend]
    backward = kernels.backward

    def note(call: Call, *others: Any) -> Gradients:
        asked.append(call.mask_gradient)
        return backward(call, *others)

    monkeypatch.setattr(kernels, "backward", note)
    leaves, mask = inputs(device), bias((HEADS, QUERIES, KEYS), device)
    for values in (mask, mask.detach()):
        residual_attention(*leaves, values, backend=backend).output.sum().backward()
    assert asked == [True, False]


def test_of_an_expanded_mask(backend: str, device: torch.device) -> None:
    """Its memory is read with strides of 0; autograd adds the gradient of the expanded shape."""
    leaves, mask = inputs(device), bias((1, HEADS, QUERIES, KEYS), device)
    expanded = mask.expand(BATCH, -1, -1, -1)
    grads = [
        torch.autograd.grad(residual_attention(*leaves, values, backend=backend).output.square().sum(), mask)[0]
        for values in (expanded, mask)
    ]
    torch.testing.assert_close(*grads, **TOLERANCE)


def test_under_autocast(backend: str, device: torch.device) -> None:
    """The inputs are rounded, the mask is not."""
    leaves, mask, dtype = inputs(device), bias((HEADS, QUERIES, KEYS), device), torch.float16
    with torch.autocast(device.type, dtype):
        got = gradients(leaves, mask, backend)[-1]
    rounded = [tensor.detach().to(dtype).requires_grad_() for tensor in leaves]
    output = residual_attention(*rounded, mask, backend=backend).output
    upstream = normal(*output.shape, seed=5, dtype=torch.float32).to(output)
    assert torch.equal(got, torch.autograd.grad(output, mask, upstream)[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(backend: str, device: torch.device, reentrant: bool) -> None:
    leaves, mask = inputs(device), bias((HEADS, QUERIES, KEYS), device)

    def loss(*tensors: Tensor) -> Tensor:
        return residual_attention(*tensors, 0.3, backend=backend).output.square().sum()

    grads = []
    for function in (loss, partial(checkpoint, loss, use_reentrant=reentrant)):
        torch.manual_seed(4)
        mask.grad = None
        function(*leaves, mask).backward()
        assert mask.grad is not None
        grads.append(mask.grad)
    assert torch.equal(*grads)


def test_a_batch_of_gradients(backend: str, device: torch.device) -> None:
    leaves, mask = inputs(device), bias((HEADS, QUERIES, KEYS), device)
    output = residual_attention(*leaves, mask, backend=backend).output
    upstream = normal(3, *output.shape, seed=5, dtype=torch.float32).to(device)
    (together,) = torch.autograd.grad(output, mask, upstream, retain_graph=True, is_grads_batched=True)
    alone = [torch.autograd.grad(output, mask, each, retain_graph=True)[0] for each in upstream]
    assert torch.equal(together, torch.stack(alone))


def test_a_second_derivative_is_refused(backend: str, device: torch.device) -> None:
    leaves, mask = inputs(device), bias((HEADS, QUERIES, KEYS), device)
    loss = residual_attention(*leaves, mask, backend=backend).output.square().sum()
    (first,) = torch.autograd.grad(loss, mask, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(first.sum(), mask)


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


@pytest.mark.parametrize("kind", ["none", "bool"])
def test_the_operator_refuses_the_gradient_of_a_mask_that_has_none(
    backend: str, device: torch.device, kind: str
) -> None:
    leaves = [tensor.detach() for tensor in inputs(device)]
    mask = None if kind == "none" else torch.ones(QUERIES, KEYS, dtype=torch.bool, device=device)
    arguments = (*leaves, mask, None, 0.0, 0.3, "induced", "sample", False, backend)
    output, _, best_head, statistics, *_ = torch.ops.rsattn.attention(*arguments, False)
    kept = output, best_head, statistics, output, None
    with pytest.raises(ValueError, match="mask_gradient=True needs a float attn_mask"):
        torch.ops.rsattn.attention_backward(*arguments, *kept, True)
