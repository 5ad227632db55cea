"""MONAI's block beyond what every library has: its masks, its choices, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from case import DIM, HEADS, Keep
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.nets import UNETR
from oracle import naive_merge, normal
from torch import Tensor, nn
from watch import calls_of

import rsattn
from rsattn.recording import recorders_here

LENGTH = 12
PADDING = torch.arange(LENGTH) < torch.tensor([[12], [7], [4]])  # True = keep
POSITIONS = dict(rel_pos_embedding="decomposed", input_size=(3, 4))


def build(dtype: torch.dtype = torch.float64, rate: float = 0.0, **options: Any) -> Any:
    torch.manual_seed(0)
    block = SABlock(DIM, HEADS, rate, **options)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 1.5 * parameter.shape[-1] ** -0.5)
    return block.to(dtype).eval()


def tokens(dtype: torch.dtype = torch.float64, width: int = DIM) -> Tensor:
    return normal(3, LENGTH, width, dtype=dtype)


def expected(block: nn.Module, x: Tensor, *args: Any) -> Tensor:
    """MONAI's result on the plain block, plus the head its own probabilities rank first."""
    (call,) = calls_of(block, [""], lambda plain: plain(x, *args))
    return naive_merge(call.output, call.seen.output, call.seen.best("induced", "sample"), "tile")


@torch.no_grad()
def assert_adds_its_best_head(block: nn.Module, x: Tensor, *args: Any) -> None:
    want = expected(block, x, *args)
    rsattn.patch(block, init_values=None)
    torch.testing.assert_close(block(x, *args), want, rtol=1e-11, atol=1e-11)  # float64 sums


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{}, POSITIONS], ids=["plain", "positions"])
def test_a_mask_of_padding(options: dict[str, Any], kind: torch.dtype) -> None:
    assert_adds_its_best_head(build(**options), tokens(), PADDING.to(kind))


@pytest.mark.parametrize("mask", [PADDING[:, None, None], normal(3, 1, LENGTH, LENGTH)], ids=["bool", "float"])
def test_a_mask_with_flash_attention(mask: Tensor) -> None:
    """MONAI hands it on as it is."""
    assert_adds_its_best_head(build(use_flash_attention=True), tokens(), mask)


def test_causal_and_flash() -> None:
    assert_adds_its_best_head(build(use_flash_attention=True, causal=True, sequence_length=16), tokens())


def test_causal_and_positions() -> None:
    assert_adds_its_best_head(build(causal=True, sequence_length=16, **POSITIONS), tokens())


@pytest.mark.parametrize("fresh", [{}, {"num_heads": 2}], ids=["swap", "fresh"])
def test_causal_takes_no_mask_besides(fresh: dict[str, int]) -> None:
    block = build(causal=True, sequence_length=16)
    with pytest.raises(ValueError, match="Causal attention does not support attention masks"):
        block(tokens(), PADDING)
    rsattn.patch(block, **fresh)
    with pytest.raises(ValueError, match="built with causal=True, and takes no attn_mask"):
        block(tokens(), PADDING)


def test_other_widths() -> None:
    """Heads wider than the tokens divided among them, and tokens of another width than the hidden size."""
    assert_adds_its_best_head(build(dim_head=12), tokens())
    assert_adds_its_best_head(build(hidden_input_size=16), tokens(width=16))
    with pytest.raises(ValueError, match="merge='tile' repeats the best head's 5 channels along 24"):
        rsattn.patch(build(dim_head=5))


def test_three_projections_without_an_output_projection() -> None:
    """The result is as wide as the heads together, 30."""
    assert_adds_its_best_head(build(use_combined_linear=False, include_fc=False, dim_head=10), tokens())


def test_a_scale_of_ones_own() -> None:
    block = build()
    block.scale = 0.7
    assert_adds_its_best_head(block, tokens())


def test_without_a_projection_the_heads_are_left_as_they_are() -> None:
    """What the projection gives may be written to, and here that is not the heads' own memory."""
    block, x, recorder = build(torch.float32, include_fc=False), tokens(torch.float32), Keep()
    plain = block(x)
    rsattn.patch(block, init_values=None)
    recorders_here(block).append(recorder)
    with torch.no_grad():
        block(x)
    joined = recorder.seen[0].output.transpose(1, 2).flatten(2)
    torch.testing.assert_close(joined, plain, rtol=1e-4, atol=1e-5)  # float32


