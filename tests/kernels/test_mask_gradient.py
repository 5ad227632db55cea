"""The gradient of a float mask from every kernel, against autograd through the reference in float64."""

import math
from dataclasses import replace

import pytest
import torch
from cases import Case, assert_within_budget, for_cuda, for_every_backend, in_dtype, upstream
from torch import Tensor
from watching import LargestTensor

from rsattn import reference
from rsattn.call import Call

HALF, SINGLE, BF16 = torch.float16, torch.float32, torch.bfloat16

# The full axes of a mask of (batch, heads, queries, keys); "r" is a batch axis of half the batch, which repeats.
SHAPES = ["bhnm", "hnm", "nm", "hm", "bm", "m", "bnm", "rhnm", "rnm", "rm"]


def mask_of(call: Call, shape: str, seed: int = 7) -> Tensor:
    """A float32 mask with hidden keys and a row that sees none, where the shape has such rows."""
    batch, heads, queries, _ = call.query.shape
    keys = call.key.shape[2]
    first = batch if "b" in shape else batch // 2 if "r" in shape else 1
    size = (first, heads if "h" in shape else 1, queries if "n" in shape else 1, keys)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randn(size, generator=generator)
    mask[torch.rand(size, generator=generator) < 0.1] = -math.inf
    mask[..., 0] = 0.5
    if "n" in shape:
        mask[:, 0, queries // 2] = -math.inf
    return mask.to(call.query.device)


def with_mask(call: Call, mask: Tensor) -> Call:
    call.attn_mask, call.mask_gradient = mask, True
    return call


def expected(call: Call, dtype: torch.dtype, best_head: Tensor, grad: Tensor, grad_best: Tensor) -> Tensor:
    same = in_dtype(call, dtype)
    same.attn_mask = same.attn_mask.detach().requires_grad_()
    total = grad.to(dtype, copy=True)
    total[torch.arange(len(total)), best_head] += grad_best.to(dtype)
    return torch.autograd.grad(reference.attention(same).output, same.attn_mask, total)[0]


def check(kernels, case: Case, shape: str, device) -> None:
    call = case.call(device)
    with_mask(call, mask_of(call, shape))
    result = kernels.forward(call)
    grad, grad_best = upstream(call)
    got, again = (kernels.backward(call, result, grad, grad_best) for _ in range(2))
    assert got.mask.dtype == torch.float32
    assert got.mask.shape == call.attn_mask.shape
    assert torch.equal(got.mask, again.mask)
    oracle, eager = (
        expected(call, dtype, result.best_head, grad, grad_best).double() for dtype in (torch.float64, case.dtype)
    )
    assert got.mask.isfinite().all()
    # As in `assert_within_budget`. The result is float32, but O, from which delta comes, has the inputs' dtype.
    rounding = (torch.finfo(case.dtype).eps + 8 * torch.finfo(torch.float32).eps) * oracle.abs().max()
    for measure in (torch.max, torch.mean):
        found, allowed = measure((got.mask - oracle).abs()), 2.0 * measure((eager - oracle).abs()) + rounding
        assert found <= allowed, f"{measure.__name__} error {found:.2e}, eager PyTorch allows {allowed:.2e}"


CASES = [
    Case(queries=1, keys=9, width=16),
    Case(queries=2, width=40),
    Case(queries=63, width=64, dtype=HALF),
    Case(queries=65, width=80, layout="transposed"),
    Case(queries=197, width=64, heads=1, dropout=0.1),
    Case(queries=130, width=64, heads=2, dtype=BF16, layout="plain"),
    Case(queries=70, keys=257, width=16, heads=1),
    Case(queries=257, keys=70, width=40, heads=1, dtype=HALF, dropout=0.2),
    Case(queries=65, width=256, heads=1),
    Case(queries=20, keys=130, width=32, dropout=0.3),
]
LARGE = [
    Case(batch=4, heads=12, queries=n, width=e, dtype=BF16, dropout=p)
    for n in (65, 197, 577)
    for e in (64, 128, 768)
    for p in (0.0, 0.1)
]
COMPILED = [
    Case(batch=b, heads=h, queries=n, keys=m, width=e, dtype=dtype, dropout=p, layout=layout)
    for dtype in (BF16, HALF, SINGLE)
    for b, h, n, m, e, p, layout in (
        (4, 2, 7, 300, 17, 0.3, "transposed"),
        (2, 3, 63, 65, 40, 0.0, "plain"),
        (6, 12, 197, None, 64, 0.0, "packed"),
        (2, 2, 577, 111, 96, 0.0, "plain"),
        (2, 2, 65, None, 768, 0.1, "packed"),
    )
]
ON_CHIP = {64: 256, 128: 128}


@pytest.mark.parametrize(("kernels", "case"), for_every_backend(CASES, LARGE, COMPILED, ON_CHIP), indirect=["kernels"])
def test_matches_autograd_of_the_oracle(kernels, case, device, poisoned_memory):
    check(kernels, case, "hnm", device)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_a_mask(kernels, shape, device, dtype, poisoned_memory):
    check(kernels, Case(batch=4, heads=2, queries=70, keys=130, width=16, dtype=dtype), shape, device)


def test_the_other_gradients_do_not_change(kernels, device, dtype):
    call = Case(queries=70, width=32, dropout=0.1, dtype=dtype).call(device)
    with_mask(call, mask_of(call, "hnm"))
    result = kernels.forward(call)
    got = kernels.backward(call, result, *upstream(call))
    call.mask_gradient = False
    without = kernels.backward(call, result, *upstream(call))
    assert without.mask is None
    assert all(torch.equal(a, b) for a, b in zip(without.of_inputs(), got.of_inputs()))


@pytest.mark.parametrize("mask_dtype", [torch.float64, HALF, BF16], ids=str)
def test_a_mask_of_another_dtype(kernels, mask_dtype, device, dtype):
    call = Case(queries=20, width=16, dtype=dtype).call(device)
    mask = mask_of(call, "hnm").to(mask_dtype)
    grads = []
    for values in (mask, mask.float()):
        with_mask(call, values)
        grads.append(kernels.backward(call, kernels.forward(call), *upstream(call)).mask)
    assert torch.equal(*grads)


def test_a_mask_of_any_strides(kernels, device, dtype):
    call = Case(queries=20, width=16, dtype=dtype).call(device)
    mask = mask_of(call, "hnm")
    grads = []
    for values in (mask, mask.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)):
        with_mask(call, values)
        grads.append(kernels.backward(call, kernels.forward(call), *upstream(call)).mask)
    assert torch.equal(*grads)


