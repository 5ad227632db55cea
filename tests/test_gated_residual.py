"""The gate: Y = projected + gamma * merge(O_h*) by `add_best_head` and `ResidualSelfAttention`, and its gradients."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from oracle import MERGES, NORMS, SCOPES, make_inputs, naive_attention, naive_merge, normal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import rsattn
from rsattn import ResidualAttention, ResidualOptions, ResidualSelfAttention, add_best_head, reference
from rsattn.attention import attend
from rsattn.backends.dispatch import BACKENDS
from rsattn.call import Call
from rsattn.epilogue import join

HALF, BF16, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
DIM = 20


@pytest.fixture
def cpu() -> str:
    """The compiled kernels, which may only be missing where the reason tells how to get them."""
    if reasons := rsattn.backends("cpu")["cpu"].reasons:
        pytest.skip("; ".join(reasons))
    return "cpu"


def attention(
    batch: int = 3, heads: int = 4, length: int = 7, width: int = 5, dtype: torch.dtype = DOUBLE
) -> ResidualAttention:
    """A made-up result whose best heads differ between samples: the epilogue reads only output and best_head."""
    output = normal(batch, length, heads, width, seed=1, dtype=dtype).transpose(1, 2)
    best = (torch.arange(batch) * 2 + 1) % heads
    return ResidualAttention(output, torch.zeros(batch, heads), best)


def gate(dtype: torch.dtype = DOUBLE, dim: int = DIM) -> Tensor:
    return normal(dim, seed=4, dtype=dtype)


def merged(result: ResidualAttention, merge: str, dim: int = DIM) -> Tensor:
    """merge(O_h*) in float64, (B, N, dim)."""
    batch, _, length, _ = result.output.shape
    nothing = torch.zeros(batch, length, dim, dtype=DOUBLE)
    return naive_merge(nothing, result.output.double(), result.best_head.tolist(), merge)


def rounding(dtype: torch.dtype) -> dict[str, float]:
    """For sums of some 20 numbers of size 1 in float32, rounded to `dtype` at the end."""
    eps = torch.finfo(dtype).eps if dtype != DOUBLE else 1e-14
    return {"rtol": eps, "atol": max(eps if dtype in (HALF, BF16) else 0.0, 1e-13 if dtype == DOUBLE else 2e-6)}


# `add_best_head`.


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE, HALF, BF16], ids=str)
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("shape", [(3, 4, 7, 5), (1, 1, 2, 20), (0, 4, 7, 5)], ids=str)
def test_adds_gamma_times_the_best_head(shape: tuple[int, ...], merge: Any, dtype: torch.dtype) -> None:
    """Products and sums are float32 at least and rounded once: within half a unit of the last place of float64's."""
    result, gamma = attention(*shape, dtype=dtype), gate(dtype)
    projected = normal(shape[0], shape[2], DIM, seed=2, dtype=dtype)
    before = projected.clone()
    got = add_best_head(projected, result, merge=merge, gamma=gamma)
    want = projected.double() + gamma.double() * merged(result, merge)
    torch.testing.assert_close(got.double(), want, rtol=torch.finfo(dtype).eps / 2 * 1.01, atol=3e-7)
    assert got.dtype == dtype
    assert torch.equal(projected, before)
    if len(projected):
        assert not torch.equal(got, add_best_head(projected, result, merge=merge))


@pytest.mark.parametrize("merge", MERGES)
def test_a_gate_of_ones_is_no_gate_and_one_of_zeros_no_residual(merge: Any) -> None:
    result, projected = attention(dtype=SINGLE), normal(3, 7, DIM, seed=2, dtype=SINGLE)
    plain = add_best_head(projected, result, merge=merge)
    assert torch.equal(add_best_head(projected, result, merge=merge, gamma=torch.ones(DIM)), plain)
    assert torch.equal(add_best_head(projected, result, merge=merge, gamma=torch.zeros(DIM)), projected)


