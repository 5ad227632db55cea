"""The backward kernels against autograd through the reference in float64."""

from dataclasses import replace

import pytest
import torch
from cases import Call, assert_within_budget, for_cuda, for_every_backend

HALF, SINGLE, BF16 = torch.float16, torch.float32, torch.bfloat16

CALLS = [
    Call(queries=1, keys=9, width=16),
    Call(queries=2, width=40, mask="bool"),
    Call(queries=63, width=64, dtype=HALF, mask="float"),
    Call(queries=65, width=80, mask="padding", layout="transposed"),
    Call(queries=111, width=96, dtype=HALF),
    Call(queries=197, width=64, dropout=0.1),
    Call(queries=197, width=64, dtype=HALF, mask="bool", dropout=0.1),
    Call(queries=197, width=128, layout="plain"),
    Call(queries=257, width=16, mask="padding"),
    Call(queries=300, width=192, heads=2, batch=1, layout="transposed"),
    Call(queries=300, width=40, dtype=HALF, mask="float"),
    Call(queries=577, width=64, heads=2, batch=1),
    Call(queries=577, width=80, heads=2, batch=1, dtype=HALF, mask="bool", dropout=0.2),
    Call(queries=65, width=768, heads=2, batch=1),
    Call(queries=65, width=768, heads=2, batch=1, dtype=HALF, dropout=0.3),
    Call(queries=300, width=768, heads=1, batch=1),
    Call(queries=65, keys=2, width=16, mask="bool"),
    Call(queries=1, keys=300, width=64),
    Call(queries=300, keys=63, width=40, dropout=0.5),
    Call(queries=20, keys=300, width=32, heads=5, mask="bool", dropout=0.3),
]
LARGE = [
    Call(batch=4, heads=12, queries=n, width=e, dtype=BF16, mask=mask, dropout=p)
    for n in (65, 197, 257, 577, 1025)
    for e in (64, 80, 128, 768)
    for mask, p in (("none", 0.0), ("bool", 0.1), ("float", 0.0))
]
# What the interpreter cannot do, bfloat16, and what it is too slow for. One head is cut into parts; 60 are not.
COMPILED = [
    Call(batch=b, heads=h, queries=n, keys=m, width=e, dtype=dtype, mask=mask, dropout=p, layout=layout)
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


def autograd(call, query, key, value, mask, grad, grad_best, best_head):
    """dQ, dK, dV of the reference in the dtype given; the residual's gradient joins at `best_head`."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (query, key, value)]
    output = call.reference(*inputs, mask).output
    total = grad.to(output.dtype).clone()
    if grad_best is not None:
        total[torch.arange(len(total)), best_head] += grad_best.to(output.dtype)
    return torch.autograd.grad(output, inputs, total)


# What the CUDA kernels take backward on a GPU with 163 KiB of shared memory for a block; Triton takes the rest.
ON_CHIP = {64: 256, 128: 128}


@pytest.mark.parametrize(("kernels", "call"), for_every_backend(CALLS, LARGE, COMPILED, ON_CHIP), indirect=["kernels"])
def test_matches_autograd_of_the_oracle(kernels, call, device, poisoned_memory):
    check(kernels, call, True, device)


# One call for each Triton kernel shows that the residual's gradient is not needed.
@pytest.mark.parametrize("call", [CALLS[i] for i in (5, 9, 11)], ids=lambda call: call.id)
def test_without_the_residual(kernels, call, device, poisoned_memory):
    if kernels.name == "cuda":
        call = for_cuda(replace(call, queries=call.queries % 200, width=64))
    check(kernels, call, False, device)


def test_a_size_nobody_listed(kernels, device, dtype):
    """At least eight keys: with one or two, dQ may be exactly zero, and then any rounding exceeds its budget."""
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    bounds = ((1, 3), (1, 5), (1, 300), (8, 300), (1, 200))
    sizes = [int(torch.randint(low, high, (1,), generator=generator)) for low, high in bounds]
    if kernels.name == "cuda":
        sizes[2:] = (1 + sizes[2] % 256, max(8, 1 + sizes[3] % 256), 8 * (sizes[4] % 8 + 1))
    call = Call(*sizes, dtype, mask="padding" if sizes[3] > 16 else "none", dropout=0.1)
    print(call)
    check(kernels, call, True, device)


def test_one_key(kernels, device, dtype):
    """P is 1 whatever the query, so dQ is zero, but for rounding O.dO and V.dO in different orders."""
    call = Call(queries=3, keys=1, width=16, dtype=dtype)
    query, key, value, _ = call.tensors(device)
    output, _, best_head, logsumexp = kernels.forward(
        query, key, value, None, None, 0.0, call.scale, "induced", "sample"
    )
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    grad_query, grad_key, grad_value = kernels.backward(
        grad, None, query, key, value, None, None, output, best_head, logsumexp, 0.0, call.scale
    )
    # One float32 rounding for each of the E terms of either product.
    terms = (grad.abs() * value.abs()).sum(-1, keepdim=True)
    bound = 2 * call.width * torch.finfo(torch.float32).eps * call.scale * terms
    assert (grad_query.abs() <= bound * key.abs()).all()
    assert (grad_key.abs() <= (bound * query.abs()).sum(2, keepdim=True)).all()
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(grad_value, grad.sum(2, keepdim=True), rtol=2 * rounding, atol=2 * rounding)


def check(kernels, call, residual, device):
    query, key, value, mask = call.tensors(device)
    batch, heads, queries, width = query.shape
    expanded = None if mask is None else mask.expand(batch, heads, queries, key.shape[2])
    seed = call.seed(device)
    output, _, best_head, logsumexp = kernels.forward(
        query, key, value, expanded, seed, call.dropout, call.scale, call.norm, call.scope
    )
    generator = torch.Generator().manual_seed(1)
    # As autograd hands them over: joined heads, and the residual's the first channels of something wider.
    grad = torch.randn(batch, queries, heads, width, generator=generator).to(query).transpose(1, 2)
    grad_best = torch.randn(batch, queries, 2 * width, generator=generator).to(query)[..., :width]
    if not residual:
        grad_best = None
    got = kernels.backward(
        grad,
        grad_best,
        query,
        key,
        value,
        expanded,
        seed,
        output,
        best_head,
        logsumexp,
        call.dropout,
        call.scale,
    )
    oracle = autograd(call, query.double(), key.double(), value.double(), mask, grad, grad_best, best_head)
    eager = autograd(call, query, key, value, mask, grad, grad_best, best_head)
    for name, *triple in zip(("dQ", "dK", "dV"), got, eager, oracle):
        assert_within_budget(name, *triple)
    again = kernels.backward(
        grad,
        grad_best,
        query,
        key,
        value,
        expanded,
        seed,
        output,
        best_head,
        logsumexp,
        call.dropout,
        call.scale,
    )
    assert all(torch.equal(a, b) for a, b in zip(got, again)), "two runs differ"


@pytest.mark.parametrize("length", [65, 300], ids=["whole_row", "stream"])
def test_a_broadcast_gradient_is_read_in_place(kernels, length, device, dtype):
    """`output.sum().backward()` hands over a gradient of stride zero."""
    call = Call(queries=min(length, 200) if kernels.name == "cuda" else length, width=32, dtype=dtype)
    query, key, value, _ = call.tensors(device)
    output, _, best_head, logsumexp = kernels.forward(
        query, key, value, None, None, 0.0, call.scale, "induced", "sample"
    )
    one = torch.ones((), device=device, dtype=dtype)
    rest = (query, key, value, None, None, output, best_head, logsumexp, 0.0, call.scale)
    broadcast = kernels.backward(one.expand_as(output), None, *rest)
    dense = kernels.backward(torch.ones_like(output), None, *rest)
    assert all(torch.equal(a, b) for a, b in zip(broadcast, dense))
