"""Hugging Face's models whose attention `patch` changes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import transformers
from case import DIM, HEADS, IMAGE, Case
from oracle import normal
from torch import Tensor, nn

RATE = 0.25
SIZES = dict(
    hidden_size=DIM, num_attention_heads=HEADS, num_hidden_layers=2, intermediate_size=40, image_size=IMAGE,
    patch_size=8, initializer_range=0.3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=RATE,
)  # fmt: skip


def build(name: str, attn_implementation: str = "sdpa", **options: object) -> nn.Module:
    """The model of this class."""
    kind = getattr(transformers, name)
    return kind(kind.config_class(**{**SIZES, **options}, attn_implementation=attn_implementation))


def numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    return normal(*shape, dtype=dtype)


def case(
    name: str,
    where: str,
    shape: tuple[int, ...] = (2, 3, IMAGE, IMAGE),
    fresh: bool = True,
    attention: str = "attention",
    **options: object,
) -> Case:
    """`name` of the model's class, `where` its layers are, `shape` of what it is called with."""
    return Case(
        f"transformers-{name}",
        partial(build, name, **options),
        [f"{where}.{i}.{attention}" for i in range(2)],
        lambda dtype: numbers(*shape, dtype=dtype),
        lambda model, inputs: model(inputs)[0],
        fresh=fresh,
        packed=False,
    )


CLIP = dict(attention="self_attn", attention_dropout=RATE)
# Four windows of 16 tokens, in the second block shifted by half a window.
SWIN = dict(
    embed_dim=DIM, depths=[2], num_attention_heads=[HEADS], num_hidden_layers=1, window_size=4, patch_size=4,
    drop_path_rate=0.0, fresh=False,
)  # fmt: skip
OLDER_SWIN = {**SWIN, "attn_implementation": "eager"}  # the only one it has; it takes its softmax in any dtype
SWIN_BLOCKS = "encoder.layers.0.blocks"

# The library's "eager" takes its softmax in float32 always, which these tests' float64 would notice.
CASES = [
    case("ViTForImageClassification", "vit.layers"),
    case("DeiTModel", "layers", qkv_bias=False),
    case("Dinov2Model", "encoder.layer"),
    case("Dinov2WithRegistersModel", "encoder.layer"),
    case("DINOv3ViTModel", "model.layer", fresh=False, attention_dropout=RATE, num_register_tokens=2),
    case("SiglipVisionModel", "encoder.layers", **CLIP),
    case("SwinModel", SWIN_BLOCKS, **SWIN),
    case("Swinv2Model", SWIN_BLOCKS, **OLDER_SWIN),
]


def padded(model: nn.Module, inputs: Tensor) -> Tensor:
    """SigLIP 2 takes patches, and images of any shape; the second has 9 of 16."""
    mask = (torch.arange(16) < torch.tensor([[16], [9]])).long()
    tokens: Tensor = model(inputs.flatten(1).unflatten(1, (16, -1)), mask, torch.tensor([[4, 4], [3, 3]]))[0]
    return tokens


# Their attention is that of a class above to the letter, so fewer tests will do.
CLAP = dict(spec_size=32, num_mel_bins=32, patch_stride=[4, 4], patch_embeds_hidden_size=DIM, hidden_size=DIM)
SPECTROGRAM = dict(num_mel_bins=16, max_length=24, frequency_stride=8, time_stride=8)
OTHERS = [
    case("ASTModel", "layers", (2, 24, 16), **SPECTROGRAM),
    case("BeitModel", "layers", use_relative_position_bias=True),
    case("CLIPVisionModel", "encoder.layers", **CLIP),
    case("ClapAudioModel", f"audio_{SWIN_BLOCKS}", (2, 1, 32, 32), **OLDER_SWIN, **CLAP),
    case("DonutSwinModel", SWIN_BLOCKS, **OLDER_SWIN),
    case("IJepaModel", "layers"),
    case("MaskFormerSwinModel", SWIN_BLOCKS, **OLDER_SWIN),
    case("PixioModel", "layers"),
    replace(case("Siglip2VisionModel", "encoder.layers", num_patches=16, **CLIP), call=padded),
    case("Swin2SRModel", "encoder.stages.0.layers", (2, 3, 8, 8), **{**OLDER_SWIN, "image_size": 8, "patch_size": 1}),
    case("Tipsv2VisionModel", "encoder.layer"),
    case("ViTMAEModel", "layers"),
    case("ViTMSNModel", "layers"),
    case("VivitModel", "layers", (2, 2, 3, IMAGE, IMAGE), num_frames=2, tubelet_size=[2, 8, 8]),
]
