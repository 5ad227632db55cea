"""`residual_attention_qkvpacked`: the results of `residual_attention`, and one gradient, with nothing stacked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from oracle import make_mask, normal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import rsattn
from rsattn import ResidualAttention, residual_attention, residual_attention_qkvpacked
from rsattn.backends import dispatch
from rsattn.call import unpacked

GPU = torch.cuda.is_available()
HALF, SINGLE, BF16, DOUBLE = torch.float16, torch.float32, torch.bfloat16, torch.float64


def available(name: str) -> str:
    """The backend, which may only be missing where its reason tells the reader how to get it."""
    if reasons := rsattn.backends("cuda" if GPU and name != "cpu" else "cpu")[name].reasons:
        pytest.skip("; ".join(reasons))
    return name


@pytest.fixture(params=["triton", "cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    return available(request.param)


@pytest.fixture(params=["triton", "cpu"])
def kernels(request: pytest.FixtureRequest) -> str:
    """A backend that does not leave its gradient to autograd."""
    return available(request.param)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device on which the backend runs here; Triton's on a CPU in its interpreter."""
    name = request.getfixturevalue("backend" if "backend" in request.fixturenames else "kernels")
    return torch.device("cuda" if GPU and name != "cpu" else "cpu")


def qkv(
    device: torch.device | str = "cpu",
    batch: int = 2,
    length: int = 20,
    heads: int = 3,
    width: int = 16,
    dtype: torch.dtype = SINGLE,
) -> Tensor:
    return normal(batch, length, 3, heads, width, dtype=dtype).to(device)


# batch, length, heads, width, dtype, mask, dropout_p, norm, scope: whole rows and streaming, odd sizes.
CASES = [
    (2, 1, 3, 16, SINGLE, "none", 0.0, "induced", "sample"),
    (2, 65, 3, 40, SINGLE, "padding", 0.0, "confidence", "batch"),
    (2, 63, 2, 64, HALF, "float", 0.3, "entrywise", "sample"),
    (2, 63, 2, 24, BF16, "bool", 0.2, "entrywise", "batch"),
    (2, 111, 2, 17, SINGLE, "bool", 0.1, "induced", "batch"),
    (1, 300, 2, 17, SINGLE, "float", 0.0, "induced", "sample"),
    (1, 257, 2, 16, BF16, "none", 0.1, "confidence", "sample"),
    (1, 270, 2, 16, HALF, "bool", 0.2, "entrywise", "sample"),
    (2, 13, 2, 8, DOUBLE, "float_blind", 0.2, "induced", "sample"),
    (0, 13, 2, 8, SINGLE, "none", 0.0, "induced", "batch"),
]


def takes(backend: str, dtype: torch.dtype) -> bool:
    """float64 is the reference's, and Triton's interpreter computes bfloat16 wrongly."""
    return backend == "reference" or (dtype != DOUBLE and (GPU or (backend, dtype) != ("triton", BF16)))


@pytest.mark.parametrize(
    ("backend", "case"),
    [
        pytest.param(name, case, id="-".join(str(word).removeprefix("torch.") for word in (name, *case)))
        for name in ("triton", "cpu", "reference")
        for case in CASES
        if takes(name, case[4])
    ],
    indirect=["backend"],
)
def test_results_and_gradients_are_those_of_three_tensors(
    backend: str, device: torch.device, case: tuple[Any, ...]
) -> None:
    """Bit for bit."""
    batch, length, heads, width, dtype, kind, dropout_p, norm, scope = case
    packed = qkv(device, batch, length, heads, width, dtype).requires_grad_()
    exact = torch.promote_types(dtype, SINGLE)
    mask = make_mask(kind, batch, heads, length, length, dtype=exact, device=str(device))
    three = [tensor.detach().requires_grad_() for tensor in unpacked(packed)]
    upstream = normal(batch, heads, length, width, seed=5, dtype=dtype).to(device)
    results = []
    for entry, leaves in ((residual_attention_qkvpacked, [packed]), (residual_attention, three)):
        torch.manual_seed(7)
        result = entry(*leaves, mask, dropout_p, norm=norm, scope=scope, backend=backend)
        results.append((result, torch.autograd.grad(result.output, leaves, upstream)))
    (one, (gradient,)), (other, gradients) = results
    assert all(torch.equal(a, b) for a, b in zip(one[:3], other))
    assert torch.equal(gradient, torch.stack([grad.transpose(1, 2) for grad in gradients], dim=2))
    assert gradient.is_contiguous() or backend == "reference"  # whose gradient is autograd's