@pytest.mark.parametrize("projected", [True, False])
def test_the_residual_joins_after_the_output_dropout(projected: bool) -> None:
    """With everything of the projection dropped, the best head is all that is left."""
    block, x = build(include_fc=projected), tokens()
    (call,) = calls_of(block, [""], lambda plain: plain(x))
    want = naive_merge(torch.zeros_like(x), call.seen.output, call.seen.best("induced", "sample"), "tile")
    block.drop_output.p = 1.0
    rsattn.patch(block, init_values=None)
    torch.testing.assert_close(block.train()(x), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("flash", [False, True], ids=["matmul", "flash"])
def test_evaluation_drops_nothing(flash: bool) -> None:
    block = build(rate=0.5, use_flash_attention=flash)
    want = expected(build(), tokens())
    rsattn.patch(block, init_values=None)
    torch.testing.assert_close(block(tokens()), want, rtol=1e-11, atol=1e-11)
    assert not torch.equal(block.train()(tokens()), block(tokens()))


def test_relative_positions_learn() -> None:
    """Their gradient is the slope of the loss along it, by a central difference."""
    block, x = build(**POSITIONS), tokens()
    rsattn.patch(block, init_values=None)
    table = block.rel_positional_embedding.rel_pos_arr[0]

    def loss() -> Tensor:
        return block(x).square().sum()

    loss().backward()
    direction = table.grad / table.grad.norm()
    with torch.no_grad():
        table += 1e-5 * direction
        above = loss()
        table -= 2e-5 * direction
        slope = (above - loss()) / 2e-5
    torch.testing.assert_close(slope, table.grad.norm(), rtol=1e-6, atol=0.0)  # error of order step²


def test_attention_dtype() -> None:
    """Right where it is V's dtype, and as in MONAI an error where it is not."""
    assert_adds_its_best_head(build(attention_dtype=torch.float64), tokens())
    block = build(attention_dtype=torch.float32)
    with pytest.raises(RuntimeError):
        block(tokens())
    rsattn.patch(block)
    with pytest.raises(TypeError, match=r"torch.float32, torch.float32 and\s+torch.float64"):
        block(tokens())


def test_stored_probabilities_are_refused() -> None:
    model = UNETR(1, 2, (32, 32), 4, DIM, 40, HEADS, spatial_dims=2, save_attn=True)
    with pytest.raises(ValueError, match=r"vit\.blocks\.0\.attn.*SABlock: save_attn=True .*rsattn\.record"):
        rsattn.patch(model)
    assert not rsattn.recording.residual_modules(model)


def test_cross_attention_stays_plain() -> None:
    block = TransformerBlock(DIM, 40, HEADS, with_cross_attention=True)
    assert list(rsattn.patch(block, init_values=None).modules) == ["attn"]
    assert type(block.cross_attn) is CrossAttentionBlock
    assert block(tokens(torch.float32), context=normal(3, 5, DIM, dtype=torch.float32)).shape == (3, LENGTH, DIM)


@pytest.mark.parametrize("bias", [True, False])
def test_fresh_heads_have_the_biases_and_dropouts_of_the_block(bias: bool) -> None:
    block = build(rate=0.25, qkv_bias=bias, hidden_input_size=16)
    rsattn.patch(block, num_heads=2)
    assert (block.qkv.bias is not None) == bias
    assert block.proj.bias is not None
    assert (block.attn_drop, block.proj_drop.p) == (0.25, 0.25)
    assert block(tokens(width=16)).shape == (3, LENGTH, 16)


@pytest.mark.parametrize("options", [{}, dict(use_flash_attention=True)], ids=["plain", "flash"])
def test_fresh_heads_take_the_mask(options: dict[str, Any]) -> None:
    """What hidden tokens are does not matter to the others."""
    block = build(**options)
    rsattn.patch(block, num_heads=1, head_dim=DIM)  # one head: it is the best whatever hidden queries attend to
    mask, x = (PADDING[:, None, None] if options else PADDING), tokens()
    other = torch.where(PADDING[..., None], x, 7.0)
    assert torch.equal(block(x, mask)[PADDING], block(other, mask)[PADDING])
    assert not torch.equal(block(x)[PADDING], block(other)[PADDING])


@pytest.mark.parametrize("flash", [False, True], ids=["matmul", "flash"])
def test_fresh_heads_stay_causal(flash: bool) -> None:
    """The last token does not matter to those before it."""
    block = build(causal=True, sequence_length=16, use_flash_attention=flash)
    rsattn.patch(block, num_heads=1, head_dim=DIM)  # one head: it is the best whatever the last token is
    x = tokens()
    other = x.clone()
    other[:, -1] = 7.0
    assert torch.equal(block(x)[:, :-1], block(other)[:, :-1])
