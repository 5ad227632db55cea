"""The gate in every library: at zero it is not there, it learns from there, and it comes and goes with the patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from case import DIM, Case
from library_torch import encoder
from models import COPIES, anatomy, assert_same_state, copied, state
from oracle import naive_merge, normal
from torch import Tensor, nn
from watch import Call, calls_of, first

import rsattn
from rsattn.attention import Attended

SINGLE, DOUBLE = torch.float32, torch.float64


class LeftOut(rsattn.ResidualOptions):
    """The same attention and ranking, and no residual."""

    def join(self, projected: Tensor, attended: Attended, gamma: Tensor | None) -> Tensor:
        return projected


def gate_names(case: Case) -> list[str]:
    return [f"{name}.gamma" for name in case.attentions]


def gates(patched: rsattn.Patch) -> list[nn.Parameter]:
    """Of the patched modules, in order."""
    return [module.gamma for module in patched.modules.values()]  # type: ignore[misc]


@torch.no_grad()
def open_gates(patched: rsattn.Patch) -> None:
    """To numbers between -1 and 1, no two channels alike."""
    for number, gate in enumerate(gates(patched)):
        gate.copy_(normal(*gate.shape, seed=70 + number).tanh())


def gradients(case: Case, model: nn.Module, dtype: torch.dtype = SINGLE) -> dict[str, Tensor]:
    model.zero_grad()
    case.run(model, dtype).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def seen_calls(case: Case) -> list[Call]:
    """What the plain model's attentions compute in float64; a gate of zero changes nothing of it."""
    return calls_of(case.model(DOUBLE), case.attentions, lambda plain: case.run(plain, DOUBLE))


# A gate of zero.


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_gate_of_zero_leaves_every_bit(case: Case, training: bool) -> None:
    """Outputs and gradients are those of the same kernels without a residual, dropout included."""
    gated, without = case.model(training=training), case.model(training=training)
    rsattn.patch(gated)
    for module in rsattn.patch(without).modules.values():
        module.options = LeftOut()  # type: ignore[assignment]
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        results = []
        for model in (gated, without):
            torch.manual_seed(1)
            with context():
                results.append(case.run(model))
        assert torch.equal(*results)
        assert results[0].isfinite().all()
    grads = []
    for model in (gated, without):
        torch.manual_seed(2)
        grads.append(gradients(case, model))
    assert set(grads[0]) == {*grads[1], *gate_names(case)}
    for name, grad in grads[1].items():
        assert torch.equal(grads[0][name], grad), name


def drop_everywhere_but_in_attention(case: Case, model: nn.Module) -> nn.Module:
    """Patched or not, an attention that drops probabilities draws its own numbers; all else draws PyTorch's."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.25
    for name in case.attentions:
        attention = model.get_submodule(name)
        for module in (attention, getattr(attention, "self", attention)):
            for attribute in ("attn_drop", "drop_weights", "dropout", "attention_dropout"):
                held = getattr(module, attribute, None)
                if isinstance(held, nn.Dropout):
                    held.p = 0.0
                elif isinstance(held, float):
                    setattr(module, attribute, 0.0)
    return model


@pytest.fixture
def dropout_in_order_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws in the order of its input's memory, in which `nn.MultiheadAttention` puts the length first."""
    real = nn.functional.dropout
    monkeypatch.setattr(nn.functional, "dropout", lambda x, *args, **kwargs: real(x.contiguous(), *args, **kwargs))


@pytest.mark.usefixtures("dropout_in_order_of_tokens")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_gate_of_zero_is_the_librarys_own_model(case: Case, training: bool) -> None:
    """In float64, outputs and gradients; two ways to compute an attention differ in the order of their sums."""
    model = drop_everywhere_but_in_attention(case, case.model(DOUBLE, training))

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(1)
        with torch.no_grad():
            output = case.run(model, DOUBLE)
        torch.manual_seed(2)
        return output, gradients(case, model, DOUBLE)

    plain, plain_grads = run()
    rsattn.patch(model)
    got, grads = run()
    torch.testing.assert_close(got, plain, rtol=1e-11, atol=1e-11)
    largest = max(float(grad.abs().max()) for grad in plain_grads.values())
    for name, grad in plain_grads.items():
        # A bias of K has gradient 0 in exact arithmetic, so errors are of the model's largest.
        torch.testing.assert_close(grads[name], grad, rtol=1e-9, atol=1e-11 * largest, msg=name)


