"""Logits beyond the range of an exponential: the softmax is correct for any size, forward and backward.

The inputs make all scores exact in any order of their terms, so no comparison depends on the rounding of a score.
"""

import pytest
import torch
from cases import Case, autograd, upstream

from rsattn.call import Call, empty_gradients
from rsattn.reference import probabilities

HALF, SINGLE = torch.float16, torch.float32
WHOLE_ROW, STREAM = 65, 300


def numbers(*size, seed):
    """Integers from -3 to 3."""
    return torch.randint(-3, 4, size, generator=torch.Generator().manual_seed(seed)).double()


def call_of(query, key, dtype, device, **choices):
    """A tensor with these values in the first channels and zeros in the others."""
    case = Case(batch=1, heads=2, queries=query.shape[2], keys=key.shape[2], width=16, layout="plain", dtype=dtype)
    call = case.call(device)
    for to, given in ((call.query, query), (call.key, key)):
        to.zero_()[..., : given.shape[-1]] = given.to(to)
    return Call((call.query, call.key, call.value), **choices)


def assert_right(kernels, call, names):
    """Check that each result is within a few roundings of the terms of its sum."""
    result = kernels.forward(call)
    grad, grad_best = upstream(call)
    grads = empty_gradients(call)
    if kernels.backward_by(call) == kernels.name:
        grads = kernels.backward(call, result, grad, grad_best)
    else:
        names = ("output",)
    oracle, truths = autograd(call, torch.float64, result.best_head, grad, grad_best)
    query, key, value = (tensor.double() for tensor in call.inputs)
    total = grad.double()
    total[torch.arange(len(total)), result.best_head] += grad_best.double()
    probs = probabilities(query, key, call.attn_mask, call.scale).detach()
    slopes = probs * (total.abs() @ value.abs().mT + (total.abs() * oracle.output.abs()).sum(-1, keepdim=True))
    terms = {
        "output": probs @ value.abs(),
        "query": abs(call.scale) * slopes @ key.abs(),
        "key": abs(call.scale) * slopes.mT @ query.abs(),
        "value": probs.mT @ total.abs(),
    }
    got = dict(output=result.output, query=grads.query, key=grads.key, value=grads.value)
    want = dict(zip(("output", "query", "key", "value"), (oracle.output, *truths)))
    for name in names:
        # P, dS, dO with the residual's gradient and the result are rounded to the dtype; the rest is float32.
        bound = (4 * torch.finfo(got[name].dtype).eps + 32 * torch.finfo(SINGLE).eps) * terms[name]
        assert ((got[name].double() - want[name]).abs() <= bound).all(), name
    torch.testing.assert_close(result.norms.double(), oracle.norms.double(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("length", [WHOLE_ROW, STREAM])
@pytest.mark.parametrize("mask", ["none", "float"])
@pytest.mark.parametrize("size", [1e6, 5.3e7, 1e10, 1e30])
def test_huge_logits_choose_the_largest(kernels, length, mask, size, device):
    """Logits from -9 to 9 times `size`: several keys share a row's largest, and the others have probability 0."""
    given = None if mask == "none" else torch.zeros(1, 2, length, length, device=device)
    query, key = numbers(1, 2, length, 1, seed=0), numbers(1, 2, length, 1, seed=1)
    for dtype in kernels.limits.dtypes:
        # The gradients of query and key are of the order of `size`; their exact values are lost in rounding.
        assert_right(kernels, call_of(query, key, dtype, device, attn_mask=given, scale=size), ("output", "value"))


@pytest.mark.parametrize("length", [WHOLE_ROW, STREAM])
@pytest.mark.parametrize("size", [1e6, 4e6])
def test_differences_of_large_logits_are_not_rounded_away(kernels, length, size, device):
    """Logits of `size` plus -9 to 9: a log-sum-exp in one float32 number would be off by half an ulp of it."""
    root = 2.0 ** round(torch.tensor(size).log2().item() / 2)
    query, key = numbers(1, 2, length, 2, seed=0), numbers(1, 2, length, 2, seed=1)
    query[..., 1] = key[..., 1] = root
    for dtype in kernels.limits.dtypes:
        assert_right(kernels, call_of(query, key, dtype, device, scale=0.7), ("output", "query", "key", "value"))


@pytest.mark.parametrize("tiny", [False, True])
def test_a_scale_of_zero_and_one_that_is_tiny(kernels, tiny, device):
    """Scores of 1e37, if the dtype has them. Scale 0 makes them equal; the tiny one leaves a few units."""
    query, key = numbers(1, 2, 20, 1, seed=0), numbers(1, 2, 20, 1, seed=1)
    for dtype in kernels.limits.dtypes:
        most = 2.0 ** (14 if dtype == HALF else 61)
        scale = most**-2 if tiny else 0.0
        assert_right(kernels, call_of(query * most, key * most, dtype, device, scale=scale), ("output", "value"))
