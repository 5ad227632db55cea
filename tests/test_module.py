"""`ResidualSelfAttention`: a float64 formula written out here, and how it behaves as a PyTorch module."""

from __future__ import annotations

import copy
import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from oracle import NORMS, SCOPES, make_mask, naive_attention, naive_merge, normal, philox_keep, seed_after
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rsattn
from rsattn import ResidualSelfAttention

# merge, head_dim: D = 24 and H = 3, so None is 8 channels a head, and 24 is full width.
WIDTHS = [("tile", None), ("slot", None), ("tile", 24), ("tile", 4)]
WIDTH_IDS = ["tile", "slot", "full_width", "narrow"]


def build(merge: str = "tile", head_dim: int | None = None, **options: Any) -> ResidualSelfAttention:
    torch.manual_seed(0)
    module = ResidualSelfAttention(24, 3, head_dim, merge=merge, **options)
    with torch.no_grad():
        module.qkv.weight.mul_(5.0)  # scores of spread 1, as in a trained model; fresh weights hardly attend
    return module


def tokens(batch: int = 4, length: int = 13, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(batch, length, 24, seed=seed, dtype=dtype)


def written_out(
    module: ResidualSelfAttention, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """The module in float64: rows of qkv are Q then K then V, each head after head, as timm lays them out."""
    options, width = module.options, module.head_dim
    weight, bias = module.qkv.weight.detach().double(), module.qkv.bias.detach().double()
    heads = []
    for which in range(3):
        first = [(which * 3 + h) * width for h in range(3)]
        heads.append(torch.stack([x.double() @ weight[f : f + width].T + bias[f : f + width] for f in first], 1))
    naive = naive_attention(*heads, mask, keep, module.attn_drop)
    joined = torch.cat([naive.output[:, h] for h in range(3)], dim=2)
    projected = joined @ module.proj.weight.detach().double().T + module.proj.bias.detach().double()
    return naive_merge(projected, naive.output, naive.best(options.norm, options.scope), options.merge)


def gradients(module: nn.Module, x: Tensor, forward: Any = None) -> list[Tensor]:
    x = x.clone().requires_grad_()
    module.zero_grad()
    (forward or module)(x).square().sum().backward()
    return [x.grad, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("merge", "head_dim"), WIDTHS, ids=WIDTH_IDS)
@pytest.mark.parametrize("kind", ["none", "padding", "float_blind"])
def test_equals_the_formula(kind: str, merge: str, head_dim: int | None, norm: str, scope: str) -> None:
    module = build(merge, head_dim, norm=norm, scope=scope, dtype=torch.float64)
    x, mask = tokens(dtype=torch.float64), make_mask(kind, 4, 3, 13, 13)
    torch.testing.assert_close(module(x, mask), written_out(module, x, mask), rtol=1e-12, atol=1e-12)  # float64 sums


@pytest.mark.parametrize("norm", NORMS)
def test_training_dropout_equals_the_formula_under_the_published_stream(norm: str) -> None:
    module = build(attn_drop=0.3, norm=norm, dtype=torch.float64)
    x = tokens(dtype=torch.float64)
    torch.manual_seed(7)
    got = module(x)
    keep = philox_keep(seed_after(7), 0.3, (4, 3, 13, 13))
    torch.testing.assert_close(got, written_out(module, x, keep=keep), rtol=1e-12, atol=1e-12)  # float64 sums
    torch.manual_seed(7)
    assert torch.equal(module(x), got)
    assert not torch.equal(module(x), got)  # the generator has moved on
    module.eval()
    torch.testing.assert_close(module(x), written_out(module, x), rtol=1e-12, atol=1e-12)
    state = torch.get_rng_state()
    assert torch.equal(module(x), module(x))
    assert torch.equal(torch.get_rng_state(), state)  # evaluation draws nothing


def test_the_residual_joins_after_the_projections_dropout() -> None:
    """With proj_drop = 1 the projection is gone and what is left is the best head itself."""
    module = build(proj_drop=1.0, dtype=torch.float64)
    x = tokens(dtype=torch.float64)
    zeroed = copy.deepcopy(module)
    nn.init.zeros_(zeroed.proj.weight)
    nn.init.zeros_(zeroed.proj.bias)
    torch.testing.assert_close(module(x), written_out(zeroed, x), rtol=1e-12, atol=1e-12)  # float64 sums
    assert module(x).abs().max() > 0.1


def test_parameters_are_timms() -> None:
    """The names, shapes and layout of timm's Attention(dim=24, num_heads=3), so its state_dict loads and means it."""
    timm_like = {
        "qkv.weight": normal(72, 24, seed=1, dtype=torch.float32),
        "qkv.bias": normal(72, seed=2, dtype=torch.float32),
        "proj.weight": normal(24, 24, seed=3, dtype=torch.float32),
        "proj.bias": normal(24, seed=4, dtype=torch.float32),
    }
    module = ResidualSelfAttention(24, num_heads=3)
    assert {name: tensor.shape for name, tensor in module.state_dict().items()} == {
        name: tensor.shape for name, tensor in timm_like.items()
    }
    module.load_state_dict(timm_like)
    # timm's forward, as its file has it, gives the projection our module adds the best head to.
    x = tokens()
    q, k, v = (
        nn.functional.linear(x, timm_like["qkv.weight"], timm_like["qkv.bias"])
        .reshape(4, 13, 3, 3, 8)
        .permute(2, 0, 3, 1, 4)
    )
    attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(4, 13, 24)
    timms = nn.functional.linear(attended, timm_like["proj.weight"], timm_like["proj.bias"])
    with rsattn.record(module) as record:
        residual = module(x) - timms
    best = torch.stack([attended.unflatten(2, (3, 8))[b, :, h] for b, h in enumerate(record.best_head[0].tolist())])
    # Float32: values of size 10 lose 1e-6 in each of a few sums.
    torch.testing.assert_close(residual, best.repeat(1, 1, 3), rtol=0.0, atol=1e-4)


@pytest.mark.parametrize(("qkv_bias", "proj_bias"), [(False, True), (True, False), (False, False)])
def test_biases_can_be_left_out(qkv_bias: bool, proj_bias: bool) -> None:
    module = build(qkv_bias=qkv_bias, proj_bias=proj_bias, dtype=torch.float64)
    assert (module.qkv.bias is not None, module.proj.bias is not None) == (qkv_bias, proj_bias)
    filled = build(dtype=torch.float64)
    filled.load_state_dict(module.state_dict(), strict=False)
    for linear, wanted in ((filled.qkv, qkv_bias), (filled.proj, proj_bias)):
        if not wanted:
            nn.init.zeros_(linear.bias)
    x = tokens(dtype=torch.float64)
    torch.testing.assert_close(module(x), filled(x), rtol=1e-14, atol=1e-14)  # a fused or separate bias addition


@pytest.mark.parametrize(("merge", "head_dim"), WIDTHS, ids=WIDTH_IDS)
def test_gradients_reach_every_parameter(merge: str, head_dim: int | None) -> None:
    module = build(merge, head_dim, attn_drop=0.1, proj_drop=0.1)
    for grad in gradients(module, tokens()):
        assert grad.isfinite().all()
    inner = module.num_heads * module.head_dim
    query, key, value = module.qkv.weight.grad.split(inner)
    assert all(part.abs().max() > 0 for part in (query, key, value, module.proj.weight.grad, module.proj.bias.grad))


def test_the_norms_do_not_pull_on_the_weights() -> None:
    """The choice carries no gradient: a finite difference that changes no winner is all there is."""
    module = build(dtype=torch.float64)
    x = tokens(2, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(module, (x,))
    assert torch.autograd.gradgradcheck(module, (x,), atol=1e-4)  # gradcheck's own rounding: second order of 1e-6


def test_autocast_computes_in_bfloat16_with_float32_norms() -> None:
    module, x = build(), tokens()
    exact = written_out(module, x)
    with torch.autocast("cpu", dtype=torch.bfloat16), rsattn.record(module) as record:
        got = module(x)
    assert got.dtype == torch.bfloat16
    assert record.norms.dtype == torch.float32
    # Seven bits after the point in x, weights, Q, K, V, P, O and Y: a dozen roundings of 2^-8 on values up to ~10.
    scale = exact.abs().max().item()
    assert (got.double() - exact).abs().max().item() < 12 * 2**-8 * scale
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads = gradients(module, x)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_without_gradients_the_output_is_the_same(context: Any) -> None:
    module, x = build(attn_drop=0.2), tokens()
    torch.manual_seed(3)
    with_grad = module(x)
    torch.manual_seed(3)
    with context():
        without = module(x)
    assert torch.equal(with_grad, without)
    assert not without.requires_grad


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_activation_checkpointing_gives_the_same_gradients(merge: str, reentrant: bool) -> None:
    """With dropout: the recomputed forward must draw the first one's seed again."""
    module, x = build(merge, attn_drop=0.3, proj_drop=0.1), tokens()
    torch.manual_seed(9)
    plain = gradients(module, x)
    torch.manual_seed(9)
    recomputed = gradients(module, x, lambda x: checkpoint(module, x, use_reentrant=reentrant))
    for one, other in zip(plain, recomputed, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("merge", "norm", "scope", "drop"),
    [("tile", "induced", "sample", 0.0), ("slot", "entrywise", "batch", 0.2)],
    ids=["evaluation", "training"],
)
def test_compiles_whole(merge: str, norm: str, scope: str, drop: float) -> None:
    """No graph break, and the same numbers; the mask and the seed are part of the graph."""
    module, x = build(merge, norm=norm, scope=scope, attn_drop=drop), tokens()
    mask = make_mask("padding", 4, 3, 13, 13)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)

    def run(f: Any) -> list[Tensor]:
        torch.manual_seed(2)
        return [f(x, mask).detach(), *(torch.manual_seed(2), gradients(module, x, lambda x: f(x, mask)))[1]]

    for eager, traced in zip(run(module), run(compiled), strict=True):
        # aot_eager runs the same kernels; its backward formulas may sum in another order.
        torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-5 * max(1.0, eager.abs().max().item()))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_copies_compute_the_same(how: str) -> None:
    module, x = build("slot", norm="confidence", scope="batch"), tokens()
    if how == "deepcopy":
        twin = copy.deepcopy(module)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    else:
        twin = ResidualSelfAttention(24, 3, merge="slot", norm="confidence", scope="batch")
        twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(x), module(x))
    assert repr(twin) == repr(module)
    with torch.no_grad():  # and share nothing
        twin.qkv.weight.zero_()
    assert not torch.equal(twin(x), module(x))


