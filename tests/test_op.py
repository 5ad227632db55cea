"""The operators as PyTorch meets them: schema, fake, autograd, compile, checkpointing, autocast, CUDA graphs."""

import math

import pytest
import torch
import torch._dynamo.testing
from torch.utils.checkpoint import checkpoint

import rsattn
from rsattn.attention import attend
from rsattn.contract import ResidualAttention
from rsattn.epilogue import join

GPU = torch.cuda.is_available()
DTYPE = torch.float32
LENGTHS = pytest.mark.parametrize("length", [20, 270], ids=["whole_row", "stream"])


def heads(device, length=20, batch=2, count=3, width=16, seed=0, grad=False, keys=None):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, count, n, width) for n in (length, keys or length, keys or length)]
    return [torch.randn(s, generator=generator).to(device).requires_grad_(grad) for s in shapes]


def op_arguments(tensors, mask=None, dropout=0.0, norm="induced", scope="sample", backend="triton"):
    seed = torch.tensor([7], device=tensors[0].device) if dropout else None
    return (*tensors, mask, seed, dropout, 0.25, norm, scope, backend)


@pytest.fixture(params=["triton", "cpu"])
def backend(request):
    """A backend, which may only be missing where its reason tells the reader how to get it."""
    reasons = rsattn.backends("cuda" if GPU and request.param != "cpu" else "cpu")[request.param].reasons
    if reasons:
        pytest.skip("; ".join(reasons))
    return request.param


@pytest.fixture
def device(backend):
    """The device on which the backend runs here; Triton's on a CPU in its interpreter."""
    return torch.device("cuda" if GPU and backend != "cpu" else "cpu")


@pytest.fixture
def module(backend, device):
    torch.manual_seed(0)
    return rsattn.ResidualSelfAttention(48, 3, backend=backend).to(device)


def same_weights(module, **changes):
    """The same module with other options."""
    options = dict(norm="induced", scope="sample", merge="tile", backend="reference", attn_drop=0.0)
    twin = rsattn.ResidualSelfAttention(48, 3, **{**options, **changes}).to(next(module.parameters()).device)
    twin.load_state_dict(module.state_dict())
    return twin


class TestOpcheck:
    @LENGTHS
    @pytest.mark.parametrize("dropout", [0.0, 0.2])
    def test_attention(self, backend, device, length, dropout):
        tensors = heads(device, length, batch=1, grad=True)
        mask = (torch.rand(1, 1, 1, length) > 0.2).to(device).expand(1, 3, length, length)
        torch.library.opcheck(torch.ops.rsattn.attention.default, op_arguments(tensors, mask, dropout, backend=backend))

    @LENGTHS
    def test_attention_backward(self, backend, device, length):
        tensors = heads(device, length, batch=1)
        output, _, best_head, logsumexp, _ = torch.ops.rsattn.attention(*op_arguments(tensors, backend=backend))
        torch.library.opcheck(
            torch.ops.rsattn.attention_backward.default,
            (output, output[:, 0], *tensors, None, None, output, best_head, logsumexp, 0.0, 0.25, backend),
        )

    @pytest.mark.parametrize("merge", ["tile", "slot"])
    @pytest.mark.parametrize("linked", [True, False], ids=["handle", "no_handle"])
    def test_epilogue(self, backend, device, merge, linked):
        output, _, best_head, _, handle = torch.ops.rsattn.attention(*op_arguments(heads(device), backend=backend))
        projected = torch.randn(2, 20, 48, device=device, requires_grad=True)
        output = output.detach().requires_grad_()
        handle = handle.detach().requires_grad_() if linked else None
        arguments = (projected, output, best_head, handle, merge, backend)
        torch.library.opcheck(torch.ops.rsattn.add_best_head.default, arguments)

    @pytest.mark.parametrize("merge", ["tile", "slot"])
    def test_epilogue_in_place_and_transposed(self, backend, device, merge):
        output, _, best_head, _, _ = torch.ops.rsattn.attention(*op_arguments(heads(device), backend=backend))
        projected = torch.randn(2, 20, 48, device=device)
        arguments = (projected, output, best_head, merge, backend)
        torch.library.opcheck(torch.ops.rsattn.add_best_head_.default, arguments)
        torch.library.opcheck(
            torch.ops.rsattn.best_head_gradient.default, (projected, best_head, 3, 16, merge, backend)
        )


