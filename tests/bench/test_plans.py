"""bench.plans: a plan changes one decision of the launcher, and a failing plan is named."""

from functools import partial

import pytest
import torch

import rsattn
from bench import plans
from bench.cases import Case
from bench.plans import Plan
from bench.shapes import Shape
from rsattn.kernels import launch

CPU = torch.device("cpu")


def by_triton(query, key, value):
    return rsattn.residual_attention(query, key, value, backend="triton")[:2]


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that were launched."""
    names = []
    for name in ("row_forward", "stream_forward", "row_backward", "key_value_gradient"):
        kernel = getattr(launch, name)

        class Noted:
            def __init__(self, name, kernel):
                self.name, self.kernel = name, kernel

            def __getitem__(self, grid):
                names.append(self.name)
                return self.kernel[grid]

        monkeypatch.setattr(launch, name, Noted(name, kernel))
    return names


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs the interpreter's rows of the table; run it without a GPU")
def test_a_kernel_left_out_hands_its_calls_on(launched):
    query = torch.randn(1, 2, 20, 16)
    by_triton(query, query, query)
    with plans.without("row_forward"):
        by_triton(query, query, query)
    by_triton(query, query, query)
    assert launched == ["row_forward", "stream_forward", "row_forward"]


def test_every_plan_is_timed_or_says_why_not():
    case = Case("attention", Shape(1, 2, 20, 16), "float32", True)

    def broken(query, key, value):
        raise RuntimeError("it cannot")

    def wrong(query, key, value):
        output, norms = rsattn.residual_attention(query, key, value, backend="reference")[:2]
        return output * 1.1, norms

    reference = partial(rsattn.residual_attention, backend="reference")
    found = plans.medians(
        case,
        {
            "right": Plan(compute=lambda *inputs: reference(*inputs)[:2]),
            "wrong": Plan(compute=wrong),
            "broken": Plan(compute=broken),
        },
        CPU,
    )
    assert isinstance(found["right"], float)
    assert found["broken"] == "left out: it cannot"
    assert "left out: wrong: dQ is off by 1.0e-01" in found["wrong"]


def test_the_shipped_plan_comes_first_and_each_case_has_another():
    for case, of in plans.comparisons().items():
        assert next(iter(of)) == "shipped", case.title
        assert len(of) > 1


def test_row_blocks_may_be_shared_otherwise():
    before = launch.BLOCKS_PER_PROGRAM
    with plans.shared_by(1).within():
        assert launch.BLOCKS_PER_PROGRAM == 1
    assert before == launch.BLOCKS_PER_PROGRAM