def test_the_scale_is_passed_on(backend: str, device: torch.device) -> None:
    packed = qkv(device)
    plain, scaled = (residual_attention_qkvpacked(packed, scale=scale, backend=backend) for scale in (None, 0.7))
    assert torch.equal(scaled.output, residual_attention(*unpacked(packed), scale=0.7, backend=backend).output)
    assert not torch.equal(scaled.output, plain.output)


@pytest.mark.parametrize("way", ["strided", "expanded", "three_first"])
def test_any_strides(backend: str, device: torch.device, way: str) -> None:
    plain = qkv(device)
    if way == "strided":
        laid = torch.stack([plain, torch.full_like(plain, torch.nan)], dim=-1)[..., 0]
    elif way == "expanded":
        laid = plain[:1].expand(2, -1, -1, -1, -1)
        plain = laid.contiguous()
    else:
        laid = plain.permute(2, 0, 3, 1, 4).contiguous().permute(1, 3, 0, 2, 4)
    assert laid.stride() != plain.stride()
    results = []
    for packed in (laid, plain):
        leaf = packed.detach().requires_grad_()
        result = residual_attention_qkvpacked(leaf, backend=backend)
        results.append((*result[:3], *torch.autograd.grad(result.output.square().sum(), leaf)))
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)  # BLAS may sum in another order