@pytest.mark.parametrize("length", [65, 150], ids=["one_block", "blocks"])
def test_no_square_tensor_but_the_mask_is_allocated(kernels, length, device, dtype):
    """In the memory of the mask's gradient there is no axis along which it is summed."""
    call = for_this(kernels, Case(batch=4, heads=2, queries=length, width=8, dtype=dtype)).call(device)
    with_mask(call, mask_of(call, "hnm"))
    result = kernels.forward(call)
    with LargestTensor() as seen:
        kernels.backward(call, result, *upstream(call))
    mask = call.attn_mask.numel() * 4
    assert mask <= seen.nbytes <= max(mask, 4 * call.query.numel() * 4)


def for_this(kernels, case: Case) -> Case:
    return for_cuda(replace(case)) if kernels.name == "cuda" else case


def test_empty_batch(kernels, device, dtype):
    call = Case(batch=0, queries=9, width=16, dtype=dtype).call(device)
    with_mask(call, torch.zeros(1, 3, 9, 9, device=device))
    grad = torch.zeros_like(call.query)
    mask = kernels.backward(call, kernels.forward(call), grad, None).mask
    assert mask is None or not mask.any()  # autograd gets zeros


@pytest.mark.parametrize("kind", ["float", "bool"])
@pytest.mark.parametrize("keys", [65, 257], ids=["whole_row", "stream"])
def test_a_mask_whose_batch_axis_repeats(kernels, keys, kind, device, dtype):
    """Sample b uses entry b % repeat, as windows of images do: the bits are those of the mask repeated in memory."""
    call = Case(batch=4, heads=1, queries=20, keys=keys, width=16, dtype=dtype).call(device)
    mask = torch.randn(2, 1, 20, keys, generator=torch.Generator().manual_seed(0)).to(device)
    mask = mask > 0 if kind == "bool" else mask
    results = []
    for values in (mask, mask.repeat(2, 1, 1, 1)):
        call.attn_mask = values
        forward = kernels.forward(call)
        chosen = Call.on(call, *call.inputs)
        if keys <= 256 or kernels.name != "cuda":  # longer ones are Triton's
            results.append([*forward[:4], *kernels.backward(chosen, forward, *upstream(call)).of_inputs()])
        else:
            results.append([*forward[:4]])
        results[-1].append(kernels.received(call))
    assert all(torch.equal(a, b) for a, b in zip(*results))
    # Those bits are alike, too, if every sample uses entry 0.
    call.attn_mask = mask
    oracle = reference.attention(in_dtype(call, torch.float64)).output
    assert_within_budget("output", results[0][0], reference.attention(call).output, oracle)
