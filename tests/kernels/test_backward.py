"""The backward kernels against autograd through the reference in float64."""

from dataclasses import replace

import pytest
import torch
from cases import Case, assert_within_budget, autograd, for_cuda, for_every_backend, upstream

HALF, SINGLE, BF16 = torch.float16, torch.float32, torch.bfloat16

CASES = [
    Case(queries=1, keys=9, width=16),
    Case(queries=2, width=40, mask="bool"),
    Case(queries=63, width=64, dtype=HALF, mask="float"),
    Case(queries=65, width=80, mask="padding", layout="transposed"),
    Case(queries=111, width=96, dtype=HALF),
    Case(queries=197, width=64, dropout=0.1),
    Case(queries=197, width=64, dtype=HALF, mask="bool", dropout=0.1),
    Case(queries=197, width=128, layout="plain"),
    Case(queries=257, width=16, heads=1, mask="padding"),
    Case(queries=300, width=192, heads=2, batch=1, layout="transposed"),
    Case(queries=300, width=40, heads=1, dtype=HALF, mask="float"),
    Case(queries=577, width=64, heads=1, batch=1),
    Case(queries=577, width=80, heads=1, batch=1, dtype=HALF, mask="bool", dropout=0.2),
    Case(queries=65, width=768, heads=2, batch=1),
    Case(queries=65, width=768, heads=2, batch=1, dtype=HALF, dropout=0.3),
    Case(queries=300, width=768, heads=1, batch=1),
    Case(queries=65, keys=2, width=16, mask="bool"),
    Case(queries=1, keys=300, width=64),
    Case(queries=300, keys=63, width=40, dropout=0.5),
    Case(queries=20, keys=300, width=32, heads=5, mask="bool", dropout=0.3),
    # bfloat16: every length and head_dim. A single query has nine keys, because with one key dQ is zero.
    *(
        Case(batch=1, heads=1, queries=n, keys=9 if n == 1 else None, width=e, dtype=BF16)
        for n in (1, 65, 197, 300)
        for e in (1, 17, 64, 80)
    ),
    Case(batch=1, queries=65, width=64, dtype=BF16, mask="bool", dropout=0.1),
    Case(batch=1, queries=300, width=17, heads=2, dtype=BF16, mask="float", dropout=0.1),
    # Chunks of head_dim, in the square and in the streaming backward pass.
    Case(batch=1, queries=65, width=768, heads=1, dtype=BF16),
    Case(batch=1, queries=17, keys=130, width=257, heads=1, dtype=BF16),
]
LARGE = [
    Case(batch=4, heads=12, queries=n, width=e, dtype=BF16, mask=mask, dropout=p)
    for n in (65, 197, 257, 577, 1025)
    for e in (64, 80, 128, 768)
    for mask, p in (("none", 0.0), ("bool", 0.1), ("float", 0.0))
]
# Too slow for the interpreter. With one head, it is divided into parts; with 60, none is.
COMPILED = [
    Case(batch=b, heads=h, queries=n, keys=m, width=e, dtype=dtype, mask=mask, dropout=p, layout=layout)
    for dtype in (BF16, HALF, SINGLE)
    for b, h, n, m, e, mask, p, layout in (
        (1, 2, 7, 300, 17, "float", 0.3, "transposed"),
        (2, 3, 63, 65, 40, "padding", 0.0, "plain"),
        (5, 12, 197, None, 64, "none", 0.0, "packed"),
        (1, 1, 197, None, 64, "bool", 0.1, "packed"),
        (1, 3, 257, None, 80, "float", 0.2, "transposed"),
        (1, 2, 577, 111, 96, "bool", 0.0, "plain"),
        (1, 1, 1370, None, 64, "padding", 0.0, "packed"),
        (1, 2, 65, None, 768, "none", 0.1, "packed"),
    )
]


# Limits of the CUDA backward pass with 163 KiB of shared memory for a block; Triton runs longer calls.
ON_CHIP = {64: 256, 128: 128}


@pytest.mark.parametrize(("kernels", "case"), for_every_backend(CASES, LARGE, COMPILED, ON_CHIP), indirect=["kernels"])
def test_matches_autograd_of_the_oracle(kernels, case, device, poisoned_memory):
    check(kernels, case, True, device)


# One call for each Triton kernel, without the residual's gradient.
@pytest.mark.parametrize("case", [CASES[i] for i in (5, 9, 11)], ids=lambda case: case.id)
def test_without_the_residual(kernels, case, device, poisoned_memory):
    if kernels.name == "cuda":
        case = for_cuda(replace(case, queries=case.queries % 200, width=64))
    check(kernels, case, False, device)


def test_a_random_size(kernels, device, dtype):
    """At least eight keys: with one or two, dQ may be exactly zero, and any rounding error would exceed the budget."""
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    bounds = ((1, 3), (1, 5), (1, 300), (8, 300), (1, 200))
    sizes = [int(torch.randint(low, high, (1,), generator=generator)) for low, high in bounds]
    if kernels.name == "cuda":
        sizes[2:] = (1 + sizes[2] % 256, max(8, 1 + sizes[3] % 256), 8 * (sizes[4] % 8 + 1))
    case = Case(*sizes, dtype, mask="padding" if sizes[3] > 16 else "none", dropout=0.1)
    print(case)
    check(kernels, case, True, device)


def test_one_key(kernels, device, dtype):
    """P is 1 for any query, so dQ is zero up to rounding: O.dO and V.dO are summed in different orders."""
    call = Case(queries=3, keys=1, width=16, dtype=dtype).call(device)
    grad, _ = upstream(call)
    grads = kernels.backward(call, kernels.forward(call), grad, None)
    # One float32 rounding for each of the E terms of either product.
    terms = (grad.abs() * call.value.abs()).sum(-1, keepdim=True)
    bound = 2 * 16 * torch.finfo(torch.float32).eps * call.scale * terms
    assert (grads.query.abs() <= bound * call.key.abs()).all()
    assert (grads.key.abs() <= (bound * call.query.abs()).sum(2, keepdim=True)).all()
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(grads.value, grad.sum(2, keepdim=True), rtol=2 * rounding, atol=2 * rounding)


def check(kernels, case, residual, device):
    call = case.call(device)
    result = kernels.forward(call)
    grad, grad_best = upstream(call)
    if not residual:
        grad_best = None
    got, again = (kernels.backward(call, result, grad, grad_best) for _ in range(2))
    (_, oracle), (_, eager) = (
        autograd(call, dtype, result.best_head, grad, grad_best) for dtype in (torch.float64, case.dtype)
    )
    for name, *triple in zip(("dQ", "dK", "dV"), got, eager, oracle):
        assert_within_budget(name, *triple)
    assert all(torch.equal(a, b) for a, b in zip(got.of_inputs(), again.of_inputs())), "two runs differ"


@pytest.mark.parametrize("length", [65, 300], ids=["whole_row", "stream"])
def test_a_broadcast_gradient_is_read_in_place(kernels, length, device, dtype):
    """`output.sum().backward()` passes a gradient of stride zero."""
    call = Case(queries=min(length, 200) if kernels.name == "cuda" else length, width=32, dtype=dtype).call(device)
    result = kernels.forward(call)
    one = torch.ones((), device=device, dtype=dtype)
    broadcast, dense = (
        kernels.backward(call, result, grad, None).of_inputs()
        for grad in (one.expand_as(result.output), torch.ones_like(result.output))
    )
    assert all(torch.equal(a, b) for a, b in zip(broadcast, dense))