@pytest.mark.parametrize("dtypes", [(BF16, SINGLE, SINGLE), (SINGLE, BF16, HALF), (HALF, HALF, BF16)], ids=str)
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("doubled", [None, 0, 1, 2], ids=["none", "projected", "output", "gamma"])
def test_result_and_gradients_keep_each_tensors_dtype(
    dtypes: tuple[torch.dtype, ...], merge: Any, doubled: int | None
) -> None:
    """Any mixture, float64 among them, which only the reference takes."""
    kinds = [DOUBLE if which == doubled else dtype for which, dtype in enumerate(dtypes)]
    result = attention(dtype=kinds[1])
    leaves = [normal(3, 7, DIM, seed=2, dtype=kinds[0]), result.output.detach(), gate(kinds[2])]
    projected, output, gamma = (leaf.requires_grad_() for leaf in leaves)
    got = add_best_head(projected, result._replace(output=output), merge=merge, gamma=gamma)
    residual = merged(result, merge)
    want = projected.detach().double() + gamma.detach().double() * residual
    assert got.dtype == kinds[0]
    low = kinds[0] if kinds[0] != DOUBLE else SINGLE  # nothing promises more than the least precise of the three
    torch.testing.assert_close(got.detach().double(), want, **rounding(low))
    upstream = normal(3, 7, DIM, seed=3, dtype=kinds[0])
    got.backward(upstream)
    assert [leaf.grad.dtype for leaf in leaves] == kinds  # type: ignore[union-attr]
    assert torch.equal(projected.grad, upstream)  # type: ignore[arg-type]
    grads = upstream.double()
    low = kinds[2] if kinds[2] != DOUBLE else SINGLE
    want = (grads * residual).sum((0, 1))
    torch.testing.assert_close(gamma.grad.double(), want, rtol=2 * torch.finfo(low).eps, atol=2e-5)
    exact = result.output.detach().double().requires_grad_()
    reference.add_best_head(grads * 0, exact, result.best_head, merge, gamma.detach().double()).backward(grads)
    # Rounded to the projection's dtype on the way, at most.
    low = max((kind for kind in kinds[:2] if kind != DOUBLE), key=lambda kind: torch.finfo(kind).eps, default=SINGLE)
    torch.testing.assert_close(output.grad.double(), exact.grad, rtol=2 * torch.finfo(low).eps, atol=2e-5)


@pytest.mark.parametrize(
    ("projected", "output", "gamma", "name"),
    [
        (SINGLE, SINGLE, SINGLE, "cpu"),
        (BF16, BF16, SINGLE, "cpu"),
        (SINGLE, HALF, BF16, "cpu"),
        (DOUBLE, SINGLE, SINGLE, "reference"),
        (SINGLE, SINGLE, DOUBLE, "reference"),
        (DOUBLE, DOUBLE, DOUBLE, "reference"),
    ],
    ids=str,
)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_is_done_by_the_fastest_backend_that_takes_all_dtypes(
    grad: bool,
    projected: torch.dtype,
    output: torch.dtype,
    gamma: torch.dtype,
    name: str,
    cpu: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    did = []

    def note(owner: Any, who: str) -> None:
        real = owner.add_best_head
        monkeypatch.setattr(owner, "add_best_head", lambda *given: did.append(who) or real(*given))

    note(reference, "reference")
    note(BACKENDS[cpu], "cpu")
    add_best_head(normal(3, 7, DIM, dtype=projected), attention(dtype=output), gamma=gate(gamma).requires_grad_(grad))
    assert did == [name]


@pytest.mark.parametrize("merge", MERGES)
def test_first_and_second_derivatives(merge: Any) -> None:
    result = attention(2, 2, 3, 2)

    def function(output: Tensor, projected: Tensor, gamma: Tensor) -> Tensor:
        # Squared, so that no second derivative is zero.
        return add_best_head(projected, result._replace(output=output), merge=merge, gamma=gamma) ** 2

    inputs = (result.output.detach(), normal(2, 3, 4, seed=6), gate(dim=4))
    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in inputs])
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("gamma_dtype", [SINGLE, HALF, BF16], ids=str)
@pytest.mark.parametrize("dtype", [SINGLE, HALF, BF16], ids=str)
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_compiled_kernels_agree_with_float64(
    cpu: str, norm: Any, scope: Any, merge: Any, dtype: torch.dtype, gamma_dtype: torch.dtype
) -> None:
    """From the attention that they computed: its ranking, its output as rounded, and every gradient of the sum."""
    query, key, value = make_inputs(3, 4, 9, 9, 5, dtype=dtype)
    result = rsattn.residual_attention(query, key, value, norm=norm, scope=scope, backend=cpu)
    leaves = [normal(3, 9, DIM, seed=2, dtype=dtype), result.output.clone(), gate(gamma_dtype)]
    upstream = normal(3, 9, DIM, seed=3, dtype=dtype)
    results = []
    for kind in (None, DOUBLE):
        projected, output, gamma = (leaf.to(kind or leaf.dtype).detach().requires_grad_() for leaf in leaves)
        joined = add_best_head(projected, result._replace(output=output), merge=merge, gamma=gamma)
        results.append([joined, *torch.autograd.grad(joined, (projected, output, gamma), upstream.to(joined.dtype))])
    for got, want, kind in zip(*results, (dtype, dtype, dtype, gamma_dtype)):
        assert got.dtype == kind
        # Sums of up to 27 float32 products of numbers around 1, rounded once.
        torch.testing.assert_close(got.double(), want.double(), rtol=torch.finfo(kind).eps / 2 * 1.01, atol=2e-5)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("wanted", ["gamma", "projected", "output", "projected gamma", "output gamma"])