def test_a_gate_of_zero_is_the_librarys_own_model_to_float32s_rounding(case: Case) -> None:
    """The library's attention, PyTorch's kernel or its own, and ours round differently: not the same bits."""
    model = case.model()
    with torch.inference_mode():
        plain = case.run(model)
        rsattn.patch(model)
        got = case.run(model)
    # Sums of some 100 float32 numbers of size 1 to 10 in other orders, through two blocks or twelve.
    torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_a_gate_of_zero_learns(case: Case, merge: Any) -> None:
    """Its gradient is the sum of dY * merge(O_h*) over samples and tokens, O_h* being the library's own."""
    calls, model = seen_calls(case), case.model(DOUBLE)
    patched = rsattn.patch(model, merge=merge)
    outputs: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: outputs.append(first(output)))
        for module in patched.modules.values()
    ]
    before = case.run(model, DOUBLE)
    for hook in hooks:
        hook.remove()
    for output in outputs:
        output.retain_grad()
    before.square().sum().backward()
    for call, output, gate in zip(calls, outputs, gates(patched), strict=True):
        upstream = case.as_tokens(model.get_submodule(call.name), output.grad)
        best = call.seen.best("induced", "sample")
        merged = naive_merge(torch.zeros_like(upstream), call.seen.output, best, merge)
        assert gate.grad is not None
        # float64 sums of some 100 numbers
        torch.testing.assert_close(gate.grad, (upstream * merged).sum((0, 1)), rtol=1e-9, atol=1e-9)
        assert gate.grad.abs().max() > 1e-3
    torch.optim.SGD(patched.parameters(), lr=0.01).step()
    with torch.no_grad():
        assert not torch.allclose(case.run(model, DOUBLE), before, atol=1e-5)


# An open gate.


@pytest.mark.parametrize(
    ("norm", "scope", "merge"), [("induced", "sample", "tile"), ("confidence", "batch", "slot")], ids=["tile", "slot"]
)
def test_the_output_is_the_librarys_plus_gamma_times_the_best_head(
    case: Case, norm: Any, scope: Any, merge: Any
) -> None:
    calls, model = seen_calls(case), case.model(DOUBLE)
    patched = rsattn.patch(model, norm=norm, scope=scope, merge=merge)
    open_gates(patched)
    for call, gate in zip(calls, gates(patched), strict=True):
        attention = model.get_submodule(call.name)
        plain = case.as_tokens(attention, call.output)
        merged = naive_merge(torch.zeros_like(plain), call.seen.output, call.seen.best(norm, scope), merge)
        with torch.no_grad():
            got = case.as_tokens(attention, first(attention(*call.args, **call.kwargs)))
            torch.testing.assert_close(got, plain + gate * merged, rtol=1e-11, atol=1e-11)  # float64 sums


def test_gradients_in_float32(case: Case) -> None:
    """The backend taken by itself (compiled where there is one) against float64, the gates' among them."""
    single, double = case.model(), case.model(DOUBLE)
    for model in (single, double):
        open_gates(rsattn.patch(model))
    got, want = gradients(case, single), gradients(case, double, DOUBLE)
    assert set(gate_names(case)) <= set(got) == set(want)
    # As in test_every_library.py: float32 through two blocks, errors of the model's largest.
    largest = max(float(grad.abs().max()) for grad in want.values())
    for name, grad in want.items():
        torch.testing.assert_close(got[name].double(), grad, rtol=1e-3, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains_a_float32_gate(case: Case, dtype: torch.dtype) -> None:
    """Its gradient is float32 too; tests/test_gated_residual.py has the numbers."""
    model = case.model()
    patched = rsattn.patch(model)
    with torch.autocast("cpu", dtype=dtype):
        loss = case.run(model).float().square().sum()
    loss.backward()
    for gate in gates(patched):
        assert gate.dtype == SINGLE
        assert gate.grad is not None
        assert gate.grad.dtype == SINGLE
        assert gate.grad.isfinite().all()
        assert gate.grad.abs().max() > 0


# It comes and goes with the patch.


@pytest.mark.parametrize(("init_values", "dtype"), [(0.0, SINGLE), (-0.5, DOUBLE), (2, torch.bfloat16)], ids=str)
def test_state_and_the_way_back(case: Case, init_values: float, dtype: torch.dtype) -> None:
    model = case.model(dtype)
    structure, before, parameters = anatomy(model), state(model), set(model.parameters())
    patched = rsattn.patch(model, init_values=init_values)
    after = model.state_dict()
    assert set(after) == {*before, *gate_names(case)}
    assert [name for name in after if name in before] == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for name in gate_names(case):
        gate = after[name]
        assert (gate.dtype, gate.device.type, gate.dim()) == (dtype, "cpu", 1)
        assert len(gate) in (DIM, 30)  # as wide as what the attention gives
        assert torch.equal(gate, torch.full_like(gate, init_values))
    assert set(model.parameters()) - parameters == set(gates(patched))
    assert [id(p) for p in patched.parameters()] == [id(gate) for gate in gates(patched)]
    patched.undo()
    assert list(patched.parameters()) == []
    assert anatomy(model) == structure
    assert_same_state(model, before)
    assert set(model.parameters()) == parameters


def test_a_gated_checkpoint_says_what_the_plain_model_lacks(case: Case) -> None:
    gated, plain, twin = case.model(), case.model(), case.model()
    open_gates(rsattn.patch(gated))
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\)") as error:
        plain.load_state_dict(gated.state_dict())
    assert [name for name in gate_names(case) if f'"{name}"' not in str(error.value)] == []
    rsattn.patch(twin)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*gamma"):
        twin.load_state_dict(plain.state_dict())
    twin.load_state_dict(gated.state_dict())
    with torch.no_grad():
        assert torch.equal(case.run(twin), case.run(gated))


