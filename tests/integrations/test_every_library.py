"""What holds for every library: right numbers, its own weights, an exact way back, and all a module can be asked."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import pytest
import torch
from case import DIM, Case
from models import COPIES, anatomy, assert_same_state, copied, state
from oracle import naive_merge
from watch import calls_of, first

import rsattn
from rsattn.call import Call

OPTIONS = [
    ("induced", "sample", "tile"),
    ("confidence", "batch", "slot"),
    ("entrywise", "sample", "slot"),
    ("induced", "batch", "tile"),
]


@pytest.mark.parametrize(("norm", "scope", "merge"), OPTIONS, ids=["-".join(o) for o in OPTIONS])
def test_the_output_is_the_librarys_plus_the_best_head(case: Case, norm: Any, scope: Any, merge: Any) -> None:
    """Module by module in float64: what the library's attention gave, plus the head its probabilities rank first."""
    model = case.model(torch.float64)
    calls = calls_of(model, case.attentions, lambda plain: case.run(plain, torch.float64))
    assert [call.name for call in calls] == case.attentions
    winners = set()
    with rsattn.patch(model, norm=norm, scope=scope, merge=merge, init_values=None) as patched, torch.no_grad():
        assert list(patched.modules) == case.attentions
        for call in calls:
            best = call.seen.best(norm, scope)
            winners |= set(best)
            attention = model.get_submodule(call.name)
            plain = case.as_tokens(attention, call.output)
            expected = naive_merge(plain, call.seen.output, best, merge)
            got = case.as_tokens(attention, first(attention(*call.args, **call.kwargs)))
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)  # float64 sums of some 100 numbers
            assert not torch.allclose(got, plain, atol=1e-3)
    assert scope == "batch" or norm == "entrywise" or winners != {0}  # otherwise nothing was shown


def test_the_whole_model_in_float32(case: Case) -> None:
    """The backend taken by itself (compiled where there is one) against float64."""
    single, double = case.model(), case.model(torch.float64)
    rsattn.patch(single, init_values=None)
    rsattn.patch(double, init_values=None)
    with torch.inference_mode():
        got, want = case.run(single), case.run(double, torch.float64)
    # Two blocks of float32, values of size 1 to 10; which head won is far from a tie in these models.
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def test_weights_and_the_way_back(case: Case) -> None:
    model = case.model()
    with torch.no_grad():
        plain = case.run(model)
    structure, before = anatomy(model), state(model)
    patched = rsattn.patch(model, init_values=None)
    assert_same_state(model, before)
    with torch.no_grad():
        assert not torch.allclose(case.run(model), plain)
    patched.undo()
    assert anatomy(model) == structure
    assert_same_state(model, before)
    with torch.no_grad():
        assert torch.equal(case.run(model), plain)


def test_what_hooks_see_stays(case: Case) -> None:
    """The residual is never added to a tensor that a hook on a layer of the attention kept."""
    model, kept = case.model(), []

    def keep(layer: torch.nn.Module, given: Any, made: Any) -> None:
        if isinstance(made, torch.Tensor):
            kept.append((made, made.clone()))

    patched = rsattn.patch(model, init_values=None)
    with torch.no_grad():
        expected = case.run(model)
    for module in patched.modules.values():
        for layer in module.modules():
            if isinstance(layer, torch.nn.ReLU):
                layer.inplace = False  # of a library's own network
            if layer is not module:
                layer.register_forward_hook(keep)
    with torch.no_grad():
        assert torch.equal(case.run(model), expected)
    assert kept
    assert all(torch.equal(seen, before) for seen, before in kept)


def test_checkpoints_go_both_ways(case: Case) -> None:
    trained, fresh = case.model(), case.model()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    rsattn.patch(fresh, init_values=None)
    fresh.load_state_dict(trained.state_dict())
    twin = case.model()
    twin.load_state_dict(fresh.state_dict())
    with torch.no_grad():
        assert torch.equal(case.run(twin), case.run(trained))


@pytest.mark.parametrize("how", COPIES)
def test_a_patched_model_can_be_copied(case: Case, how: str) -> None:
    model = case.model()
    patched = rsattn.patch(model, norm="confidence", init_values=None)
    with torch.no_grad():
        expected = case.run(model)
    twin = copied(model, how)
    patched.undo()  # the copy stays patched
    with torch.no_grad(), rsattn.record(twin) as seen:
        assert torch.equal(case.run(twin), expected)
    assert list(seen.blocks) == case.attentions