def test_only_what_wants_a_gradient_gets_one(cpu: str, wanted: str, merge: Any) -> None:
    grads = []
    for asked in ("projected output gamma", wanted):
        result = attention(dtype=SINGLE)
        given = {"projected": normal(3, 7, DIM, seed=2, dtype=SINGLE), "output": result.output, "gamma": gate(SINGLE)}
        given = {name: tensor.detach().requires_grad_(name in asked.split()) for name, tensor in given.items()}
        result = result._replace(output=given["output"])
        add_best_head(given["projected"], result, merge=merge, gamma=given["gamma"]).sin().sum().backward()
        grads.append({name: tensor.grad for name, tensor in given.items() if tensor.grad is not None})
    everything, some = grads
    assert set(some) == set(wanted.split())
    assert all(torch.equal(grad, everything[name]) for name, grad in some.items())


@pytest.mark.parametrize("width", [5, 32], ids=["numbers", "vectors"])  # 32 are whole vectors of any instruction set
@pytest.mark.parametrize("merge", MERGES)
def test_the_same_bits_by_any_number_of_threads(cpu: str, merge: Any, width: int) -> None:
    """Sum, gradient of the output and gradient of gamma, of 8,000 tokens, more than one thread's share."""
    result, dim = attention(8, 4, 1000, width, dtype=SINGLE), 4 * width
    result = result._replace(output=result.output.detach().requires_grad_())
    projected, gamma = normal(8, 1000, dim, seed=2, dtype=SINGLE), gate(SINGLE, dim).requires_grad_()
    before, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            joined = add_best_head(projected, result, merge=merge, gamma=gamma)
            runs.append((joined, *torch.autograd.grad(joined.sin().sum(), (result.output, gamma))))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(run, runs[0]))
    residual = merged(result, merge, dim)
    want = ((projected.double() + gamma.detach().double() * residual).cos() * residual).sum((0, 1))
    torch.testing.assert_close(runs[0][2].double(), want, rtol=1e-4, atol=1e-3)  # of 8,000 terms of size 1


@pytest.mark.parametrize("merge", MERGES)
def test_the_projection_is_written_to_only_where_no_gradient_is_recorded(cpu: str, merge: Any) -> None:
    """A gate that wants one is enough, with all else frozen."""
    attended = attend(Call(tuple(make_inputs(3, 4, 7, 7, 5, dtype=SINGLE))), cpu, linked=True)
    projected = normal(3, 7, DIM, seed=2, dtype=SINGLE)
    before = projected.clone()
    gamma = gate(SINGLE).requires_grad_()
    apart = join(projected, attended, merge, gamma)
    assert torch.equal(projected, before)
    assert apart.requires_grad
    with torch.no_grad():
        in_place = join(projected, attended, merge, gamma)
    assert in_place is projected
    assert torch.equal(in_place, apart)
    projected = before.clone()
    assert join(projected, attended, merge, gamma.detach()) is projected