class Watch(TorchDispatchMode):
    """Under a mode a call goes through the operators."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class TestOneGradient:
    """The backward pass writes dQ, dK and dV where the projection wants them."""

    def test_autograd_hands_on_what_the_kernels_wrote(
        self, kernels: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[Any] = []
        real = dispatch.BACKENDS[kernels].backward
        monkeypatch.setattr(
            dispatch.BACKENDS[kernels], "backward", lambda *given: written.append(real(*given)) or written[-1]
        )
        leaf = qkv(device, length=65).requires_grad_()
        (gradient,) = torch.autograd.grad(residual_attention_qkvpacked(leaf, backend=kernels).output.sum(), leaf)
        (gradients,) = written
        assert gradient.is_contiguous()
        assert gradient.data_ptr() == gradients.packed.data_ptr() == gradients.query.data_ptr()
        assert all(torch.equal(a, b) for a, b in zip(gradients[:3], unpacked(gradient)))

    def moved(self, step: Callable[[], Tensor], watched: bool) -> list[str]:
        """What one backward pass stacks, and whatever it copies or adds of the size of dQ, dK and dV together."""
        loss, size = step(), 3 * 2 * 65 * 48
        with torch.profiler.profile(record_shapes=True) as profile, Watch() if watched else nullcontext():
            loss.backward()
        stacking, copying = ("aten::cat", "aten::stack"), ("aten::copy_", "aten::add", "aten::add_")
        return [
            event.name
            for event in profile.events()
            if event.name in stacking or (event.name in copying and torch.Size(event.input_shapes[0]).numel() >= size)
        ]

    @pytest.mark.parametrize("watched", [False, True], ids=["straight", "operators"])
    def test_nothing_is_stacked_in_the_modules_backward_pass(self, watched: bool) -> None:
        available("cpu")
        torch.manual_seed(0)
        module = rsattn.ResidualSelfAttention(48, 3, backend="cpu")
        x = torch.randn(2, 65, 48)

        def apart() -> Tensor:
            three = unpacked(module.qkv(x).view(2, 65, 3, 3, 16))
            return residual_attention(*three, backend="cpu").output.sum()

        assert self.moved(lambda: module(x).square().sum(), watched) == []
        assert self.moved(apart, watched) != []  # the same watch over three tensors does see them stacked


@pytest.mark.parametrize(
    "shape", [(2, 5, 144), (2, 5, 9, 16), (2, 3, 5, 3, 16), (2, 5, 4, 3, 16), (2, 5, 3, 3, 16, 1), (3,), ()], ids=str
)
def test_shapes_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="qkv must be") as error:
        residual_attention_qkvpacked(torch.zeros(shape))
    for words in ("(batch, length, 3, heads, head_dim), query before key before value", str(shape), "qkv.unflatten"):
        assert words in str(error.value)


@pytest.mark.parametrize("shape", [(2, 0, 3, 3, 16), (2, 5, 3, 0, 16), (2, 5, 3, 3, 0)], ids=str)
def test_sizes_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="heads, length and head_dim must be at least 1"):
        residual_attention_qkvpacked(torch.zeros(shape))


def test_the_other_checks_are_those_of_three_tensors() -> None:
    with pytest.raises(TypeError, match="floating-point dtype"):
        residual_attention_qkvpacked(torch.zeros(2, 5, 3, 3, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"attn_mask \(6,\) does not broadcast"):
        residual_attention_qkvpacked(qkv(length=5), torch.ones(6, dtype=torch.bool))
    with pytest.raises(ValueError, match="norm='l1'"):
        residual_attention_qkvpacked(qkv(), norm="l1")
    with pytest.raises(ValueError, match="dropout_p=2"):
        residual_attention_qkvpacked(qkv(), dropout_p=2.0)
    with pytest.raises(rsattn.BackendError, match=r"backend='triton' cannot do this call.*float64"):
        residual_attention_qkvpacked(qkv(dtype=DOUBLE), backend="triton")


def test_autocast(backend: str, device: torch.device) -> None:
    dtype = BF16 if GPU else HALF
    leaf = qkv(device).requires_grad_()
    with torch.autocast(device.type, dtype):
        result = residual_attention_qkvpacked(leaf, backend=backend)
    low = leaf.detach().to(dtype).requires_grad_()
    want = residual_attention_qkvpacked(low, backend=backend)
    assert result.output.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(result[:3], want))
    gradients = [torch.autograd.grad(r.output.sum(), t)[0] for r, t in ((result, leaf), (want, low))]
    assert gradients[0].dtype == SINGLE
    assert torch.equal(gradients[0], gradients[1].float())


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_first_and_second_derivatives_of_the_reference(kind: str, dropout_p: float) -> None:
    leaf = qkv(batch=2, length=3, heads=2, width=2, dtype=DOUBLE).requires_grad_()
    mask = make_mask(kind, 2, 2, 3, 3)

    def function(packed: Tensor) -> Tensor:
        torch.manual_seed(11)  # one dropout mask for every finite difference
        attention = residual_attention_qkvpacked(packed, mask, dropout_p, backend="reference")
        projected = attention.output.transpose(1, 2).flatten(2).cumsum(2)
        return rsattn.add_best_head(projected, attention)

    assert torch.autograd.gradcheck(function, (leaf,))
    assert torch.autograd.gradgradcheck(function, (leaf,))


def loss(packed: Tensor, backend: str | None) -> Tensor:
    return residual_attention_qkvpacked(packed, backend=backend).output.square().sum()


def test_kernels_have_no_second_derivative(kernels: str, device: torch.device) -> None:
    leaf = qkv(device).requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf, kernels), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        first.sum().backward()


def test_compiled_without_a_break(backend: str, device: torch.device) -> None:
    torch._dynamo.reset()
    leaf = qkv(device).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values = [function(leaf, backend) for function in (compiled, loss)]
    torch.testing.assert_close(*values, rtol=1e-6, atol=0.0)
    gradients = [torch.autograd.grad(value, leaf)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_exported(backend: str, device: torch.device) -> None:
    class Module(torch.nn.Module):
        def forward(self, packed: Tensor) -> ResidualAttention:
            return residual_attention_qkvpacked(packed, backend=backend)

    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Module(), (qkv(device),), dynamic_shapes=({0: batch},))
    other = qkv(device, batch=5)
    for got, want in zip(program.module()(other)[:3], Module()(other)):
        assert torch.equal(got, want)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(backend: str, device: torch.device, reentrant: bool) -> None:
    """With dropout: the recomputed forward pass draws the first one's seed again."""
    leaf = qkv(device).requires_grad_()

    def output(packed: Tensor) -> Tensor:
        return residual_attention_qkvpacked(packed, dropout_p=0.3, backend=backend).output

    gradients = []
    for run in (output, lambda packed: checkpoint(output, packed, use_reentrant=reentrant)):
        torch.manual_seed(5)
        leaf.grad = None
        run(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_vmap_takes_the_reference() -> None:
    packed = qkv(batch=6).unflatten(0, (3, 2))
    got = torch.func.vmap(lambda one: residual_attention_qkvpacked(one).output)(packed)
    want = torch.stack([residual_attention_qkvpacked(one, backend="reference").output for one in packed])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)  # BLAS may sum in another order
    if rsattn.backends("cpu")["cpu"].available:
        with pytest.raises(rsattn.BackendError, match=r"not support torch\.func transforms"):
            torch.func.vmap(lambda one: residual_attention_qkvpacked(one, backend="cpu").output)(packed)


def test_per_sample_gradients_take_the_reference() -> None:
    packed = qkv(dtype=DOUBLE)
    got = torch.func.vmap(torch.func.grad(lambda one: loss(one[None], None)))(packed)
    leaf = packed.requires_grad_()
    want = torch.autograd.grad(loss(leaf, None), leaf)[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)  # float64 sums
