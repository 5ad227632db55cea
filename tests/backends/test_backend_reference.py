"""The reference as a backend: its backward functions equal autograd's gradients."""

from __future__ import annotations

import pytest
import torch
from oracle import MERGES, NORMS, make_inputs, make_mask, normal
from torch import Tensor

from rsattn import reference
from rsattn.backends.reference import ReferenceBackend
from rsattn.call import Call, unpacked

BACKEND = ReferenceBackend()


def call(form: str, norm: str = "induced", dropout: float = 0.0) -> Call:
    inputs = make_inputs(3, 4, 7, 7, 5)
    if form == "packed":
        inputs = (torch.stack([tensor.transpose(1, 2) for tensor in inputs], dim=2),)
    seed = torch.tensor([7]) if dropout else None
    return Call(tuple(inputs), make_mask("bool", 3, 4, 7, 7), seed, dropout, norm=norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("form", ["three", "packed"])
def test_forward_is_the_reference(form: str, norm: str) -> None:
    given = call(form, norm, 0.2)
    given.return_received = True
    result, want = BACKEND.forward(given), reference.attention(given)
    assert result.statistics is None
    for name in want._fields:
        assert torch.equal(getattr(result, name), getattr(want, name))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("form", ["three", "packed"])
def test_backward_is_the_derivative_of_forward(form: str, dropout: float, residual: bool) -> None:
    given = call(form, dropout=dropout)
    leaves = [tensor.detach().requires_grad_() for tensor in given.inputs]
    result = BACKEND.forward(given.on(*leaves))
    grad, grad_best = normal(3, 4, 7, 5, seed=1), normal(3, 7, 5, seed=2)
    loss = (result.output * grad).sum()
    if residual:
        loss = loss + sum((result.output[b, h] * grad_best[b]).sum() for b, h in enumerate(result.best_head.tolist()))
    want = torch.autograd.grad(loss, leaves)
    before = grad.clone()
    got = BACKEND.backward(given, result, grad, grad_best if residual else None)
    for mine, true in zip(got.of_inputs(), want, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-12)  # float64 sums
    three = unpacked(got.of_inputs()[0]) if form == "packed" else got.of_inputs()
    assert all(torch.equal(a, b) for a, b in zip(got[:3], three, strict=True))
    assert torch.equal(grad, before)


def heads() -> tuple[Tensor, Tensor, Tensor]:
    return normal(3, 7, 20, seed=1), normal(3, 4, 7, 5, seed=2), torch.tensor([2, 0, 3])


@pytest.mark.parametrize("merge", MERGES)
def test_best_head_gradient_is_the_derivative_of_add_best_head(merge: str) -> None:
    projected, output, best_head = heads()
    leaf, grad = output.clone().requires_grad_(), normal(3, 7, 20, seed=3)
    (full,) = torch.autograd.grad(BACKEND.add_best_head(projected, leaf, best_head, merge), leaf, grad)
    got = BACKEND.best_head_gradient(grad, best_head, 4, 5, merge)
    torch.testing.assert_close(got, full[torch.arange(3), best_head], rtol=1e-14, atol=1e-14)  # order of sums


@pytest.mark.parametrize("merge", MERGES)
def test_add_best_head_writes_where_it_is_told(merge: str) -> None:
    projected, output, best_head = heads()
    want = reference.add_best_head(projected, output, best_head, merge)
    before = projected.clone()
    assert torch.equal(BACKEND.add_best_head(projected, output, best_head, merge), want)
    assert torch.equal(projected, before)
    assert BACKEND.add_best_head(projected, output, best_head, merge, in_place=True) is projected
    assert torch.equal(projected, want)
