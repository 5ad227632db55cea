"""The host time of a call with almost no arithmetic: checks, choice of kernel, autograd, memory and launch.

It uses one thread. A call takes microseconds, so the mean time of many consecutive calls is kept. On a GPU the calls
are launched without waiting for them and without a graph, in which launches cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import rsattn
from rsattn import reference

from ..baselines import RSATTN, SDPA
from ..cases import Case, Setup
from ..clock import Variant
from ..inputs import checker
from ..oracle import Oracle
from ..shapes import Shape

SHAPE = Shape(1, 2, 5, 8)
SUM = "projected + other"  # what a residual connection costs in PyTorch
RECORDED, JOIN = "gradients recorded", "add_best_head"
CALLS, CALLS_ON_A_GPU = 200, 50  # consecutive; a GPU's queue holds about 1000 launches
# (detail, train) of a case -> the target for rsattn's time / PyTorch's on a CPU.
AT_MOST = {("", False): 4.0, (RECORDED, False): 5.0, ("", True): 2.0, (JOIN, False): 8.0}


def baseline(case: Case) -> str:
    """The name of PyTorch's call that rsattn's is compared with."""
    return SUM if case.detail == JOIN else SDPA


def words(case: Case) -> str:
    """The name of rsattn's call in tables."""
    if case.detail == JOIN:
        return JOIN
    attention = "forward + backward" if case.train else "forward"
    return f"{attention}, {case.detail}" if case.detail else attention


def at_most(case: Case) -> float:
    """The target for rsattn's time / the baseline's on a CPU."""
    return AT_MOST[case.detail, case.train]


def cases(device: torch.device) -> list[Case]:
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    return [Case("overhead", SHAPE, dtype, train, detail=detail) for detail, train in AT_MOST]


def names(case: Case, device: torch.device) -> list[str]:
    return [RSATTN, baseline(case)]


def setup(case: Case, device: torch.device) -> Setup:
    calls, check = (_joins if case.detail == JOIN else _attentions)(case, device)
    in_a_row = CALLS_ON_A_GPU if device.type == "cuda" else CALLS

    def one_thread() -> None:
        torch.set_num_threads(1)

    return Setup({name: Variant(call, one_thread, in_a_row) for name, call in calls.items()}, check=check)


Calls = dict[str, Callable[[int], Any]]


def _attentions(case: Case, device: torch.device) -> tuple[Calls, Callable[[str, Any], None]]:
    shape = case.shape
    size = (shape.batch, shape.heads, shape.length, shape.head_dim)
    query, key, value, upstream = (torch.randn(size, device=device, dtype=case.torch_dtype) for _ in range(4))
    oracle = Oracle(query, key, value, upstream if case.train else None)
    inputs = query, key, value
    if case.train or case.detail == RECORDED:
        for tensor in inputs:
            tensor.requires_grad_()
    # Plain calls: a wrapper function would be timed too.
    forward: Calls = {
        RSATTN: lambda _: rsattn.residual_attention(query, key, value),
        SDPA: lambda _: scaled_dot_product_attention(query, key, value),
    }
    both: Calls = {
        RSATTN: lambda _: torch.autograd.grad(rsattn.residual_attention(query, key, value)[0], inputs, upstream),
        SDPA: lambda _: torch.autograd.grad(scaled_dot_product_attention(query, key, value), inputs, upstream),
    }
    against_oracle = checker(oracle, case.train)

    def check(name: str, result: Any) -> None:
        if not case.train:
            output, norms, *_ = result if name == RSATTN else (result, None)
            if output.requires_grad != (case.detail == RECORDED):
                raise AssertionError(f"{name}: gradients are{'' if output.requires_grad else ' not'} recorded")
            result = output.detach(), norms
        against_oracle(name, result)

    return both if case.train else forward, check


def _joins(case: Case, device: torch.device) -> tuple[Calls, Callable[[str, Any], None]]:
    shape = case.shape
    like: dict[str, Any] = {"device": device, "dtype": case.torch_dtype}
    output = torch.randn(shape.batch, shape.length, shape.heads, shape.head_dim, **like).transpose(1, 2)
    norms = torch.rand(shape.batch, shape.heads, device=device)
    attention = rsattn.ResidualAttention(output, norms, norms.argmax(1))
    projected, other = (torch.randn(shape.batch, shape.length, shape.dim, **like) for _ in range(2))
    want = {
        RSATTN: reference.add_best_head(projected, output, attention.best_head, "tile"),
        SUM: torch.add(projected, other),
    }

    def check(name: str, result: Tensor) -> None:
        torch.testing.assert_close(result, want[name], rtol=0, atol=0)

    return {RSATTN: lambda _: rsattn.add_best_head(projected, attention), SUM: lambda _: projected + other}, check
