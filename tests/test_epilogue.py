"""`add_best_head` on the reference: Y = projected + merge(O_h*), against loops over channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from oracle import MERGES, naive_merge, normal
from torch import Tensor, nn

import rsattn
from rsattn import ResidualAttention, add_best_head, reference
from rsattn.backends.dispatch import BACKENDS
from rsattn.epilogue import run_projection

Layers = Callable[[], list[nn.Module]]


def attention(
    batch: int = 3, heads: int = 4, length: int = 7, width: int = 5, dtype: torch.dtype = torch.float64
) -> ResidualAttention:
    """A made-up result whose best heads differ between samples: the epilogue reads only output and best_head."""
    output = normal(batch, length, heads, width, seed=1, dtype=dtype).transpose(1, 2)
    best = (torch.arange(batch) * 2 + 1) % heads
    return ResidualAttention(output, torch.zeros(batch, heads), best)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("merge", "shape"),
    [
        ("tile", (3, 4, 7, 5)),
        ("slot", (3, 4, 7, 5)),
        ("tile", (2, 4, 1, 20)),  # full width: D = E, a plain add
        ("tile", (2, 3, 63, 4)),  # D = 20 is no multiple of H * E = 12
        ("slot", (1, 1, 2, 20)),
        ("slot", (0, 4, 7, 5)),
        ("tile", (0, 4, 7, 5)),
    ],
)
def test_equals_loops(merge: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    result = attention(*shape, dtype=dtype)
    projected = normal(shape[0], shape[2], 20, seed=2, dtype=dtype)
    before = projected.clone()
    got = add_best_head(projected, result, merge=merge)
    # Bitwise: one addition per element, in one dtype.
    assert torch.equal(got, naive_merge(projected, result.output, result.best_head.tolist(), merge))
    assert torch.equal(projected, before)
    assert got.dtype == dtype


@pytest.mark.parametrize(
    ("projected_dtype", "output_dtype", "name"),
    [
        (torch.float32, torch.float32, "cpu"),
        (torch.bfloat16, torch.float32, "cpu"),
        (torch.float64, torch.float32, "reference"),
        (torch.float64, torch.float64, "reference"),
    ],
    ids=str,
)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_is_done_by_the_fastest_backend_that_takes_both_dtypes(
    grad: bool, projected_dtype: torch.dtype, output_dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reasons := rsattn.backends("cpu")["cpu"].reasons:
        pytest.skip("; ".join(reasons))
    real, did = reference.add_best_head, []
    monkeypatch.setattr(reference, "add_best_head", lambda *given: did.append("reference") or real(*given))
    kernels = BACKENDS["cpu"].add_best_head
    monkeypatch.setattr(BACKENDS["cpu"], "add_best_head", lambda *given: did.append("cpu") or kernels(*given))
    projected = normal(3, 7, 20, seed=2, dtype=projected_dtype).requires_grad_(grad)
    add_best_head(projected, attention(dtype=output_dtype))
    assert did == [name]


def test_full_width_is_a_plain_add() -> None:
    result = attention(width=20)
    projected = normal(3, 7, 20, seed=2)
    expected = projected + torch.stack([result.output[b, h] for b, h in enumerate(result.best_head.tolist())])
    assert torch.equal(add_best_head(projected, result), expected)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_projected_is_never_written_to(grad: bool, merge: str) -> None:
    """The public function must not reuse the caller's tensor, also where no gradient is recorded."""
    result = attention(dtype=torch.float32)
    projected = normal(3, 7, 20, seed=2, dtype=torch.float32)
    before = projected.clone()
    with torch.set_grad_enabled(grad):
        got = add_best_head(projected, result, merge=merge)
    assert torch.equal(projected, before)
    assert got.data_ptr() != projected.data_ptr()


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(
    ("projected_dtype", "output_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float64, torch.float32)],
    ids=str,
)
def test_result_and_gradients_keep_each_tensors_dtype(
    projected_dtype: torch.dtype, output_dtype: torch.dtype, merge: str
) -> None:
    result = attention(dtype=output_dtype)
    output = result.output.detach().requires_grad_()
    projected = normal(3, 7, 20, seed=2, dtype=projected_dtype).requires_grad_()
    got = add_best_head(projected, result._replace(output=output), merge=merge)
    assert got.dtype == projected_dtype
    assert torch.equal(got.detach(), naive_merge(projected, output, result.best_head.tolist(), merge))
    got.sum().backward()
    assert (projected.grad.dtype, output.grad.dtype) == (projected_dtype, output_dtype)


@pytest.mark.parametrize("merge", MERGES)
def test_gradient_of_the_output(merge: str) -> None:
    """dO_h is 0 for a losing head; for the best it is dY folded (tile) or dY's own channels (slot)."""
    result = attention()
    output = result.output.detach().requires_grad_()
    projected = normal(3, 7, 20, seed=2).requires_grad_()
    grad = normal(3, 7, 20, seed=3)
    add_best_head(projected, result._replace(output=output), merge=merge).backward(grad)
    assert torch.equal(projected.grad, grad)
    expected = torch.zeros_like(output)
    for b, head in enumerate(result.best_head.tolist()):
        for channel in range(20):
            if merge == "tile" or channel // 5 == head:
                expected[b, head, :, channel % 5] += grad[b, :, channel]
    torch.testing.assert_close(output.grad, expected, rtol=1e-14, atol=1e-14)  # the order of four additions
    for b, head in enumerate(result.best_head.tolist()):
        losers = [h for h in range(4) if h != head]
        assert torch.equal(output.grad[b, losers], torch.zeros(3, 7, 5, dtype=torch.float64))


@pytest.mark.parametrize("merge", MERGES)
def test_nan_in_a_losing_head_never_leaks(merge: str) -> None:
    result = attention()
    output = torch.full_like(result.output, math.nan)
    for b, head in enumerate(result.best_head.tolist()):
        output[b, head] = result.output[b, head]
    output.requires_grad_()
    projected = normal(3, 7, 20, seed=2)
    got = add_best_head(projected, result._replace(output=output), merge=merge)
    assert torch.equal(got, add_best_head(projected, result, merge=merge))
    got.sum().backward()
    assert output.grad.isfinite().all()


def test_nan_in_the_best_head_stays_in_its_channels_in_slot_mode() -> None:
    result = attention()
    projected = normal(3, 7, 20, seed=2)
    spoilt = result.output.clone()
    for b, head in enumerate(result.best_head.tolist()):
        spoilt[b, head] = math.nan
    slot = add_best_head(projected, result._replace(output=spoilt), merge="slot").unflatten(2, (4, 5))
    for b, head in enumerate(result.best_head.tolist()):
        assert slot[b, :, head].isnan().all()
        losers = [h for h in range(4) if h != head]
        assert torch.equal(slot[b, :, losers], projected.unflatten(2, (4, 5))[b, :, losers])
    assert add_best_head(projected, result._replace(output=spoilt), merge="tile").isnan().all()


@pytest.mark.parametrize(
    ("projected", "merge", "words"),
    [
        ((3, 7, 20), "sum", ["merge='sum'", "'tile'", "'slot'"]),
        ((3, 7), "tile", ["(batch, length, dim)", "(3, 7)", "(3, 4, 7, 5)"]),
        ((3, 4, 7, 5), "tile", ["(batch, length, dim)", "(3, 4, 7, 5)"]),
        ((2, 7, 20), "tile", ["(2, 7, 20)", "(3, 4, 7, 5)", "share batch and length"]),
        ((3, 8, 20), "slot", ["(3, 8, 20)", "share batch and length"]),
        ((3, 7, 22), "tile", ["merge='tile'", "5 channels along 22", "head_dim that divides dim"]),
        ((3, 7, 10), "slot", ["merge='slot'", "dim = num_heads * head_dim", "10 and 4 * 5", "merge='tile'"]),
    ],
)
def test_errors(projected: tuple[int, ...], merge: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"merge|batch") as error:
        add_best_head(torch.zeros(projected), attention(dtype=torch.float32), merge=merge)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    "best_head", [torch.zeros(3, dtype=torch.int32), torch.zeros(3), torch.zeros(2).long()], ids=str
)
def test_best_heads_are_int64_and_one_for_each_sample(best_head: Tensor) -> None:
    """Another dtype would be read beyond its end."""
    result = attention(dtype=torch.float32)._replace(best_head=best_head)
    with pytest.raises(ValueError, match="best_head must be int64, one for each of the 3 samples"):
        add_best_head(torch.zeros(3, 7, 20), result)