@pytest.mark.parametrize("merge", MERGES)
def test_a_nan_in_a_losing_head_goes_nowhere(cpu: str, merge: Any) -> None:
    result, gamma = attention(dtype=SINGLE), gate(SINGLE).requires_grad_()
    spoilt = torch.full_like(result.output, math.nan)
    for b, head in enumerate(result.best_head.tolist()):
        spoilt[b, head] = result.output[b, head]
    projected = normal(3, 7, DIM, seed=2, dtype=SINGLE)
    outcomes = []
    for output in (result.output, spoilt):
        leaf = output.detach().requires_grad_()
        got = add_best_head(projected, result._replace(output=leaf), merge=merge, gamma=gamma)
        outcomes.append([got, *torch.autograd.grad(got.sum(), (leaf, gamma))])
    assert all(torch.equal(one, other) for one, other in zip(*outcomes))


def test_a_second_derivative_names_the_reference(cpu: str) -> None:
    result, gamma = attention(dtype=SINGLE), gate(SINGLE).requires_grad_()
    output = result.output.detach().requires_grad_()
    projected = normal(3, 7, DIM, seed=2, dtype=SINGLE)
    joined = add_best_head(projected, result._replace(output=output), gamma=gamma)
    grad_output, grad_gamma = torch.autograd.grad(joined.square().sum(), (output, gamma), create_graph=True)
    for grad in (grad_output, grad_gamma):
        with pytest.raises(NotImplementedError, match="backend='reference'"):
            grad.square().sum().backward(retain_graph=True)


def test_a_gamma_that_is_changed_before_the_backward_pass_is_noticed(cpu: str) -> None:
    gamma = gate(SINGLE).requires_grad_()
    loss = add_best_head(normal(3, 7, DIM, dtype=SINGLE), attention(dtype=SINGLE), gamma=gamma).sum()
    with torch.no_grad():
        gamma.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("gamma", "kind", "words"),
    [
        (torch.ones(19), ValueError, ["one number for each of the 20 channels", "(19,)"]),
        (torch.ones(1), ValueError, ["each of the 20 channels", "(1,)"]),
        (torch.ones(1, 1, 20), ValueError, ["each of the 20 channels", "(1, 1, 20)"]),
        (torch.tensor(1.0), ValueError, ["each of the 20 channels", "()"]),
        (torch.ones(20, dtype=torch.int64), TypeError, ["gamma must be floating point", "int64"]),
        (torch.ones(20, dtype=torch.complex64), TypeError, ["gamma must be floating point", "complex64"]),
        (torch.ones(20, device="meta"), ValueError, ["gamma is on meta", "projected on cpu", "move one of them"]),
        (0.5, TypeError, ["gamma must be a torch tensor of one number per channel", "got 0.5"]),
        ([0.5] * 20, TypeError, ["gamma must be a torch tensor", "list"]),
    ],
    ids=str,
)
def test_a_gamma_that_does_not_fit(gamma: Any, kind: type[Exception], words: list[str]) -> None:
    with pytest.raises(kind) as error:
        add_best_head(torch.zeros(3, 7, DIM), attention(dtype=SINGLE), gamma=gamma)
    assert [word for word in words if word not in str(error.value)] == []


# Through torch.ops: what sees the operators sees the gate.