@pytest.mark.parametrize("merge", ["tile", "slot"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradcheck(backend, device, merge, dropout):
    """Numerical derivatives in float32: a step of 0.02 balances its square against rounding over the step.

    The fast mode compares along a random direction, whose derivative sums about 140 entries' errors.
    """
    tensors = heads(device, 5, batch=1, count=2, width=4, grad=True, keys=6)
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(3)).to(device) / math.sqrt(8)

    def f(query, key, value):
        torch.manual_seed(1)
        attention = rsattn.residual_attention(query, key, value, None, dropout, backend=backend)
        projected = attention.output.transpose(1, 2).flatten(2) @ weight
        return rsattn.add_best_head(projected, attention, merge=merge)

    with pytest.warns(UserWarning, match="double precision"):
        assert torch.autograd.gradcheck(f, tensors, eps=2e-2, atol=5e-3, rtol=2e-2, fast_mode=True)


@LENGTHS
@pytest.mark.parametrize("merge", ["tile", "slot"])
@pytest.mark.parametrize("norm", ["induced", "entrywise", "confidence"])
def test_module_gradients_match_the_reference(backend, module, device, length, merge, norm):
    """The handle's way (residual gradient read beside dO) against plain autograd through the reference."""
    fused, eager = (
        same_weights(module, backend=backend, norm=norm, merge=merge),
        same_weights(module, norm=norm, merge=merge),
    )
    x = torch.randn(2, length, 48, generator=torch.Generator().manual_seed(0)).to(device)
    upstream = torch.randn(2, length, 48, generator=torch.Generator().manual_seed(1)).to(device)
    results = []
    for twin in (fused, eager):
        leaf = x.clone().requires_grad_()
        y = twin(leaf)
        y.backward(upstream)
        results.append((y.detach(), leaf.grad, *(p.grad for p in twin.parameters())))
    for got, want in zip(*results):
        # float32 sums over up to 270 tokens in two orders
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_functional_form_gives_the_same_gradient_as_the_module(backend, module, device):
    x = torch.randn(2, 20, 48, device=device)
    by_module = torch.autograd.grad(module(x).square().sum(), module.qkv.weight)[0]
    query, key, value = module.qkv(x).view(2, 20, 3, 3, 16).permute(2, 0, 3, 1, 4).unbind(0)
    attention = rsattn.residual_attention(query, key, value, backend=backend)
    assert isinstance(attention, ResidualAttention)
    projected = module.proj(attention.output.transpose(1, 2).flatten(2))
    by_hand = torch.autograd.grad(rsattn.add_best_head(projected, attention).square().sum(), module.qkv.weight)[0]
    torch.testing.assert_close(by_module, by_hand, rtol=1e-5, atol=1e-5)


def test_the_residual_gradient_is_never_materialised_per_head(module, device):
    """Between the operators' backward passes it travels as (B, N, E)."""
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "rsattn::attention_backward" in function.name():
                seen.append(tuple(args[1].shape))
            return function(*args, **(kwargs or {}))

    y = module(torch.randn(2, 20, 48, device=device))
    with Watch():
        y.sum().backward()
    assert seen == [(2, 20, 16)]


@LENGTHS
def test_no_square_tensor_in_a_training_step(backend, device, length):
    """Neither allocated by forward or backward nor saved between them: nothing comes near N x N for one head."""
    module = rsattn.ResidualSelfAttention(8, 2, attn_drop=0.1, backend=backend).to(device)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            leaves = torch.utils._pytree.tree_leaves(result)
            sizes.extend(t.untyped_storage().nbytes() for t in leaves if isinstance(t, torch.Tensor))
            return result

    x = torch.randn(1, length, 8, device=device)
    with Watch(), torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        module(x).sum().backward()
    # The packed projections, 3 N D float32 numbers, are the largest thing; P alone is 2 N N.
    assert max(sizes) <= 3 * length * 8 * 4 < 2 * length**2 * 4


def test_norms_and_best_head_carry_no_gradient(backend, device):
    attention = rsattn.residual_attention(*heads(device, grad=True), backend=backend)
    assert attention.output.requires_grad
    assert not attention.norms.requires_grad
    assert not attention.best_head.requires_grad


@pytest.mark.parametrize("what", ["attention", "epilogue"])
def test_second_derivatives_name_the_reference(backend, device, what):
    query, key, value = heads(device, grad=True)
    attention = rsattn.residual_attention(query, key, value, backend=backend)
    if what == "attention":
        y = attention.output
    else:
        projected = torch.randn(2, 20, 48, device=device, requires_grad=True)
        y = torch.ops.rsattn.add_best_head(projected, *attention[::2], None, "tile", backend)
    (first,) = torch.autograd.grad(y.square().sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        first.square().sum().backward()


class TestCompile:
    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_fullgraph_training(self, module, device, compiler):
        compiled = torch.compile(module, fullgraph=True, backend=compiler)
        x = torch.randn(2, 20, 48, device=device)
        want = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
        got = torch.autograd.grad(compiled(x).square().sum(), list(module.parameters()))
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_fullgraph_inference_in_place(self, module, device):
        x = torch.randn(2, 20, 48, device=device)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), module(x))

    @pytest.mark.parametrize("backend", ["triton", "cpu", "reference"], indirect=True)
    def test_batch_sizes_share_one_graph(self, module, backend, device):
        """torch's own rule: the first size is compiled as it is, the second for any size."""
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(same_weights(module, backend=backend), fullgraph=True, backend=counter)
        for batch in (2, 3, 5, 7):
            compiled(torch.randn(batch, 20, 48, device=device))
        assert counter.frame_count == 2


