"""What PyTorch sees: the operators' schemas, fakes and gradients, and the straight way past them in eager mode."""

import math
from typing import ClassVar

import pytest
import torch
import torch._dynamo.testing
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

import rsattn
from rsattn.attention import attend
from rsattn.backends.dispatch import BACKENDS
from rsattn.call import Call, unpacked
from rsattn.contract import ResidualAttention
from rsattn.epilogue import join
from rsattn.module import Residual, ResidualOptions, attend_and_join

GPU = torch.cuda.is_available()
DTYPE = torch.float32
LENGTHS = pytest.mark.parametrize("length", [20, 270], ids=["whole_row", "stream"])


def heads(device, length=20, batch=2, count=3, width=16, seed=0, grad=False, keys=None):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, count, n, width) for n in (length, keys or length, keys or length)]
    return [torch.randn(s, generator=generator).to(device).requires_grad_(grad) for s in shapes]


def op_arguments(inputs, mask=None, dropout=0.0, norm="induced", scope="sample", received=False, backend="triton"):
    """The first arguments of the attention's operators."""
    seed = torch.tensor([7], device=inputs[0].device) if dropout else None
    inputs = inputs if len(inputs) == 3 else (*inputs, None, None)
    return (*inputs, mask, seed, dropout, 0.25, norm, scope, received, backend)


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


GATED = pytest.mark.parametrize("gated", [False, True], ids=["no_gate", "gate"])
BOTH = pytest.mark.parametrize("module", [False, True], ids=["no_gate", "gate"], indirect=True)


def gate(device, gated=True, grad=False):
    """A gamma for heads(), no two channels alike, or None."""
    return torch.linspace(-1.0, 2.0, 48, device=device).requires_grad_(grad) if gated else None


@pytest.fixture
def module(backend, device, request):
    """Without a gate, or as `BOTH` says."""
    torch.manual_seed(0)
    gated = getattr(request, "param", False)
    made = rsattn.ResidualSelfAttention(48, 3, backend=backend, init_values=0.0 if gated else None).to(device)
    if gated:
        made.load_state_dict({"gamma": gate(device)}, strict=False)
    return made


def same_weights(module, **changes):
    """The same module with other options."""
    options = dict(norm="induced", scope="sample", merge="tile", backend="reference", attn_drop=0.0)
    options["init_values"] = module.options.init_values
    twin = rsattn.ResidualSelfAttention(48, 3, **{**options, **changes}).to(next(module.parameters()).device)
    twin.load_state_dict(module.state_dict())
    return twin


def qkv(device, length=20, grad=False, batch=2):
    """The three of heads() in one tensor."""
    return torch.stack([t.transpose(1, 2) for t in heads(device, length, batch)], dim=2).requires_grad_(grad)


class Bare(Residual):
    """What `attend_and_join` asks of a module, and nothing else."""

    gamma = None

    def __init__(self, options):
        self.options = options