class Names(TorchDispatchMode):
    """The names of our operators that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name().startswith("rsattn::"):
            self.ours.append(function.name().removeprefix("rsattn::"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("merge", MERGES)
def test_a_gate_alone_wants_nothing_of_the_attention(cpu: str, merge: Any) -> None:
    """Neither its backward kernel nor a (B, H, N, E) tensor of zeros, and both ways to the kernels agree."""
    torch.manual_seed(0)
    module = ResidualSelfAttention(DIM, 4, merge=merge, init_values=0.5, backend=cpu).requires_grad_(False)
    assert module.gamma is not None
    module.gamma.requires_grad_()
    x = normal(3, 9, DIM, dtype=SINGLE)
    with torch.profiler.profile() as profile:
        module(x).square().sum().backward()
    straight = module.gamma.grad
    assert "aten::where" not in {event.name for event in profile.events()}
    module.gamma.grad = None
    with Names() as names:
        module(x).square().sum().backward()
    assert names.ours == ["attention", "add_best_head", "gate_gradients"]
    assert torch.equal(straight, module.gamma.grad)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's: the operator runs once for each
@pytest.mark.parametrize("merge", MERGES)
def test_a_batch_of_gradients(cpu: str, merge: Any) -> None:
    """`is_grads_batched`, and vmap over a backward pass: each gradient by itself."""
    inputs = [tensor.requires_grad_() for tensor in make_inputs(3, 4, 7, 7, 5, dtype=SINGLE)]
    attended = attend(Call(tuple(inputs)), cpu, linked=True)
    projected, gamma = normal(3, 7, DIM, dtype=SINGLE).requires_grad_(), gate(SINGLE).requires_grad_()
    y = join(projected, attended, merge, gamma)
    upstream = normal(3, 3, 7, DIM, seed=1, dtype=SINGLE)

    def gradients(grad: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, (projected, gamma, *inputs), grad, retain_graph=True, **options)

    one_by_one = [gradients(grad) for grad in upstream]
    for together in (gradients(upstream, is_grads_batched=True), torch.func.vmap(gradients)(upstream)):
        for got, *want in zip(together, *one_by_one, strict=True):
            assert torch.equal(got, torch.stack(want))


# `ResidualSelfAttention`.


def build(init_values: float | None = 0.0, merge: Any = "tile", **options: Any) -> ResidualSelfAttention:
    torch.manual_seed(0)
    module = ResidualSelfAttention(24, 3, merge=merge, init_values=init_values, **options)
    with torch.no_grad():
        module.qkv.weight.mul_(5.0)  # scores of spread 1, as in a trained model; fresh weights hardly attend
    return module


def opened(**options: Any) -> ResidualSelfAttention:
    """With a gate no two channels of which are alike."""
    module = build(**options)
    module.load_state_dict({"gamma": gate(dim=24)}, strict=False)
    return module


def tokens(batch: int = 4, length: int = 13, dtype: torch.dtype = SINGLE) -> Tensor:
    return normal(batch, length, 24, seed=1, dtype=dtype)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("merge", MERGES)
def test_the_module_equals_the_formula(merge: Any, norm: Any, scope: Any) -> None:
    """And its gradient of gamma, against the attention's loops."""
    module, x = opened(merge=merge, norm=norm, scope=scope, dtype=DOUBLE), tokens(dtype=DOUBLE)
    assert module.gamma is not None
    q, k, v = module.qkv(x).detach().unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    naive = naive_attention(q, k, v)
    projected = module.proj(naive.output.transpose(1, 2).flatten(2)).detach()
    residual = naive_merge(torch.zeros_like(projected), naive.output, naive.best(norm, scope), merge)
    got = module(x)
    torch.testing.assert_close(got, projected + module.gamma * residual, rtol=1e-12, atol=1e-12)  # float64 sums
    upstream = normal(4, 13, 24, seed=2)
    (grad,) = torch.autograd.grad(got, module.gamma, upstream)
    torch.testing.assert_close(grad, (upstream * residual).sum((0, 1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("init_values", [0.0, 0.5])
def test_derivatives_of_the_module(init_values: float, merge: Any) -> None:
    """First and second, of x and gamma, on the reference."""
    module = build(init_values, merge, dtype=DOUBLE, backend="reference")
    assert module.gamma is not None

    def function(x: Tensor, gamma: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"gamma": gamma}, (x,))

    inputs = tokens(2, 3, DOUBLE).requires_grad_(), module.gamma.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, atol=1e-4)  # gradcheck's own rounding: second order of 1e-6


def test_torch_func_grad_goes_through_the_reference() -> None:
    module, x = opened(dtype=DOUBLE), tokens(dtype=DOUBLE)
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(given: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, given, (x,)).square().sum()

    grads = torch.func.grad(loss)(weights)
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-11, atol=1e-11)  # float64 sums
    # A slope that depends on gamma linearly: its second derivative, by a difference of first ones.
    curvature = torch.func.grad(lambda gamma: torch.func.grad(loss)({**weights, "gamma": gamma})["gamma"].sum())
    step = torch.ones_like(weights["gamma"])
    ahead = torch.func.grad(loss)({**weights, "gamma": weights["gamma"] + step})["gamma"]
    torch.testing.assert_close(curvature(weights["gamma"]), ahead - grads["gamma"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", [SINGLE, HALF, BF16], ids=str)
def test_the_modules_gradients_by_the_compiled_kernels(cpu: str, dtype: torch.dtype, merge: Any) -> None:
    """Of the input and every parameter; the residual's gradient is read beside the projection's."""
    fused, exact = opened(merge=merge, backend=cpu).to(dtype), opened(merge=merge, dtype=DOUBLE)
    exact.load_state_dict(fused.state_dict())
    results = []
    for module in (fused, exact):
        kind = module.qkv.weight.dtype
        x = tokens(dtype=dtype).to(kind).requires_grad_()
        y = module(x)
        upstream = normal(4, 13, 24, seed=2, dtype=dtype).to(kind)
        with rsattn.record(module) as seen:
            module(x)
        results.append((seen.best_head, [y, *torch.autograd.grad(y, (x, *module.parameters()), upstream)]))
    assert torch.equal(results[0][0], results[1][0])
    for got, want in zip(results[0][1], results[1][1]):
        assert got.dtype == dtype
        # A dozen roundings between x and Y and back, relative to the largest.
        budget = 12 * torch.finfo(dtype).eps * want.abs().max().item()
        torch.testing.assert_close(got.double(), want, rtol=0.0, atol=budget)


@pytest.mark.parametrize("dtype", [BF16, HALF], ids=str)
def test_autocast_leaves_gamma_and_its_gradient_in_float32(dtype: torch.dtype) -> None:
    module, x = opened(), tokens()
    exact = copy.deepcopy(module).double()
    with torch.autocast("cpu", dtype=dtype), rsattn.record(module) as seen:
        got = module(x)
    assert got.dtype == dtype
    upstream = normal(4, 13, 24, seed=2, dtype=dtype)
    grads = dict(zip(dict(module.named_parameters()), torch.autograd.grad(got, list(module.parameters()), upstream)))
    assert {grad.dtype for grad in grads.values()} == {SINGLE}
    with rsattn.record(exact) as judge:
        want = exact(x.double())
    assert torch.equal(seen.best_head, judge.best_head)
    # As in test_module.py: a dozen roundings on values up to the largest, or their sum over 52 tokens.
    budget = 12 * torch.finfo(dtype).eps
    assert (got.double() - want).abs().max() < budget * want.abs().max()
    (gradient,) = torch.autograd.grad(want, exact.gamma, upstream.double())
    assert (grads["gamma"].double() - gradient).abs().max() < budget * gradient.abs().max()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_module_whose_gate_is_zero_leaves_every_bit(training: bool) -> None:
    """It is the module without a residual, and draws the same random numbers."""
    module = build(attn_drop=0.2, proj_drop=0.1).train(training)

    class LeftOut(ResidualOptions):
        def join(self, projected: Tensor, attended: Any, gamma: Tensor | None) -> Tensor:
            return projected

    without = copy.deepcopy(module)
    without.options = LeftOut()
    outcomes = []
    for one in (module, without):
        x = tokens().requires_grad_()
        torch.manual_seed(3)
        y = one(x)
        wanted = [x, *one.qkv.parameters(), *one.proj.parameters()]
        outcomes.append([y, *torch.autograd.grad(y.square().sum(), wanted), torch.rand(1)])
    assert all(torch.equal(one, other) for one, other in zip(*outcomes))


def test_a_gate_of_zero_learns_and_opens() -> None:
    module, x = build(), tokens()
    assert module.gamma is not None
    before = module(x)
    before.square().sum().backward()
    assert (module.gamma.grad != 0).all()
    torch.optim.SGD([module.gamma], lr=0.01).step()
    assert not torch.allclose(module(x), before, atol=1e-3)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    module, grads = opened(attn_drop=0.3, proj_drop=0.1), []
    for run in (module, lambda x: checkpoint(module, x, use_reentrant=reentrant)):
        module.zero_grad()
        torch.manual_seed(9)
        run(tokens().requires_grad_()).square().sum().backward()
        grads.append([p.grad for p in module.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*grads))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("frozen", [False, True], ids=["whole", "gate_only"])
def test_compiles_whole(frozen: bool, merge: Any) -> None:
    """In one graph, forward and backward; also where the gate alone learns."""
    module, x = opened(merge=merge), tokens()
    if frozen:
        module.requires_grad_(False).gamma.requires_grad_()  # type: ignore[union-attr]
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    wanted = [p for p in module.parameters() if p.requires_grad]
    outcomes = [[y := run(x), *torch.autograd.grad(y.square().sum(), wanted)] for run in (module, compiled)]
    for eager, traced in zip(*outcomes):
        # aot_eager runs the same kernels; its backward formulas may sum in another order.
        torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-5 * max(1.0, eager.abs().max().item()))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_copies_compute_the_same(how: str) -> None:
    module, x = opened(merge="slot"), tokens()
    if how == "deepcopy":
        twin = copy.deepcopy(module)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    else:
        twin = build(merge="slot")
        twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(x), module(x))
    assert repr(twin) == repr(module)
    assert twin.gamma is not None
    nn.init.zeros_(twin.gamma)  # and share nothing
    assert not torch.equal(twin(x), module(x))