def test_an_attention_is_not_any_three_things() -> None:
    """Three samples would unpack as one."""
    words = r"attention must be the result of rsattn\.residual_attention; got Tensor \(3, 4, 7, 5\)"
    with pytest.raises(TypeError, match=words):
        add_best_head(torch.zeros(3, 7, 20), torch.zeros(3, 4, 7, 5))  # type: ignore[arg-type]


def test_output_must_have_four_dimensions() -> None:
    flat = ResidualAttention(torch.zeros(3, 7, 20), torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(batch, heads, length, head_dim\).*\(3, 7, 20\)"):
        add_best_head(torch.zeros(3, 7, 20), flat)


@pytest.mark.parametrize("merge", MERGES)
def test_first_and_second_derivatives(merge: str) -> None:
    result = attention(2, 2, 3, 2)
    weight = normal(4, 4, seed=5)

    def function(output: Tensor, projected: Tensor) -> Tensor:
        # Squared, so that the second derivative is not zero.
        return add_best_head(projected @ weight, result._replace(output=output), merge=merge) ** 2

    inputs = (result.output.detach().requires_grad_(), normal(2, 3, 4, seed=6).requires_grad_())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


class Foreign(nn.Linear):
    """A linear layer of a class of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def linear() -> nn.Linear:
    return nn.Linear(20, 20)


def tied() -> nn.Module:
    """The last layer is the first one too."""
    foreign = Foreign(20, 20)
    return nn.Sequential(foreign, linear(), foreign)


def heard(layer: nn.Module, how: str = "register_forward_hook") -> nn.Module:
    getattr(layer, how)(lambda *given: None)
    return layer


def replaced(layer: nn.Module) -> nn.Module:
    layer.forward = partial(layer.forward)
    return layer


UNSHARED = {
    "linear": lambda: [linear()],
    "dropout": lambda: [linear(), nn.Dropout(0.5)],
    "identity": lambda: [linear(), nn.Identity()],
    "foreign_before": lambda: [Foreign(20, 20), linear()],
    "sequence": lambda: [nn.Sequential(linear(), nn.Dropout(0.5))],
    "multihead_attention": lambda: [nn.MultiheadAttention(20, 2).out_proj],
    "parametrized": lambda: [torch.nn.utils.parametrizations.weight_norm(linear())],
    "hook_before": lambda: [heard(linear(), "register_forward_pre_hook"), nn.Dropout(0.5)],
}
SHARED = {
    "no_layer": lambda: [],
    "identity": lambda: [nn.Identity()],
    "foreign": lambda: [Foreign(20, 20)],
    "foreign_and_dropout": lambda: [Foreign(20, 20), nn.Dropout(0.5)],
    "tied": lambda: [tied()],
    "hook": lambda: [heard(linear())],
    "hook_of_dropout": lambda: [linear(), heard(nn.Dropout(0.5))],
    "hook_before_dropout": lambda: [linear(), heard(nn.Dropout(0.5), "register_forward_pre_hook")],
    "hook_of_sequence": lambda: [heard(nn.Sequential(linear()))],
    "hook_in_sequence": lambda: [nn.Sequential(heard(linear()))],
    "own_forward": lambda: [replaced(linear())],
}


@pytest.mark.parametrize("layers", UNSHARED.values(), ids=UNSHARED)
def test_a_projection_of_known_layers_is_not_copied(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> Tensor:
        raise AssertionError("copied")

    made = layers()
    monkeypatch.setattr(torch.Tensor, "clone", refuse)
    with torch.no_grad():
        run_projection(normal(3, 7, 20, dtype=torch.float32), *made)


@pytest.mark.parametrize("layers", SHARED.values(), ids=SHARED)
def test_a_projection_that_somebody_else_may_see_is_copied(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a gradient is recorded the join makes a new tensor, and nothing is copied."""
    made, copied, clone = [layer.eval() for layer in layers()], [], torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self: copied.append(self) or clone(self))
    joined = normal(3, 7, 20, dtype=torch.float32).requires_grad_()
    recorded = run_projection(joined, *made)
    assert copied == []
    with torch.no_grad():
        unshared = run_projection(joined, *made)
    assert len(copied) == 1
    assert torch.equal(unshared, recorded)
    assert unshared.data_ptr() != joined.data_ptr()


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_global_hooks_see_the_projection_too(register: str) -> None:
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Tensor, ...], *made: Tensor) -> None:
        if type(module) is nn.Dropout:
            kept.append(given[0])

    handle = getattr(nn.modules.module, register)(keep)
    try:
        with torch.no_grad():
            unshared = run_projection(normal(3, 7, 20, dtype=torch.float32), linear(), nn.Dropout(0.5).eval())
    finally:
        handle.remove()
    assert unshared.data_ptr() != kept[0].data_ptr()