def test_fresh_heads_with_a_gate(fresh_case: Case) -> None:
    case, model = fresh_case, fresh_case.model(DOUBLE)
    structure, before, kept = anatomy(model), state(model), set(model.parameters())
    patched = rsattn.patch(model, num_heads=2, head_dim=DIM, init_values=0.0)
    new = {p for module in patched.modules.values() for p in module.parameters()} - kept
    listed = list(patched.parameters())
    assert len(listed) == len(new)
    assert set(listed) == new
    assert set(gates(patched)) <= new
    assert all(p.dtype == DOUBLE for p in new)
    grads = gradients(case, model, DOUBLE)
    for name in gate_names(case):
        assert torch.equal(model.get_parameter(name), torch.zeros(DIM, dtype=DOUBLE))
        assert grads[name].abs().max() > 0
    patched.undo()
    assert list(patched.parameters()) == []
    assert anatomy(model) == structure
    assert_same_state(model, before)


def test_fresh_heads_have_no_gate_by_themselves(fresh_case: Case) -> None:
    model = fresh_case.model()
    kept = set(model.parameters())
    patched = rsattn.patch(model, num_heads=2)
    assert gates(patched) == [None] * len(fresh_case.attentions)
    new = {p for module in patched.modules.values() for p in module.parameters()} - kept
    assert set(patched.parameters()) == new != set()


def test_an_optimizer_built_before_takes_the_gates(case: Case) -> None:
    model = case.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    patched = rsattn.patch(model)
    optimizer.add_param_group({"params": list(patched.parameters())})
    case.run(model).square().mean().backward()
    optimizer.step()
    for gate in gates(patched):
        assert gate.grad is not None
        assert gate.grad.abs().max() > 0
        assert torch.equal(gate, -1e-3 * gate.grad)


@pytest.mark.parametrize("how", COPIES)
def test_a_gated_model_can_be_copied(case: Case, how: str) -> None:
    model = case.model()
    patched = rsattn.patch(model)
    open_gates(patched)
    with torch.no_grad():
        expected = case.run(model)
    twin = copied(model, how)
    assert_same_state(twin, state(model))
    for gate in gates(patched):  # and shares none with the copy
        nn.init.zeros_(gate)
    patched.undo()  # the copy stays patched
    assert set(gate_names(case)) <= set(dict(twin.named_parameters()))
    with torch.no_grad():
        assert torch.equal(case.run(twin), expected)