def test_a_projection_kept_elsewhere_is_not_overwritten() -> None:
    """The module may write the residual into its projection's output; the public function may not."""
    module, x = build(), tokens()
    qkv = module.qkv(x).detach().unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    with torch.no_grad():
        attention = rsattn.residual_attention(*qkv)
        projected = module.proj(attention.output.transpose(1, 2).flatten(2))
        kept = projected.clone()
        joined = rsattn.add_best_head(projected, attention)
    assert torch.equal(projected, kept)
    assert torch.equal(joined, module(x).detach())


@pytest.mark.parametrize("how", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("layer", ["proj", "proj_drop"])
def test_what_a_hook_kept_is_not_overwritten(layer: str, how: str) -> None:
    module, x, kept = build().eval(), tokens(), []
    with torch.no_grad():
        plain = module(x)

    def keep(hooked: nn.Module, given: tuple[Tensor, ...], *made: Tensor) -> None:
        seen = made[0] if made else given[0]
        kept.append((seen, seen.clone()))

    getattr(module.get_submodule(layer), how)(keep)
    with torch.no_grad():
        assert torch.equal(module(x), plain)
    ((seen, before),) = kept
    assert torch.equal(seen, before)


class Cached(nn.Linear):
    """Returns one tensor again and again."""

    kept = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = super().forward(x) if self.kept is None else self.kept
        return self.kept


class OfAParameter(nn.Module):
    """Returns a part of a parameter, or that part for every sample and token."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.randn(5, 13, 24))
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.whole[:4] if not self.size else self.whole[0, 0].expand(self.size)


@pytest.mark.parametrize(
    "projection",
    [lambda: Cached(24, 24), lambda: OfAParameter(), lambda: OfAParameter(4, 13, 24), lambda: nn.Identity()],
    ids=["cached", "part_of_a_parameter", "expanded", "its_input"],
)
def test_a_projection_of_ones_own_is_not_accumulated_into(projection: Any) -> None:
    module, x = build(), tokens()
    module.proj = projection()
    with torch.no_grad():
        module(x)
    first = module(x).detach()
    with torch.no_grad():
        assert torch.equal(module(x), first)
        assert torch.equal(module(x), first)


def test_a_batch_of_none() -> None:
    module = build()
    for scope in SCOPES:
        module.options.scope = scope
        grads = gradients(module, tokens(0))
        assert grads[0].shape == (0, 13, 24)
        assert all(not grad.any() for grad in grads[1:])


def test_device_and_dtype_arguments() -> None:
    """The parameters are made where and as asked, at once."""
    module = ResidualSelfAttention(24, 3, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    out = module(torch.zeros(2, 5, 24, device="meta", dtype=torch.bfloat16))
    assert (out.shape, out.dtype, out.device.type) == ((2, 5, 24), torch.bfloat16, "meta")


def test_repr_tells_the_settings() -> None:
    text = repr(ResidualSelfAttention(24, 3, norm="confidence", scope="batch", merge="slot", backend="reference"))
    for words in (
        "num_heads=3",
        "head_dim=8",
        "norm='confidence'",
        "scope='batch'",
        "merge='slot'",
        "'reference'",
    ):
        assert words in text
    assert "backend" not in repr(ResidualSelfAttention(24, 3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 5}, ["dim=24", "not a multiple of num_heads=5", "give head_dim"]),
        ({"num_heads": 0}, ["num_heads=0", "at least 1"]),
        ({"num_heads": -3}, ["num_heads=-3", "at least 1"]),
        ({"head_dim": 0}, ["head_dim=0", "at least 1"]),
        ({"head_dim": 7}, ["merge='tile'", "7 channels along 24", "divides dim"]),
        ({"head_dim": 24, "merge": "slot"}, ["merge='slot'", "24 and 3 * 24", "merge='tile'"]),
        ({"merge": "add"}, ["merge='add'", "'tile'", "'slot'"]),
        ({"norm": "l2"}, ["norm='l2'", "'induced'"]),
        ({"scope": "head"}, ["scope='head'", "'sample'"]),
        ({"attn_drop": 1.5}, ["1.5", "from 0 to 1"]),
        ({"backend": "fast"}, ["backend='fast'", "'reference'"]),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_constructor_errors(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=words[0]) as error:
        ResidualSelfAttention(24, **{"num_heads": 3, **options})
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize("name", ["dim", "num_heads", "head_dim"])
@pytest.mark.parametrize("wrong", [4.0, "4", [4]], ids=repr)
def test_a_number_that_is_no_integer_is_named(name: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"{name} must be an integer; got {wrong!r}")):
        ResidualSelfAttention(**{"dim": 24, "num_heads": 3, name: wrong})


def test_integers_of_other_types() -> None:
    module = ResidualSelfAttention(np.int64(24), np.int32(3), head_dim=np.int64(8))  # type: ignore[arg-type]
    assert (module.num_heads, module.head_dim, type(module.head_dim)) == (3, 8, int)


@pytest.mark.parametrize("dim", [0, -24])
def test_a_width_below_one(dim: int) -> None:
    with pytest.raises(ValueError, match=rf"dim, num_heads and head_dim must be at least 1; got {dim}, "):
        ResidualSelfAttention(dim, 3)


def test_default_scale_is_that_of_the_head() -> None:
    """1 / sqrt(head_dim), not of dim / num_heads: it matters for full-width heads."""
    module = build("tile", 24, dtype=torch.float64)
    x = tokens(1, 3, dtype=torch.float64)
    q, k, v = module.qkv(x).unflatten(2, (3, 3, 24)).permute(2, 0, 3, 1, 4)
    probs = (q @ k.transpose(2, 3) / math.sqrt(24)).softmax(-1)
    with rsattn.record(module) as record:
        module(x)
    torch.testing.assert_close(record.norms[0], probs.sum(2).amax(2).detach().float(), rtol=2**-22, atol=0.0)


@pytest.mark.parametrize("shape", [(13, 24), (2, 3, 13, 24)], ids=str)
def test_tokens_of_another_shape_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"x must be (batch, tokens, dim); got {shape}")):
        build()(torch.zeros(shape))