class Names(TorchDispatchMode):
    """The names of the operators that are called inside."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.name())
        return function(*args, **(kwargs or {}))

    @property
    def ours(self):
        return [name.removeprefix("rsattn::") for name in self.seen if name.startswith("rsattn::")]


FORMS = pytest.mark.parametrize("form", ["three", "packed"])


def inputs_of(form, device, length=20, grad=False, batch=2):
    return [qkv(device, length, grad, batch)] if form == "packed" else heads(device, length, batch, grad=grad)


class TestOpcheck:
    @FORMS
    @pytest.mark.parametrize(
        ("length", "dropout", "linked"),
        [(20, 0.0, True), (20, 0.2, False), (270, 0.2, True)],
        ids=["whole_row-handle", "whole_row-dropout", "stream-dropout-handle"],
    )
    def test_attention(self, backend, device, length, dropout, form, linked):
        inputs = inputs_of(form, device, length, grad=True, batch=1)
        mask = (torch.rand(1, 1, 1, length) > 0.2).to(device).expand(1, 3, length, length)
        arguments = op_arguments(inputs, mask, dropout, received=linked, backend=backend)
        torch.library.opcheck(torch.ops.rsattn.attention.default, (*arguments, linked))

    @LENGTHS
    @pytest.mark.parametrize("masked", [False, True])
    def test_attention_received(self, backend, device, length, masked):
        query, key, _ = heads(device, length, batch=1)
        mask = torch.randn(3, 1, length, device=device) if masked else None
        torch.library.opcheck(torch.ops.rsattn.attention_received.default, (query, key, mask, 0.25, backend))

    @pytest.mark.parametrize(
        ("length", "form", "learned"),
        [(20, "three", False), (20, "packed", True), (270, "packed", False), (270, "three", True)],
        ids=["whole_row-three", "whole_row-packed-learned_mask", "stream-packed", "stream-three-learned_mask"],
    )
    def test_attention_backward(self, backend, device, length, form, learned):
        mask = torch.randn(1, 3, length, length, device=device) if learned else None
        arguments = op_arguments(inputs_of(form, device, length, batch=1), mask, backend=backend)
        output, _, best_head, statistics, *_ = torch.ops.rsattn.attention(*arguments, False)
        kept, grads = (output, best_head, statistics), (output, output[:, 0])
        torch.library.opcheck(torch.ops.rsattn.attention_backward.default, (*arguments, *kept, *grads, learned))

    @pytest.mark.parametrize("merge", ["tile", "slot"])
    @pytest.mark.parametrize("linked", [True, False], ids=["handle", "no_handle"])
    @GATED
    def test_epilogue(self, backend, device, merge, linked, gated):
        arguments = op_arguments(heads(device), backend=backend)
        output, _, best_head, *_, handle = torch.ops.rsattn.attention(*arguments, True)
        projected = torch.randn(2, 20, 48, device=device, requires_grad=True)
        output = output.detach().requires_grad_()
        handle = handle.detach().requires_grad_() if linked else None
        gamma = gate(device, gated, grad=True)
        arguments = (projected, output, best_head, handle, gamma, merge, backend)
        torch.library.opcheck(torch.ops.rsattn.add_best_head.default, arguments)

    @pytest.mark.parametrize("merge", ["tile", "slot"])
    @GATED
    def test_epilogue_in_place_and_transposed(self, backend, device, merge, gated):
        arguments = op_arguments(heads(device), backend=backend)
        output, _, best_head, *_ = torch.ops.rsattn.attention(*arguments, False)
        projected = torch.randn(2, 20, 48, device=device)
        gamma = gate(device, gated)
        arguments = (projected, output, best_head, gamma, merge, backend)
        torch.library.opcheck(torch.ops.rsattn.add_best_head_.default, arguments)
        if gated:
            torch.library.opcheck(torch.ops.rsattn.gate_gradients.default, arguments)
        else:
            arguments = (projected, best_head, 3, 16, merge, backend)
            torch.library.opcheck(torch.ops.rsattn.best_head_gradient.default, arguments)


@pytest.mark.parametrize("merge", ["tile", "slot"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradcheck(backend, device, merge, dropout):
    """Numerical derivatives in float32: a step of 0.02 balances its square against rounding over the step.

    The fast mode compares along a random direction, whose derivative sums about 140 entries' errors.
    """
    tensors = heads(device, 5, batch=1, count=2, width=4, grad=True, keys=6)
    tensors.append(torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2)).to(device).requires_grad_())
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(3)).to(device) / math.sqrt(8)

    def f(query, key, value, mask):
        torch.manual_seed(1)
        attention = rsattn.residual_attention(query, key, value, mask, dropout, backend=backend)
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


@BOTH
def test_functional_form_gives_the_same_gradient_as_the_module(backend, module, device):
    x = torch.randn(2, 20, 48, device=device)
    wanted = [module.qkv.weight, *([] if module.gamma is None else [module.gamma])]
    by_module = torch.autograd.grad(module(x).square().sum(), wanted)
    inputs = unpacked(module.qkv(x).view(2, 20, 3, 3, 16))
    attention = rsattn.residual_attention(*inputs, backend=backend)
    assert isinstance(attention, ResidualAttention)
    projected = module.proj(attention.output.transpose(1, 2).flatten(2))
    joined = rsattn.add_best_head(projected, attention, gamma=module.gamma)
    by_hand = torch.autograd.grad(joined.square().sum(), wanted)
    for one, other in zip(by_module, by_hand, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@BOTH
def test_the_residual_gradient_is_never_materialised_per_head(backend, module, device, monkeypatch):
    """Between the two backward passes it travels as (B, N, E)."""
    real, seen = BACKENDS[backend].backward, []

    def backward(call, forward, grad_output, grad_best):
        seen.append((tuple(grad_output.shape), tuple(grad_best.shape)))
        return real(call, forward, grad_output, grad_best)

    monkeypatch.setattr(BACKENDS[backend], "backward", backward)
    module(torch.randn(2, 20, 48, device=device)).sum().backward()
    assert seen == [((2, 3, 20, 16), (2, 20, 16))]


@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_a_residual_and_nothing_else(backend, device, merge):
    """A projection that uses nothing of the attention: what comes back is the residual's gradient alone."""
    gradients = []
    for name in (backend, "reference"):
        inputs = heads(device, grad=True)
        bare = Bare(ResidualOptions(merge=merge, backend=name))
        y = attend_and_join(bare.options.call(*inputs), lambda joined: torch.zeros_like(joined).detach(), bare)
        gradients.append(torch.autograd.grad(y.square().sum(), inputs))
    for got, want in zip(*gradients):
        # float32 sums over 20 keys in two orders
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@LENGTHS
def test_no_square_tensor_in_a_training_step(backend, device, length):
    """Neither allocated by forward or backward nor saved between them: nothing comes near N x N for one head."""
    module = rsattn.ResidualSelfAttention(8, 2, attn_drop=0.1, backend=backend).to(device)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            leaves = tree_leaves(result)
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