def test_functional_call_takes_another_gate(case: Case) -> None:
    model = case.model()
    patched = rsattn.patch(model)
    other = {name: normal(*gate.shape, dtype=SINGLE) for name, gate in zip(gate_names(case), gates(patched))}
    inputs = case.inputs(SINGLE)
    with torch.no_grad():
        closed = case.run(model)

        def functional(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(model, other, args, kwargs)

        got = case.call(functional, inputs)  # type: ignore[arg-type]
        assert torch.equal(case.run(model), closed)
        model.load_state_dict(other, strict=False)
        assert torch.equal(case.run(model), got)
        assert not torch.allclose(got, closed, atol=1e-3)


def test_only_the_chosen_blocks_have_a_gate(case: Case) -> None:
    last, model = len(case.attentions) - 1, case.model()
    before = list(model.state_dict())
    patched = rsattn.patch(model, blocks=[last])
    assert set(model.state_dict()) - set(before) == {gate_names(case)[last]}
    assert len(list(patched.parameters())) == 1
    patched.undo()
    assert list(model.state_dict()) == before


def test_a_gate_changes_dtype_with_the_model(case: Case) -> None:
    model, expected = case.model(), case.model(DOUBLE)
    open_gates(rsattn.patch(model))
    patched = rsattn.patch(expected)
    model.to(DOUBLE)
    for name, gate in zip(gate_names(case), gates(patched), strict=True):
        assert model.get_parameter(name).dtype == DOUBLE
        with torch.no_grad():
            gate.copy_(model.get_parameter(name))
    with torch.no_grad():
        assert torch.equal(case.run(model, DOUBLE), case.run(expected, DOUBLE))


def test_recording_sees_the_heads_that_are_ranked(case: Case) -> None:
    """A gate of zero hides the residual, not the ranking: in the first block, that of a model without a gate."""
    records, model, paper = [], case.model(), case.model()
    rsattn.patch(model)
    rsattn.patch(paper, init_values=None)
    with torch.no_grad():
        plain = case.run(model)
        for one in (model, paper):
            with rsattn.record(one) as seen:
                output = case.run(one)
            records.append(seen.blocks[case.attentions[0]])
            assert torch.equal(output, plain) == (one is model)
    gated, ungated = records
    assert torch.equal(gated.norms[0], ungated.norms[0])
    assert torch.equal(gated.best_head[0], ungated.best_head[0])


# One library is enough: what `patch` itself does.


def small(dtype: torch.dtype = SINGLE) -> nn.Module:
    torch.manual_seed(0)
    return encoder().to(dtype).eval()


def tokens() -> Tensor:
    return normal(3, 11, DIM, dtype=SINGLE)


NAMES = ["layers.0.self_attn.gamma", "layers.1.self_attn.gamma"]


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({}, 0.0),
        ({"init_values": "auto"}, 0.0),
        ({"init_values": 1}, 1.0),
        ({"init_values": None}, None),
        ({"num_heads": 2}, None),
        ({"head_dim": DIM}, None),
        ({"num_heads": 2, "init_values": "auto"}, None),
        ({"num_heads": 2, "init_values": 0.0}, 0.0),
        ({"head_dim": DIM, "init_values": 0.25}, 0.25),
    ],
    ids=str,
)
def test_what_a_gate_starts_at(given: dict[str, Any], value: float | None) -> None:
    for gate in gates(rsattn.patch(small(), **given)):
        assert (gate is None) == (value is None)
        if value is not None:
            assert isinstance(gate, nn.Parameter)
            assert torch.equal(gate, torch.full((DIM,), value))


@pytest.mark.parametrize("fresh", [{}, {"num_heads": 2, "init_values": 0.0}], ids=["swap", "fresh"])
def test_a_gate_goes_when_the_with_ends_and_undo_may_be_called_again(fresh: dict[str, Any]) -> None:
    model = small()
    structure, keys = anatomy(model), list(model.state_dict())

    def fail_inside() -> None:
        with rsattn.patch(model, **fresh) as patched:
            kept.append(patched)
            assert set(NAMES) <= set(model.state_dict())
            raise KeyError

    kept: list[rsattn.Patch] = []
    with pytest.raises(KeyError):
        fail_inside()
    for _ in range(2):
        assert anatomy(model) == structure
        assert list(model.state_dict()) == keys
        assert list(kept[0].parameters()) == []
        kept[0].undo()