def test_best_heads_that_are_a_view_are_read_as_they_are() -> None:
    """A slice of a batch, or one head expanded over it."""
    query, key, value = normal(3, 6, 4, 5, 8, dtype=torch.float32)
    projected = normal(6, 5, 32, dtype=torch.float32)
    whole = rsattn.residual_attention(query, key, value)
    half = ResidualAttention(whole.output[::2], whole.norms[::2], whole.best_head[::2])
    joined = add_best_head(projected, whole)
    assert torch.equal(add_best_head(projected[::2], half), joined[::2])
    gamma = torch.ones(32)
    assert torch.equal(add_best_head(projected[::2], half, gamma=gamma), joined[::2])
    gradient = torch.ops.rsattn.best_head_gradient
    grad = gradient(projected[::2], half.best_head, 4, 8, "tile", "cpu")
    assert torch.equal(grad, gradient(projected, whole.best_head, 4, 8, "tile", "cpu")[::2])
    one = whole._replace(best_head=whole.best_head[:1].expand(6))
    dense = whole._replace(best_head=whole.best_head[:1].repeat(6))
    assert torch.equal(add_best_head(projected, one), add_best_head(projected, dense))
    for backend in ("reference", None):
        batch = rsattn.residual_attention(query, key, value, scope="batch", backend=backend)
        assert batch.best_head.is_contiguous()