class TestWays:
    """An eager call goes straight to its backend; whatever watches or traces PyTorch sees the operators."""

    def operators(self, module):
        """Of a training step, in order."""
        back = "best_head_gradient" if module.gamma is None else "gate_gradients"
        return ["attention", "add_best_head", back, "attention_backward"]

    @pytest.fixture
    def x(self, device):
        return torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(0)).to(device)

    def step(self, module, x):
        """The output, and every parameter's gradient."""
        y = module(x)
        return [y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))]

    def assert_same(self, got, want):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))

    @BOTH
    def test_eager_calls_no_operator(self, module, x):
        with torch.profiler.profile() as profile:
            self.step(module, x)
            with torch.no_grad():
                module(x)
        called = {event.name for event in profile.events()}
        assert "aten::addmm" in called
        assert not any(name.startswith("rsattn::") for name in called)

    @BOTH
    def test_a_profiler_would_have_seen_them(self, module, x):
        """The same profiler, and a mode that makes them be called."""
        with torch.profiler.profile() as profile, Names():
            self.step(module, x)
        assert {f"rsattn::{name}" for name in self.operators(module)} <= {event.name for event in profile.events()}

    @BOTH
    def test_a_dispatch_mode(self, module, x):
        want = self.step(module, x)
        with Names() as names:
            got = self.step(module, x)
        self.assert_same(got, want)
        assert names.ours == self.operators(module)
        with torch.no_grad(), Names() as names:
            self.assert_same([module(x)], want[:1])
        assert names.ours == ["attention", "add_best_head_"]

    @BOTH
    def test_a_mode_around_the_backward_pass_only(self, module, x):
        y = module(x)
        with Names() as names:
            y.square().sum().backward()
        assert names.ours == self.operators(module)[2:]

    @pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
    @BOTH
    def test_fake_tensors(self, backend, module, x, inside, monkeypatch):
        """Shapes, dtypes and strides without a kernel, inside the mode and with tensors that left it."""
        want = self.step(module, x)
        for function in ("forward", "backward", "add_best_head", "best_head_gradient", "gate_gradients"):
            monkeypatch.setattr(BACKENDS[backend], function, None)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = mode.from_tensor(x)
            weights = {name: mode.from_tensor(p) for name, p in module.named_parameters()}
            if inside:
                got = self.fake_step(module, weights, fake)
        if not inside:
            got = self.fake_step(module, weights, fake)

        def describe(tensors):
            return [(t.shape, t.stride(), t.dtype) for t in tensors]

        assert describe(got) == describe(want)

    def fake_step(self, module, weights, x):
        y = torch.func.functional_call(module, weights, x)
        return [y, *torch.autograd.grad(y.square().sum(), list(weights.values()))]

    @BOTH
    def test_compile(self, module, x):
        seen = []

        def capture(graph, inputs):
            seen.append([str(node.target) for node in graph.graph.nodes])
            return make_boxed_func(graph.forward)

        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend=aot_autograd(fw_compiler=capture))
        got, want = self.step(compiled, x), self.step(module, x)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        forward, backward = ({target.removeprefix("rsattn.") for target in targets} for targets in seen)
        names = [f"{name}.default" for name in self.operators(module)]
        assert set(names[:2]) <= forward
        assert set(names[2:]) <= backward

    @pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
    @BOTH
    def test_export(self, module, x, grad):
        with torch.set_grad_enabled(grad):
            program = torch.export.export(module, (x,))
            want = module(x)
        targets = {str(node.target) for node in program.graph.nodes}
        joined = "rsattn.add_best_head.default" if grad else "rsattn.add_best_head_.default"
        assert {"rsattn.attention.default", joined} <= targets
        assert torch.equal(program.module()(x), want)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
    def test_a_torchscript_trace(self, backend, device):
        inputs = heads(device, grad=True)

        def output(query, key, value):
            return rsattn.residual_attention(query, key, value, backend=backend).output

        traced = torch.jit.trace(output, tuple(inputs))
        assert "rsattn::attention" in str(traced.graph)
        got, want = traced(*inputs), output(*inputs)
        assert torch.equal(got, want)
        grads = [torch.autograd.grad(y.square().sum(), inputs) for y in (got, want)]
        self.assert_same(*grads)

    def test_a_tensor_subclass(self, backend, device):
        inputs = heads(device, grad=True)
        want = rsattn.residual_attention(*inputs, backend=backend)
        want_grads = torch.autograd.grad(want.output.square().sum(), inputs)
        wrapped = [Wrapped(tensor.detach()).requires_grad_() for tensor in inputs]
        Wrapped.seen.clear()
        got = rsattn.residual_attention(*wrapped, backend=backend)
        grads = torch.autograd.grad(got.output.square().sum(), wrapped)
        assert {"rsattn::attention", "rsattn::attention_backward"} <= set(Wrapped.seen)
        self.assert_same([tensor.inner for tensor in (*got[:3], *grads)], [*want[:3], *want_grads])

    def test_a_mask_that_is_a_tensor_subclass(self, backend, device):
        """One is enough."""
        inputs = heads(device, grad=True)
        mask = torch.randn(2, 1, 20, 20, generator=torch.Generator().manual_seed(1)).to(device)
        want = rsattn.residual_attention(*inputs, mask, backend=backend)
        want_grads = torch.autograd.grad(want.output.square().sum(), inputs)
        got = rsattn.residual_attention(*inputs, Wrapped(mask), backend=backend)
        grads = torch.autograd.grad(got.output.square().sum(), inputs)
        self.assert_same([tensor.inner for tensor in (*got[:3], *grads)], [*want[:3], *want_grads])

    @pytest.mark.parametrize("which", ["query", "key", "value", "mask", "packed", "gradient"])
    def test_a_negative_view(self, backend, device, which):
        """The imaginary part of a conjugate is memory of the other sign, and a bit that says so."""
        arguments = dict(zip(("query", "key", "value"), heads(device)))
        arguments["mask"] = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1)).to(device)
        arguments["packed"] = qkv(device)
        arguments["gradient"] = torch.randn(2, 3, 20, 16, generator=torch.Generator().manual_seed(2)).to(device)

        def negative(tensor):
            view = torch.imag(torch.complex(torch.zeros_like(tensor), -tensor).conj())
            assert view.is_neg()
            assert torch.equal(view, tensor)
            return view

        def run(query, key, value, mask, packed, gradient):
            leaves = [t.detach().requires_grad_() for t in ([packed] if which == "packed" else [query, key, value])]
            result = attend(Call(tuple(leaves), mask), backend).result
            return [*result[:3], *torch.autograd.grad(result.output, leaves, gradient)]

        want = run(**arguments)
        self.assert_same(run(**arguments | {which: negative(arguments[which])}), want)

    def test_a_negative_projection(self, backend, device):
        attended = attend(Call(tuple(heads(device, grad=True))), backend, linked=True)
        projected = torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(1)).to(device)
        negative = torch.imag(torch.complex(torch.zeros_like(projected), -projected).conj())
        assert torch.equal(join(negative, attended, "tile", None), join(projected, attended, "tile", None))