class TestModes:
    def test_no_grad_and_inference_mode(self, module, device):
        x = torch.randn(2, 20, 48, device=device)
        want = module(x).detach()
        with torch.no_grad():
            assert torch.equal(module(x), want)
        with torch.inference_mode():
            assert torch.equal(module(x), want)

    def test_activation_checkpointing_redraws_the_same_dropout(self, backend, module, device):
        dropping = same_weights(module, backend=backend, attn_drop=0.3).train()
        x = torch.randn(2, 20, 48, device=device)
        gradients = []
        for run in (dropping, lambda x: checkpoint(dropping, x, use_reentrant=False)):
            torch.manual_seed(5)
            gradients.append(torch.autograd.grad(run(x).square().sum(), list(dropping.parameters())))
        assert all(torch.equal(a, b) for a, b in zip(*gradients))

    def test_one_seed_one_mask_in_every_backend(self, backend, device):
        query, key, value = heads(device)
        value = torch.eye(20, 16, device=device).expand_as(value)
        kept = []
        for name in (backend, "reference"):
            torch.manual_seed(3)
            kept.append(rsattn.residual_attention(query, key, value, dropout_p=0.4, backend=name).output != 0)
        assert torch.equal(*kept)
        assert 0.5 < kept[0][:, :, :, :16].float().mean() < 0.7

    def test_autocast(self, backend, device):
        dtype = torch.bfloat16 if GPU else torch.float16
        query, key, value = heads(device)
        with torch.autocast(device.type, dtype):
            attention = rsattn.residual_attention(query, key, value, backend=backend)
        low = [tensor.to(dtype) for tensor in (query, key, value)]
        want = rsattn.residual_attention(*low, backend=backend)
        assert attention.output.dtype == dtype
        assert torch.equal(attention.output, want.output)
        assert attention.norms.dtype == torch.float32

    @pytest.mark.parametrize("backend", ["triton"], indirect=True)
    @pytest.mark.skipif(not GPU, reason="CUDA graphs need a GPU; run this file on one")
    def test_cuda_graph_capture(self, module, device):
        module = module.half().eval()
        static = torch.randn(2, 197, 48, device=device, dtype=torch.float16)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), torch.no_grad():
            module(static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            captured = module(static)
        for _ in range(3):
            static.copy_(torch.randn_like(static))
            graph.replay()
            with torch.no_grad():
                assert torch.equal(captured, module(static))

    @pytest.mark.parametrize("backend", ["triton"], indirect=True)
    @pytest.mark.skipif(not GPU, reason="tf32 is a GPU's; run this file on one")
    def test_tf32_only_when_allowed(self, backend, device):
        tensors = heads(device, 64, width=64)
        exact = rsattn.residual_attention(*[t.double() for t in tensors], backend="reference").output

        def error():
            return (rsattn.residual_attention(*tensors, backend=backend).output - exact).abs().max().item()

        before = torch.backends.cuda.matmul.fp32_precision
        try:
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            strict = error()
            torch.backends.cuda.matmul.fp32_precision = "tf32"
            loose = error()
        finally:
            torch.backends.cuda.matmul.fp32_precision = before
        assert strict < 1e-5 < loose


@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_only_the_owner_of_the_projection_has_it_overwritten(backend, device, merge):
    """The public function passes no handle: what it was given stays. The module's projection is its own."""
    attention, handle, chosen = attend(*heads(device), None, 0.0, None, "induced", "sample", backend)
    projected = torch.randn(2, 20, 48, device=device)
    before = projected.clone()
    apart = join(projected, attention, None, merge, chosen)
    assert torch.equal(projected, before)
    with torch.no_grad():
        in_place = join(projected, attention, handle, merge, chosen)
    assert in_place is projected
    assert torch.equal(in_place, apart)
