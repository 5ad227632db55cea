"""The shapes that are timed, with a batch size that suits the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shape:
    """(B, H, N, E) of the queries, keys and values."""

    batch: int
    heads: int
    length: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.batch},{self.heads},{self.length},{self.head_dim}"

    @property
    def dim(self) -> int:
        """D of the tokens, if the heads divide it."""
        return self.heads * self.head_dim

    def flops(self, train: bool) -> int:
        """Floating-point operations of the products: two forward and five of the same size backward (P again)."""
        return (14 if train else 4) * self.batch * self.heads * self.length**2 * self.head_dim

    def bytes(self, train: bool, itemsize: int) -> int:
        """The fewest bytes to and from memory: Q, K, V and O; backward reads these and dO, and writes dQ, dK and dV."""
        return (12 if train else 4) * self.batch * self.heads * self.length * self.head_dim * itemsize

    def probabilities(self, itemsize: int) -> int:
        """Bytes of P (B, H, N, N), which rsattn never stores."""
        return self.batch * self.heads * self.length**2 * itemsize


# model -> batch on a GPU, batch on a CPU, H, N, E. On a CPU a call should take about 10 to 100 ms.
MODELS = {
    "ViT-B/16 at 224": (64, 8, 12, 197, 64),
    "ViT-B/14 at 224": (64, 8, 12, 257, 64),
    "ViT-B/16 at 384": (32, 4, 12, 577, 64),
    "ViT-L/16 at 512": (32, 1, 16, 1025, 64),
    "DINOv2 ViT-B/14 at 518": (16, 1, 12, 1370, 64),
    "4096 tokens": (4, 1, 12, 4096, 64),
    "16384 tokens": (1, 1, 12, 16384, 64),
    "the paper's authors'": (16, 16, 4, 65, 768),
}
HEADS_ON_A_CPU = {4096: 2, 16384: 1}  # twelve heads would take seconds


def real_shapes(device: torch.device) -> dict[str, Shape]:
    """Model -> its shape on this device."""
    shapes = {}
    for model, (on_gpu, on_cpu, heads, length, head_dim) in MODELS.items():
        if device.type == "cuda":
            shapes[model] = Shape(on_gpu, heads, length, head_dim)
        else:
            shapes[model] = Shape(on_cpu, HEADS_ON_A_CPU.get(length, heads), length, head_dim)
    return shapes
