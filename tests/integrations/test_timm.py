"""What only timm has: masks, gates, grouped heads, LayerScale, and attention as a class its models take."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import pytest
import torch
from case import DIM, HEADS
from library_timm import CASES, SIZES
from oracle import naive_attention, naive_merge, normal
from test_every_library import noted_calls
from timm import create_model
from timm.layers import Attention, AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from watch import watching

import rsattn
from rsattn.integrations.timm import ResidualAttention

LENGTH = 11
VIT = CASES[0]


class Confident(ResidualAttention):
    options = rsattn.ResidualOptions(norm="confidence", merge="slot")


def tokens() -> Tensor:
    return normal(2, LENGTH, DIM)


def masks() -> dict[str, dict[str, Any]]:
    seen = normal(2, 1, LENGTH, LENGTH, seed=4) > -0.5
    seen[..., 0] = True
    return {
        "bool": {"attn_mask": seen},
        "float": {"attn_mask": normal(LENGTH, LENGTH, seed=5)},
        "causal": {"is_causal": True},
    }


KINDS = {
    "plain": partial(Attention, DIM, HEADS),
    "narrow-gated": partial(Attention, DIM, HEADS, attn_head_dim=4, gated=True, qkv_bias=True),
    "rope": partial(AttentionRope, DIM, HEADS, qkv_fused=False),
    "grouped": partial(AttentionRope, DIM, 4, num_kv_heads=2, qkv_fused=False, gated=True),
}


@pytest.mark.parametrize("mask", ["bool", "float", "causal"])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_what_lies_between_heads_and_projection(kind: str, mask: str) -> None:
    """The residual is the head's output before the gate: what the library's own attention gave, once more."""
    torch.manual_seed(0)
    attention, x, given = KINDS[kind]().double().eval(), tokens(), masks()[mask]
    with torch.no_grad(), watching() as seen:
        plain = attention(x, **given)
    best = seen[0].best("induced", "sample")
    expected = naive_merge(plain, seen[0].output, best, "tile")
    rsattn.patch(attention, init_values=None)
    torch.testing.assert_close(attention(x, **given), expected, rtol=1e-11, atol=1e-11)  # float64 sums


def test_a_scale_of_ones_own() -> None:
    attention, x = KINDS["plain"]().double().eval(), tokens()
    attention.scale = 0.7
    attention.fused_attn = False  # the library's fused form overlooks it
    with torch.no_grad(), watching() as seen:
        plain = attention(x)
    rsattn.patch(attention, init_values=None)
    expected = naive_merge(plain, seen[0].output, seen[0].best("induced", "sample"), "tile")
    torch.testing.assert_close(attention(x), expected, rtol=1e-11, atol=1e-11)


def test_the_residual_joins_after_the_output_dropout() -> None:
    """With everything of the projection dropped, the best head is all that is left."""
    attention, x = Attention(DIM, HEADS, proj_drop=1.0).double(), tokens()
    rsattn.patch(attention, init_values=None)
    with rsattn.record(attention) as seen:
        got = attention.train()(x)
    query, key, value = attention.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    output = naive_attention(query, key, value).output
    expected = naive_merge(torch.zeros_like(got), output, seen.best_head[0].tolist(), "tile")
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("fresh", [{}, {"num_heads": 2, "head_dim": DIM}], ids=["swap", "fresh"])
def test_a_mask_and_causality_exclude_each_other(fresh: dict[str, int]) -> None:
    attention = Attention(DIM, HEADS)
    rsattn.patch(attention, init_values=None, **fresh)
    with pytest.raises(ValueError, match="attn_mask and is_causal=True exclude each other"):
        attention(tokens().float(), torch.ones(LENGTH, LENGTH, dtype=torch.bool), is_causal=True)


@pytest.mark.parametrize("what", ["a subclass", "a hook", "a forward"])
def test_a_norm_of_the_users_own_is_called(what: str) -> None:
    """Q and K stay apart where somebody put something in the place of timm's `nn.Identity`, or listens to it."""

    class Doubled(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * x

    attention = Attention(DIM, HEADS)
    plain = Attention(DIM, HEADS)
    plain.load_state_dict(attention.state_dict())
    plain.scale *= 2.0
    if what == "a hook":
        attention.q_norm.register_forward_hook(lambda module, args, output: 2.0 * output)
    elif what == "a forward":
        attention.q_norm.forward = lambda x: 2.0 * x
    else:
        attention.q_norm = Doubled()
    for module in (attention, plain):
        rsattn.patch(module, init_values=None)
    x = tokens().float()
    torch.testing.assert_close(attention(x), plain(x), rtol=1e-5, atol=1e-5)  # a factor of two is exact


def test_a_hook_registered_on_fresh_heads_stays() -> None:
    attention, pulled = Attention(DIM, HEADS), []
    patched = rsattn.patch(attention, num_heads=2)
    attention.register_full_backward_hook(lambda module, given, taken: pulled.append(type(module)))
    patched.undo()
    attention(tokens().float()).sum().backward()
    assert pulled == [Attention]


def test_fresh_heads_honour_masks() -> None:
    torch.manual_seed(0)
    attention, x = Attention(DIM, HEADS), tokens().float()
    rsattn.patch(attention, num_heads=2, head_dim=DIM)
    causal = attention(x, is_causal=True)
    assert torch.equal(causal, attention(x, torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()))
    assert not torch.equal(causal, attention(x))


def test_layer_scale_scales_the_residual_too() -> None:
    model, x = VIT.model(torch.float64), tokens()
    block = model.blocks[0]
    rsattn.patch(model, init_values=None)
    gamma = block.ls1.gamma
    assert not torch.equal(gamma, torch.ones_like(gamma))
    expected = x + gamma * block.attn(block.norm1(x))
    expected = expected + block.ls2(block.mlp(block.norm2(expected)))
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", [ResidualAttention, Confident])
def test_as_attn_layer(layer: type[nn.Module]) -> None:
    """A model built with our class is a patched model: the same numbers, and nothing to undo."""
    torch.manual_seed(0)
    built = VisionTransformer(**SIZES, attn_layer=layer).eval()
    patched = VisionTransformer(**SIZES).eval()
    patched.load_state_dict(built.state_dict())
    options = layer.options
    rsattn.patch(patched, norm=options.norm, merge=options.merge, init_values=None)
    images = normal(2, 3, 32, 32, dtype=torch.float32)
    with torch.no_grad(), rsattn.record(built) as seen:
        assert torch.equal(built(images), patched(images))
        assert torch.equal(pickle.loads(pickle.dumps(built))(images), patched(images))
    assert list(seen.blocks) == ["blocks.0.attn", "blocks.1.attn"]
    with pytest.raises(RuntimeError, match="2 modules already"):
        rsattn.patch(built)


class Gated(ResidualAttention):
    options = rsattn.ResidualOptions(init_values=0.0)


def test_as_attn_layer_with_a_gate() -> None:
    """The numbers of a patched model, and its state_dict."""
    torch.manual_seed(0)
    built = VisionTransformer(**SIZES, attn_layer=Gated)
    plain = VisionTransformer(**SIZES)
    assert set(built.state_dict()) - set(plain.state_dict()) == {f"blocks.{i}.attn.gamma" for i in range(2)}
    for block in built.blocks:
        assert isinstance(block.attn.gamma, nn.Parameter)
        assert torch.equal(block.attn.gamma, torch.zeros(DIM))
        nn.init.normal_(block.attn.gamma)
    rsattn.patch(plain)
    plain.load_state_dict(built.state_dict())
    images = normal(2, 3, 32, 32, dtype=torch.float32)
    grads = []
    for model in (built.eval(), plain.eval(), pickle.loads(pickle.dumps(built))):
        loss = model(images).square().sum()
        grads.append([loss, *torch.autograd.grad(loss, [block.attn.gamma for block in model.blocks])])
    for other in grads[1:]:
        assert all(torch.equal(one, two) for one, two in zip(grads[0], other, strict=True))


def test_a_gated_layer_of_other_devices_dtypes_and_widths() -> None:
    layer = Gated(DIM, HEADS, device="meta", dtype=torch.bfloat16)
    assert (layer.gamma.device.type, layer.gamma.dtype) == ("meta", torch.bfloat16)
    assert Gated(DIM, HEADS, dim_out=48).gamma.shape == (48,)
    assert ResidualAttention(DIM, HEADS).gamma is None


@pytest.mark.parametrize("how", ["patched", "attn_layer"])
def test_weight_decay_leaves_the_gate_alone(how: str) -> None:
    if how == "patched":
        model = VisionTransformer(**SIZES)
        rsattn.patch(model)
    else:
        model = VisionTransformer(**SIZES, attn_layer=Gated)
    without, decayed = param_groups_weight_decay(model, weight_decay=0.05)
    assert (without["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    for block in model.blocks:
        assert any(p is block.attn.gamma for p in without["params"])
        assert not any(p is block.attn.gamma for p in decayed["params"])


def test_attention_of_another_kind_is_named() -> None:
    with torch.device("meta"):
        model = create_model("gcvit_xxtiny")
    with pytest.raises(ValueError, match=r"found nothing.*: rsattn does not know timm.*WindowAttentionGlobal \(stages"):
        rsattn.patch(model)


def test_the_fusion_of_crossvit_and_the_pooling_of_siglip_are_skipped() -> None:
    with torch.device("meta"):
        crossvit = rsattn.patch(create_model("crossvit_tiny_240"))
        siglip = rsattn.patch(create_model("vit_base_patch16_siglip_224"))
    unknown = "rsattn does not know timm.models.crossvit.CrossAttention"
    assert crossvit.skipped == {f"blocks.{i}.fusion.{j}.attn": unknown for i in range(3) for j in range(2)}
    assert len(crossvit.modules) == 15
    # As docs/libraries/index.md shows it.
    assert repr(siglip) == "<Patch of 12 modules: blocks.0.attn, blocks.1.attn, ..., blocks.11.attn; 1 skipped>"
    assert siglip.skipped == {"attn_pool": "rsattn does not know timm.layers.attention_pool.AttentionPoolLatent"}


def test_fresh_heads_are_refused_where_they_would_lose_something() -> None:
    extra = Attention(DIM, HEADS, qk_norm=True, gated=True, norm_layer=nn.LayerNorm)
    with pytest.raises(ValueError, match=r"newly initialized attention would lose a norm of Q and K and a gate"):
        rsattn.patch(extra, head_dim=DIM)


def test_heads_that_do_not_tile_are_refused_and_nothing_changes() -> None:
    attention = Attention(DIM, HEADS, attn_head_dim=5)
    with pytest.raises(ValueError, match="5 channels along 24"):
        rsattn.patch(attention)
    assert type(attention) is Attention
    rsattn.patch(Attention(DIM, HEADS, attn_head_dim=6), init_values=None)


def test_a_position_bias_of_its_own_and_a_shared_one() -> None:
    torch.manual_seed(0)
    attention, x = BeitAttention(DIM, HEADS, qkv_bias=True, window_size=(2, 5)).double().eval(), tokens()
    nn.init.normal_(attention.relative_position_bias_table)
    shared = normal(1, HEADS, LENGTH, LENGTH, seed=8)
    with torch.no_grad(), watching() as seen:
        plain = attention(x, shared)
    rsattn.patch(attention, init_values=None)
    expected = naive_merge(plain, seen[0].output, seen[0].best("induced", "sample"), "tile")
    torch.testing.assert_close(attention(x, shared), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["beit", "beit-shared-bias"])
def test_a_learned_position_bias_is_one_mask_for_the_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """BEiT's bias reaches the kernels in the shape in which it is learned, which is that of its gradient."""
    beit = next(case for case in CASES if case.name == f"timm-{name}")
    model = beit.model()
    rsattn.patch(model)
    calls = noted_calls(monkeypatch)
    beit.run(model)
    for call in calls:
        tokens = call.query.shape[2]
        assert call.attn_mask is not None
        assert call.attn_mask.numel() == HEADS * tokens * tokens
        assert call.attn_mask.requires_grad
