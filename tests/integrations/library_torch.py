"""PyTorch's own attention: alone, in its encoder, and in torchvision's vision transformer."""

from __future__ import annotations

import torch
from case import DIM, HEADS, IMAGE, Case
from oracle import normal
from torch import Tensor, nn
from torchvision.models import VisionTransformer


def vision_transformer() -> nn.Module:
    return VisionTransformer(IMAGE, 8, 2, HEADS, DIM, 40, attention_dropout=0.25, num_classes=5)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(DIM, 4, 40, dropout=0.0, batch_first=True)
    layer.self_attn.dropout = 0.25
    return nn.TransformerEncoder(layer, 2)


class Pooling(nn.Module):
    """Cross-attention from a few learned queries, keys and values of another width, length first."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(5, 1, DIM))
        self.attention = nn.MultiheadAttention(DIM, HEADS, dropout=0.25, kdim=10, vdim=12)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        key, value = inputs
        queries = self.queries.expand(-1, key.shape[1], -1)
        return self.attention(queries, key, value, need_weights=False)[0]


def tokens(dtype: torch.dtype) -> Tensor:
    return normal(3, 11, DIM, dtype=dtype)


def padded(model: nn.Module, x: Tensor) -> Tensor:
    """The longest sample fills its row, as PyTorch's nested tensors need."""
    ignore = torch.arange(x.shape[1]) >= torch.tensor([[11], [7], [4]])
    result = model(x, src_key_padding_mask=ignore)
    return torch.where(ignore[..., None], 0.0, result)


ENCODER = ["layers.0.self_attn", "layers.1.self_attn"]

CASES = [
    Case(
        "torchvision-vit",
        vision_transformer,
        [f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(2)],
    ),
    Case("torch-encoder", encoder, ENCODER, tokens),
    Case("torch-encoder-padded", encoder, ENCODER, tokens, padded),
    Case(
        "torch-cross",
        Pooling,
        ["attention"],
        lambda dtype: (normal(9, 2, 10, dtype=dtype), normal(9, 2, 12, seed=1, dtype=dtype)),
        fresh=False,
        as_tokens=lambda attention, output: output.transpose(0, 1),
        packed=False,
    ),
]
