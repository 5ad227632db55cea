"""vit-pytorch beyond what every library has: one head without a projection, the LayerNorm inside, other models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from case import DIM, HEADS, IMAGE, Keep
from oracle import naive_merge, normal
from torch import Tensor, nn
from vit_pytorch import MAE, ViT
from vit_pytorch.simple_vit import Attention as SimpleAttention
from vit_pytorch.vit import Attention
from watch import calls_of

import rsattn
from rsattn.recording import recorders_here

KINDS = pytest.mark.parametrize("kind", [Attention, SimpleAttention], ids=["vit", "simple_vit"])


def tokens() -> Tensor:
    return normal(3, 11, DIM, dtype=torch.float32)


def test_one_head_without_a_projection() -> None:
    """It is the best one: twice the library's output. The heads' memory, which is the output's, is not written to."""
    attention, recorder = Attention(DIM, 1, DIM), Keep()
    plain = attention(tokens())
    assert isinstance(attention.to_out, nn.Identity)
    rsattn.patch(attention, init_values=None)
    recorders_here(attention).append(recorder)
    with torch.no_grad():
        got = attention(tokens())
    torch.testing.assert_close(got, 2 * plain, rtol=1e-5, atol=1e-6)  # float32
    torch.testing.assert_close(recorder.seen[0].output.squeeze(1), plain, rtol=1e-5, atol=1e-6)


@KINDS
def test_a_scale_of_ones_own(kind: Any) -> None:
    attention, x = kind(DIM, HEADS, DIM // HEADS).double(), tokens().double()
    attention.scale = 0.7
    (call,) = calls_of(attention, [""], lambda plain: plain(x))
    want = naive_merge(call.output, call.seen.output, call.seen.best("induced", "sample"), "tile")
    rsattn.patch(attention, init_values=None)
    torch.testing.assert_close(attention(x), want, rtol=1e-11, atol=1e-11)  # float64 sums


def test_the_residual_joins_after_the_output_dropout() -> None:
    """With everything of the projection dropped, the best head is all that is left."""
    attention, x = Attention(DIM, HEADS, DIM // HEADS).double(), tokens().double()
    (call,) = calls_of(attention, [""], lambda plain: plain(x))
    want = naive_merge(torch.zeros_like(x), call.seen.output, call.seen.best("induced", "sample"), "tile")
    attention.to_out[1].p = 1.0
    rsattn.patch(attention, init_values=None)
    torch.testing.assert_close(attention(x), want, rtol=1e-11, atol=1e-11)


@KINDS
def test_heads_of_their_own_width(kind: Any) -> None:
    """`dim_head` need not be what `dim / heads` gives."""
    attention = kind(DIM, HEADS, 12)
    plain = attention(tokens())
    with rsattn.patch(attention, init_values=None), rsattn.record(attention) as seen:
        assert attention(tokens()).shape == plain.shape
    assert seen.norms.shape == (1, 3, HEADS)
    with pytest.raises(ValueError, match="merge='slot' needs dim = num_heads"):
        rsattn.patch(attention, merge="slot")


@KINDS
def test_fresh_heads_keep_the_layer_norm(kind: Any) -> None:
    """The very module: what it learns while patched stays, and it makes the size of a token irrelevant."""
    attention = kind(DIM, HEADS, DIM // HEADS)
    norm = attention.norm
    with rsattn.patch(attention, num_heads=2):
        assert attention.norm is norm
        assert attention.qkv.bias is None
        assert (attention.proj.bias is None) == (kind is SimpleAttention)
        # LayerNorm's eps is 1e-5 of a variance near 1.
        torch.testing.assert_close(attention(100 * tokens()), attention(tokens()), rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            norm.weight.fill_(2.0)
    assert attention.norm is norm
    assert attention.norm.weight[0] == 2.0


def test_fresh_heads_drop_as_the_library_does() -> None:
    attention = Attention(DIM, HEADS, DIM // HEADS, dropout=0.25)
    rsattn.patch(attention, num_heads=2)
    assert (attention.attn_drop, attention.proj_drop.p) == (0.25, 0.25)


def test_the_masked_autoencoder() -> None:
    """Its encoder is a `ViT`, its decoder the same transformer."""
    vit = ViT(image_size=IMAGE, patch_size=8, num_classes=5, dim=DIM, depth=1, heads=HEADS, mlp_dim=40, dim_head=8)
    model = MAE(encoder=vit, decoder_dim=16, decoder_depth=2, decoder_heads=2, decoder_dim_head=8)
    decoder, x = model.decoder, normal(2, 11, 16, dtype=torch.float32)
    plain = decoder(x)
    assert list(rsattn.patch(model, init_values=None).modules) == [
        "encoder.transformer.layers.0.0",
        "decoder.layers.0.0",
        "decoder.layers.1.0",
    ]
    assert not torch.allclose(decoder(x), plain)