def test_a_state_dict_has_a_gate_or_has_none() -> None:
    gated, paper = build(), build(None)
    assert set(gated.state_dict()) == {*paper.state_dict(), "gamma"}
    assert paper.gamma is None
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"gamma"'):
        paper.load_state_dict(gated.state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key.*"gamma"'):
        gated.load_state_dict(paper.state_dict())


@pytest.mark.parametrize("init_values", [0.0, -0.25, 3])
def test_starts_at_its_initial_value(init_values: float) -> None:
    module = build(init_values)
    assert isinstance(module.gamma, nn.Parameter)
    assert torch.equal(module.gamma, torch.full((24,), float(init_values)))
    assert module.gamma.dtype == SINGLE


def test_the_residual_of_the_paper_has_no_gate() -> None:
    """By default, and bit for bit what a gate of ones gives, which float32's product with 1 does not change."""
    paper, ones, x = build(None), build(1), tokens()
    assert ResidualSelfAttention(24, 3).gamma is None
    assert ResidualOptions().init_values is None
    assert torch.equal(paper(x), ones(x))


def test_reset_parameters_after_to_empty() -> None:
    """A module made without memory gets its gate's numbers as its linear layers get theirs."""
    module = ResidualSelfAttention(24, 3, init_values=0.25, device="meta", dtype=BF16)
    assert module.gamma is not None
    assert (module.gamma.device.type, module.gamma.dtype, module.gamma.shape) == ("meta", BF16, (24,))
    module.to_empty(device="cpu")
    with torch.no_grad():
        module.gamma.fill_(math.nan)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert torch.equal(module.gamma, torch.full((24,), 0.25, dtype=BF16))
    assert module.gamma.requires_grad
    assert module(tokens(dtype=BF16)).isfinite().all()
    paper = ResidualSelfAttention(24, 3, device="meta").to_empty(device="cpu")
    paper.reset_parameters()
    assert paper.gamma is None


def test_an_optimizer_that_does_not_decay_vectors_does_not_decay_it() -> None:
    """As libraries tell them apart: by the number of dimensions."""
    assert [name for name, p in build(qkv_bias=False, proj_bias=False).named_parameters() if p.ndim < 2] == ["gamma"]


def test_repr_tells_the_gate() -> None:
    assert "init_values=0.0" in repr(build())
    assert "init_values" not in repr(build(None))


def test_a_start_that_its_dtype_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"init_values=100000.0 is too large for torch.float16"):
        ResidualSelfAttention(24, 3, init_values=1e5, dtype=HALF)


def test_a_gate_made_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        gamma = ResidualOptions(init_values=0.5).gate(24)
    assert gamma is not None
    (gamma * 2).sum().backward()
    assert torch.equal(gamma.grad, torch.full((24,), 2.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("init_values", [math.nan, math.inf, -math.inf, True, "zero", "auto", [0.0]], ids=str)
@pytest.mark.parametrize("make", [partial(ResidualSelfAttention, 24, 3), ResidualOptions], ids=["module", "options"])
def test_what_no_gate_can_start_at(make: Any, init_values: Any) -> None:
    words = r"init_values=.* must be the finite number that a learnable gate starts at, or None for no gate"
    with pytest.raises(ValueError, match=words):
        make(init_values=init_values)


def test_recording_changes_no_output_and_sees_the_ranking() -> None:
    gated, paper, x = build(), build(None), tokens()
    plain = gated(x)
    with rsattn.record(gated) as one, rsattn.record(paper) as other:
        assert torch.equal(gated(x), plain)
        assert not torch.equal(paper(x), plain)
    assert torch.equal(one.norms, other.norms)
    assert torch.equal(one.best_head, other.best_head)