@pytest.mark.parametrize("fresh", [{}, {"head_dim": 8, "init_values": 0.0}], ids=["swap", "fresh"])
def test_a_failure_half_way_leaves_no_gate(fresh: dict[str, Any]) -> None:
    """Its second block does not take what the first does."""
    second = nn.MultiheadAttention(20, 2, batch_first=True)
    model = nn.ModuleList([nn.MultiheadAttention(DIM, 3, batch_first=True), second])
    if not fresh:
        second.head_dim = 3
        second.num_heads = 5  # a head of 3 channels does not tile 20
    structure, keys = anatomy(model), list(model.state_dict())
    with pytest.raises(ValueError, match="channels along 20"):
        rsattn.patch(model, **fresh)
    assert anatomy(model) == structure
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("init_values", [float("nan"), float("inf"), -float("inf"), "zero", "Auto"], ids=str)
def test_what_no_gate_can_start_at(init_values: Any) -> None:
    model = small()
    structure = anatomy(model)
    words = r"init_values=.* must be the finite number that a learnable gate starts at, or None for no gate"
    if isinstance(init_values, str):
        words = r"init_values=.* is not a choice; use a number, None \(no gate\) or 'auto'"
    with pytest.raises(ValueError, match=words):
        rsattn.patch(model, init_values=init_values)
    assert anatomy(model) == structure


def test_a_frozen_model_learns_through_its_gates() -> None:
    """The first block's gradient comes through the second."""
    model = small().requires_grad_(False)
    patched = rsattn.patch(model)
    assert all(gate.requires_grad for gate in patched.parameters())
    before = model(tokens())
    before.sin().sum().backward()  # the layer norm at the end has made the sum of squares a constant
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == set(NAMES)
    torch.optim.SGD(patched.parameters(), lr=0.1).step()
    assert not torch.allclose(model(tokens()), before, atol=1e-3)


def test_what_a_gate_learned_is_lost_with_it_and_the_weights_stay() -> None:
    model, fresh = small().train(), small()
    patched = rsattn.patch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(tokens()).sin().mean().backward()
    optimizer.step()
    assert all(gate.abs().max() > 1e-5 for gate in patched.parameters())
    learned = {name: tensor for name, tensor in state(model).items() if name not in NAMES}
    patched.undo()
    assert_same_state(model, learned)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(tokens()), model.eval()(tokens()))
    assert all(torch.equal(gate, torch.zeros(DIM)) for gate in rsattn.patch(model).parameters())


def test_patch_again_after_undo() -> None:
    model = small()
    rsattn.patch(model, init_values=2.0).undo()
    (first_gate, second_gate) = rsattn.patch(model, init_values=-1.0).parameters()
    assert torch.equal(first_gate, torch.full((DIM,), -1.0))
    assert first_gate is not second_gate


def test_on_the_meta_device() -> None:
    """For a model whose weights come later: its gates are there too, and have no numbers yet."""
    with torch.device("meta"):
        model = encoder()
    patched = rsattn.patch(model, init_values=0.5)
    for gate in patched.parameters():
        assert (gate.device.type, gate.shape) == ("meta", (DIM,))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for gate in patched.parameters():
            gate.fill_(float("nan"))
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for gate in patched.parameters():
        assert torch.equal(gate, torch.full((DIM,), 0.5))


def test_beside_weights_that_are_no_floating_point_numbers() -> None:
    """Packed, as quantized ones are: the gate takes the dtype of the others."""
    model = encoder()
    for layer in model.layers:
        packed = nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False)
        layer.self_attn.__dict__["_parameters"] = {"packed": packed, **layer.self_attn._parameters}
    with rsattn.patch(model) as patched:
        assert {gate.dtype for gate in patched.parameters()} == {SINGLE}


class Tanh(nn.Module):
    def forward(self, gamma: Tensor) -> Tensor:
        return gamma.tanh()


def test_undo_takes_out_a_parametrized_gate() -> None:
    """Flamingo's gate, a tanh of what is learned."""
    model = encoder()
    structure, before = anatomy(model), state(model)
    patched = rsattn.patch(model, init_values=0.5)
    for module in patched.modules.values():
        torch.nn.utils.parametrize.register_parametrization(module, "gamma", Tanh())
        assert torch.equal(module.gamma, torch.full((DIM,), 0.5).tanh())
    patched.undo()
    assert anatomy(model) == structure
    assert_same_state(model, before)


@pytest.mark.parametrize("init_values", [None, 0.0])
def test_an_attention_with_a_gamma_of_its_own_is_left_alone(init_values: float | None) -> None:
    model = encoder()
    own = nn.Parameter(torch.ones(3))
    model.layers[1].self_attn.gamma = own
    structure = anatomy(model)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn \(Multi\w+: it has an attribute `gamma` already"):
        rsattn.patch(model, init_values=init_values)
    assert anatomy(model) == structure
    assert model.layers[1].self_attn.gamma is own