def noted_calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls that patched modules make from now on, in order."""
    calls = []
    attend = rsattn.module.attend

    def spy(call: Call, backend: str | None, linked: bool = False) -> Any:
        calls.append(call)
        return attend(call, backend, linked)

    monkeypatch.setattr(rsattn.module, "attend", spy)
    return calls


def test_one_projection_gets_one_gradient(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a single layer makes Q, K and V, they stay packed, and autograd stacks and copies nothing."""
    model = case.model()
    rsattn.patch(model, init_values=None)
    calls = noted_calls(monkeypatch)
    with torch.no_grad():
        case.run(model)
    assert {len(call.inputs) for call in calls} == {1 if case.packed else 3}


def test_dropout_in_training_only(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = case.model()
    rsattn.patch(model, init_values=None)
    calls = noted_calls(monkeypatch)
    with torch.no_grad():
        calm = case.run(model)
        assert torch.equal(case.run(model), calm)
        model.train()
        torch.manual_seed(1)
        noisy = case.run(model)
        torch.manual_seed(1)
        assert torch.equal(case.run(model), noisy)
        torch.manual_seed(2)
        assert not torch.equal(case.run(model), noisy)
        model.eval()
        assert torch.equal(case.run(model), calm)
    blocks = len(case.attentions)
    assert [call.dropout_p for call in calls] == [0.0] * 2 * blocks + [case.dropout] * 3 * blocks + [0.0] * blocks


def test_every_parameter_gets_its_gradient(case: Case) -> None:
    """The same parameters as in the plain model, and the numbers of the float64 reference."""
    plain, single, double = case.model(), case.model(), case.model(torch.float64)
    rsattn.patch(single, init_values=None)
    rsattn.patch(double, init_values=None)
    for model, dtype in ((plain, torch.float32), (single, torch.float32), (double, torch.float64)):
        case.run(model, dtype).square().sum().backward()
    reached = {name for name, p in plain.named_parameters() if p.grad is not None}
    assert {name for name, p in single.named_parameters() if p.grad is not None} == reached
    # float32 through two blocks. A bias of K has gradient 0 in exact arithmetic, so errors are of the model's largest.
    largest = max(float(p.grad.abs().max()) for p in double.parameters() if p.grad is not None)
    for (name, one), other in zip(single.named_parameters(), double.parameters()):
        if name in reached:
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("first_of_all", ["patch", "to"])
def test_another_dtype_before_and_after(case: Case, first_of_all: str) -> None:
    model, expected = case.model(), case.model(torch.float64)
    rsattn.patch(expected, init_values=None)
    if first_of_all == "to":
        model.to(torch.float64)
    rsattn.patch(model, init_values=None)
    model.to("cpu", torch.float64)
    with torch.no_grad():
        # Weights rounded to float32 once on both sides: the same numbers.
        assert torch.equal(case.run(model, torch.float64), case.run(expected, torch.float64))


@pytest.mark.parametrize("first_of_all", ["patch", "to"])
def test_on_a_gpu(gpu_case: Case, first_of_all: str) -> None:
    """Patched before it is moved there, or after: the CPU's float64 numbers."""
    case, model, exact = gpu_case, gpu_case.model(), gpu_case.model(torch.float64)
    rsattn.patch(exact, init_values=None)
    if first_of_all == "to":
        model.to("cuda")
    rsattn.patch(model, init_values=None)
    model.to("cuda")
    inputs = case.inputs(torch.float32)
    moved = tuple(t.cuda() for t in inputs) if isinstance(inputs, tuple) else inputs.cuda()
    exactly = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # of the first layer, a convolution
    with torch.inference_mode(), exactly, torch.device("cuda"):  # a mask that `call` makes belongs there too
        got = case.call(model, moved)
    with torch.inference_mode():
        want = case.run(exact, torch.float64)
    torch.testing.assert_close(got.double().cpu(), want, rtol=1e-4, atol=1e-4)  # as on the CPU


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(case: Case, dtype: torch.dtype) -> None:
    model = case.model()
    rsattn.patch(model, init_values=None)
    with torch.no_grad():
        expected = case.run(model)
        with torch.autocast("cpu", dtype=dtype), rsattn.record(model) as seen:
            got = case.run(model)
    assert seen.norms.isfinite().all()
    # Another head may win in low precision, so the whole is compared loosely: the same image, not the same digits.
    cosine = torch.nn.functional.cosine_similarity(got.float().flatten(), expected.flatten(), dim=0)
    assert cosine > 0.9


def test_recording(case: Case) -> None:
    model = case.model(torch.float64)
    calls = calls_of(model, case.attentions[:1], lambda plain: case.run(plain, torch.float64))
    rsattn.patch(model, init_values=None)
    with rsattn.record(model, received=True) as seen, torch.no_grad():
        case.run(model, torch.float64)
    assert list(seen.blocks) == case.attentions
    assert seen.norms.shape == (len(case.attentions), *calls[0].seen.probs.shape[:2])
    want = calls[0].seen.probs.sum(-2)
    torch.testing.assert_close(seen.received[0].double(), want, rtol=1e-5, atol=1e-5)  # kept in float32
    torch.testing.assert_close(seen.norms[0].double(), want.amax(-1), rtol=1e-5, atol=1e-5)  # norms are float32
    assert seen.best_head[0].tolist() == calls[0].seen.best("induced", "sample")


def test_some_blocks_only(case: Case) -> None:
    last = len(case.attentions) - 1
    for blocks in ([last], lambda name, module: name == case.attentions[last]):
        model = case.model()
        structure = anatomy(model)
        with rsattn.patch(model, blocks=blocks, init_values=None) as patched:
            assert list(patched.modules) == [case.attentions[last]]
            case.run(model)
        assert anatomy(model) == structure


def test_a_forward_of_the_instances_own_is_refused(case: Case) -> None:
    """As accelerate's hooks leave it: the class would be swapped, and its forward never called."""
    model = case.model()
    attention = model.get_submodule(case.attentions[-1])
    attention.forward = partial(attention.forward)
    structure = anatomy(model)
    shapes = [{}, {"num_heads": 2, "head_dim": DIM}] if case.fresh else [{}]
    for shape in shapes:
        with pytest.raises(ValueError, match=rf"{case.attentions[-1]} .*: `forward` is set on the instance"):
            rsattn.patch(model, **shape)
        assert anatomy(model) == structure
    del attention.forward
    assert len(rsattn.patch(model).modules) == len(case.attentions)


def test_an_attribute_of_the_users_own_is_refused_and_stays(case: Case) -> None:
    model = case.model()
    attention = model.get_submodule(case.attentions[0])
    attention.options = "mine"
    with pytest.raises(ValueError, match=rf"{case.attentions[0]} .*has an attribute `options` already"):
        rsattn.patch(model)
    assert attention.options == "mine"
    del attention.options
    assert len(rsattn.patch(model).modules) == len(case.attentions)


@pytest.mark.parametrize("how", COPIES)
def test_a_patch_that_was_copied_with_its_model_undoes_the_copy(case: Case, how: str) -> None:
    model = case.model()
    with torch.no_grad():
        plain = case.run(model)
        shapes = [{}, {"num_heads": 2, "head_dim": DIM}] if case.fresh else [{}]
        for shape in shapes:
            model.patch = rsattn.patch(model, init_values=None, **shape)
            twin = copied(model, how)
            twin.patch.undo()
            assert torch.equal(case.run(twin), plain)
            assert not torch.equal(case.run(model), plain)
            model.patch.undo()


def test_fresh_heads(case: Case) -> None:
    model = case.model()
    structure, before = anatomy(model), state(model)
    if not case.fresh:
        with pytest.raises(ValueError, match=r"cannot patch\n  .*newly initialized attention"):
            rsattn.patch(model, num_heads=2, head_dim=DIM)
    else:
        with torch.no_grad():
            plain = case.run(model)
        patched = rsattn.patch(model, num_heads=2, head_dim=DIM)
        assert list(patched.modules) == case.attentions
        for module in patched.modules.values():
            assert isinstance(module, rsattn.ResidualSelfAttention)
            assert (module.num_heads, module.head_dim, module.attn_drop) == (2, DIM, case.dropout)
            assert not module.training
        assert case.run(model).shape == plain.shape
        case.run(model).sum().backward()
        assert all(p.grad is not None for module in patched.modules.values() for p in module.parameters())
        twin = pickle.loads(pickle.dumps(model))
        assert torch.equal(case.run(twin), case.run(model))
        patched.undo()
        with torch.no_grad():
            assert torch.equal(case.run(model), plain)
    assert anatomy(model) == structure
    assert_same_state(model, before)


def test_what_happens_to_fresh_heads_reaches_the_old_ones(fresh_case: Case) -> None:
    """Mode and dtype when they come back; hooks on the module meanwhile and after."""
    case, model, called = fresh_case, fresh_case.model(), []
    attention, pulled = model.get_submodule(case.attentions[0]), []
    attention.register_forward_hook(lambda module, args, output: called.append(module))
    attention.register_full_backward_hook(lambda module, given, taken: pulled.append("registered before"))
    patched = rsattn.patch(model, num_heads=2, head_dim=DIM)
    case.run(model).sum().backward()
    assert pulled == ["registered before"]
    attention.register_full_backward_pre_hook(lambda module, given: pulled.append("registered meanwhile"))
    with torch.no_grad():
        case.run(model)
        model.train().to(torch.float64)
        patched.undo()
        assert all(module.training for module in model.modules())
        torch.manual_seed(0)
        assert not torch.equal(case.run(model, torch.float64), case.run(model.eval(), torch.float64))  # dropout was on
    case.run(model, torch.float64).sum().backward()
    assert pulled[1:] == ["registered meanwhile", "registered before"]
    assert len(called) == 5