class Wrapped(torch.Tensor):
    """A tensor subclass that lists the operators it meets."""

    seen: ClassVar[list[str]] = []
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        same = dict(strides=inner.stride(), dtype=inner.dtype, device=inner.device)
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **same)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function.name())
        args, kwargs = tree_map(lambda t: t.inner if isinstance(t, cls) else t, (args, kwargs or {}))
        return tree_map(lambda t: cls(t) if isinstance(t, torch.Tensor) else t, function(*args, **kwargs))


class TestAutograd:
    @pytest.mark.parametrize("way", ["straight", "operators"])
    @pytest.mark.parametrize("what", ["attention", "packed", "epilogue"])
    def test_second_derivatives_name_the_reference(self, backend, device, what, way):
        inputs = inputs_of("packed" if what == "packed" else "three", device, grad=True)

        def first():
            attended = attend(Call(tuple(inputs)), backend, linked=True)
            projected = torch.zeros(2, 20, 48, device=device)
            y = join(projected, attended, "tile", None) if what == "epilogue" else attended.result.output
            return torch.autograd.grad(y.square().sum(), inputs, create_graph=True)

        if way == "straight":
            grads = first()
        else:
            with Names():
                grads = first()
        with pytest.raises(NotImplementedError, match="backend='reference'"):
            grads[0].square().sum().backward()

    def test_the_first_derivative_is_the_same_with_create_graph(self, backend, device):
        grads = []
        for create in (False, True):
            inputs = heads(device, grad=True)
            output = rsattn.residual_attention(*inputs, backend=backend).output
            grads.append(torch.autograd.grad(output.square().sum(), inputs, create_graph=create))
        assert all(torch.equal(a, b) for a, b in zip(*grads))

    @BOTH
    def test_saved_tensors_pass_through_hooks(self, module, device):
        """As for torch.autograd.graph.save_on_cpu: what is saved may be put elsewhere and brought back."""
        x, packed_shapes = torch.randn(2, 20, 48, device=device), []

        def pack(tensor):
            packed_shapes.append(tuple(tensor.shape))
            return tensor.clone()

        want = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor.clone()):
            loss = module(x).square().sum()
        got = torch.autograd.grad(loss, list(module.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(got, want))
        # The projections in one piece, the output, the rows' statistics and the best head; each once. A gate's gradient
        # needs the output too.
        for shape, times in (
            ((2, 20, 3, 3, 16), 1),
            ((2, 3, 20, 16), 1 if module.gamma is None else 2),
            ((2, 3, 2, 20), 1),
        ):
            assert packed_shapes.count(shape) == times

    @FORMS
    @pytest.mark.parametrize("changed", ["input", "output", "best_head"])
    def test_what_is_changed_before_the_backward_pass_is_noticed(self, backend, device, form, changed):
        inputs = [leaf * 1.0 for leaf in inputs_of(form, device, grad=True)]
        result = attend(Call(tuple(inputs)), backend).result
        loss = result.output.sum()
        {"input": inputs[-1], "output": result.output, "best_head": result.best_head}[changed].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_norms_may_be_changed_before_the_backward_pass(self, backend, device):
        """No gradient depends on them."""
        inputs = heads(device, grad=True)
        result = rsattn.residual_attention(*inputs, backend=backend)
        result.norms.zero_()
        result.output.sum().backward()
        assert all(tensor.grad is not None for tensor in inputs)

    @pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's: the operator runs once for each
    @FORMS
    @pytest.mark.parametrize("merge", ["tile", "slot"])
    def test_a_batch_of_gradients(self, backend, device, form, merge):
        """`is_grads_batched`, and vmap over a backward pass: each gradient by itself."""
        inputs = inputs_of(form, device, grad=True)
        attended = attend(Call(tuple(inputs)), backend, linked=True)
        projected = torch.randn(2, 20, 48, device=device, requires_grad=True)
        y = join(projected, attended, merge, None)
        upstream = torch.randn(3, 2, 20, 48, generator=torch.Generator().manual_seed(1)).to(device)

        def gradients(grad, **options):
            return torch.autograd.grad(y, (projected, *inputs), grad, retain_graph=True, **options)

        one_by_one = [gradients(grad) for grad in upstream]
        for together in (gradients(upstream, is_grads_batched=True), torch.func.vmap(gradients)(upstream)):
            for got, *want in zip(together, *one_by_one, strict=True):
                assert torch.equal(got, torch.stack(want))

    def test_a_frozen_attention_builds_no_gradient(self, backend, device, monkeypatch):
        """Only the projection learns: nothing is computed for heads whose gradient nobody wants."""
        monkeypatch.setattr(BACKENDS[backend], "best_head_gradient", None)
        monkeypatch.setattr(BACKENDS[backend], "backward", None)
        attended = attend(Call(tuple(heads(device))), backend, linked=True)
        projected = torch.randn(2, 20, 48, device=device, requires_grad=True)
        with torch.profiler.profile() as profile:
            join(projected, attended, "tile", None).sum().backward()
        assert torch.equal(projected.grad, torch.ones_like(projected))
        assert "aten::where" not in {event.name for event in profile.events()}

    def test_a_second_backward_pass_needs_the_graph_kept(self, backend, device):
        inputs = heads(device, grad=True)
        loss = rsattn.residual_attention(*inputs, backend=backend).output.sum()
        kept = torch.autograd.grad(loss, inputs, retain_graph=True)
        again = torch.autograd.grad(loss, inputs)
        assert all(torch.equal(a, b) for a, b in zip(kept, again))
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()

    @pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
    def test_one_input_alone_may_want_a_gradient(self, backend, device, which):
        inputs = heads(device, grad=True)
        want = torch.autograd.grad(rsattn.residual_attention(*inputs, backend=backend).output.sum(), inputs)
        alone = heads(device)
        alone[which].requires_grad_()
        rsattn.residual_attention(*alone, backend=backend).output.sum().backward()
        assert torch.equal(alone[which].grad, want[which])
        assert all(tensor.grad is None for tensor in alone if tensor is not alone[which])


class TestHandle:
    """The best head's output in the autograd graph: there for who joins it, and where a gradient is recorded."""

    def attended(self, device, backend, **options):
        return attend(Call(tuple(heads(device, grad=True))), backend, **options)

    @pytest.mark.parametrize("way", ["straight", "operators"])
    def test_one_number_that_stands_for_a_head(self, backend, device, way):
        if way == "straight":
            handle = self.attended(device, backend, linked=True).handle
        else:
            with Names():
                handle = self.attended(device, backend, linked=True).handle
        assert handle.shape == (2, 20, 16)
        assert handle.requires_grad
        assert handle.untyped_storage().nbytes() == handle.element_size()

    def test_none_for_who_does_not_join(self, backend, device):
        assert self.attended(device, backend).handle is None
        with Names():
            assert self.attended(device, backend).handle is None

    def test_none_without_gradients(self, backend, device):
        with torch.no_grad():
            assert self.attended(device, backend, linked=True).handle is None
        assert attend(Call(tuple(heads(device))), backend, linked=True).handle is None

    def test_none_from_the_reference(self):
        assert self.attended(torch.device("cpu"), "reference", linked=True).handle is None

    def test_says_who_computed_it(self, backend, device):
        assert self.attended(device, backend).backend is BACKENDS[backend]


class TestCompile:
    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    @BOTH
    def test_fullgraph_training(self, module, device, compiler):
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend=compiler)
        x = torch.randn(2, 20, 48, device=device)
        want = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
        got = torch.autograd.grad(compiled(x).square().sum(), list(module.parameters()))
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    @BOTH
    def test_fullgraph_inference_in_place(self, module, device):
        x = torch.randn(2, 20, 48, device=device)
        torch._dynamo.reset()
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
    @BOTH
    def test_no_grad_and_inference_mode(self, module, device):
        x = torch.randn(2, 20, 48, device=device)
        want = module(x).detach()
        with torch.no_grad():
            assert torch.equal(module(x), want)
        with torch.inference_mode():
            assert torch.equal(module(x), want)

    @BOTH
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
@GATED
def test_only_the_owner_of_the_projection_has_it_overwritten(backend, device, merge, gated):
    """The public function passes no handle: what it was given stays. The module's projection is its own."""
    gamma = gate(device, gated)
    attended = attend(Call(tuple(heads(device))), backend, linked=True)
    projected = torch.randn(2, 20, 48, device=device, requires_grad=True)
    before = projected.clone()
    for apart in (
        join(projected, attended, merge, gamma),
        rsattn.add_best_head(projected, attended.result, merge=merge, gamma=gamma),
    ):
        assert torch.equal(projected, before)
        assert apart is not projected
    projected = projected.detach()
    apart = rsattn.add_best_head(projected, attended.result, merge=merge, gamma=gamma)
    assert torch.equal(projected, before)
    in_place = join(projected, attended, merge, gamma)
    assert in_place is projected
    if gated:  # the public function takes the fastest backend, whose product and sum may be rounded once, not twice
        torch.testing.assert_close(in_place, apart, rtol=2**-22, atol=2**-22)
    else:
        assert torch.equal(in_place, apart)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"gamma": torch.ones(11)}, "gamma must have one number for each of the 12 channels"),
        ({"best_head": torch.zeros(2, dtype=torch.int32)}, "best_head must be int64"),
        ({"best_head": torch.zeros(1, dtype=torch.int64)}, "one for each of the 2 samples"),
        ({"projected": torch.ones(2, 6, 12)}, "must share batch and length"),
        ({"projected": torch.ones(2, 5, 10)}, "10 is not a multiple of 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("operator", ["add_best_head", "add_best_head_", "gate_gradients"])
def test_operators_of_the_residual_refuse_what_does_not_fit(operator, changed, words):
    """Called by anybody, with what a kernel would read beyond its tensors for."""
    operands = {
        "projected": torch.ones(2, 5, 12),
        "output": torch.ones(2, 3, 5, 4),
        "best_head": torch.zeros(2, dtype=torch.int64),
        "gamma": torch.ones(12),
    } | changed
    projected, output, best_head, gamma = operands.values()
    handle = (None,) if operator == "add_best_head" else ()
    with pytest.raises(ValueError, match=words):
        getattr(torch.ops.rsattn, operator)(projected, output, best_head, *handle, gamma, "tile", "cpu")


class TestForwardMode:
    """Kernels have no forward-mode derivative: the reference has one, and is taken."""

    @BOTH
    def test_a_jacobian(self, module, device):
        x = torch.randn(1, 5, 48, device=device)
        free = same_weights(module, backend=None)

        def first(x):
            return free(x)[..., :3]

        got = torch.autograd.functional.jacobian(first, x, strategy="forward-mode", vectorize=True)
        want = torch.autograd.functional.jacobian(first, x)
        assert want.abs().max() > 0.01
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)

    @GATED
    def test_a_tangent_that_joins_at_the_projection(self, backend, device, gated):
        attention = rsattn.residual_attention(*heads(device), backend=backend)
        projected, gamma = torch.randn(2, 20, 48, device=device), gate(device, gated)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(projected, torch.ones_like(projected))
            joined = rsattn.add_best_head(dual, attention, gamma=gamma)
            tangent = torch.autograd.forward_ad.unpack_dual(joined).tangent
        assert torch.equal(tangent, torch.ones_like(projected))

    def test_a_kernel_by_name(self, backend, device):
        query, key, value = heads(device)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(query, query)
            with pytest.raises(rsattn.BackendError, match="no forward-mode derivative"):
                rsattn.residual_attention(dual, key, value, backend=backend)


def test_an_in_place_operator_is_noticed(backend, device):
    """By the version that autograd compares before it uses what it has saved."""
    attention = rsattn.residual_attention(*heads(device), backend=backend)
    weight = torch.ones(2, 20, 48, device=device, requires_grad=True)
    projected = torch.randn(2, 20, 48, device=device)
    loss = (weight * projected).sum()
    torch.ops.rsattn.add_best_head_(projected, attention.output, attention.best_head, None, "tile", backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
