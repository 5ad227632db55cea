"""The dropout stream: one seed gives one mask, whichever backend draws it.

Philox4x32 with ten rounds (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011). The probability of query i and key j in head h of sample b is kept when word `j % 4` of

    Philox(key = the 64-bit seed, counter = (j // 4, i, h, b))

read as an unsigned 32-bit number is at least `threshold(p)`. Four neighboring keys share one evaluation.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF


def draw_seed(device: torch.device) -> Tensor:
    """A (1,) int64 seed from the device's default generator, so `torch.manual_seed` governs dropout.

    It stays on the device, so nothing waits for it. A captured CUDA graph draws a new seed at each replay; activation
    checkpointing restores the generator and draws the same seed again.
    """
    return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=device)


def threshold(dropout_p: float) -> int:
    """The smallest 32-bit word that is kept."""
    return min(round(dropout_p * 2**32), LOW)


def keep_scale(dropout_p: float) -> float:
    """The factor of kept probabilities; 0 when everything is dropped."""
    return 0.0 if dropout_p >= 1.0 else 1.0 / (1.0 - dropout_p)


def words(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32-10 on int64 tensors that hold unsigned 32-bit words; `seed` is (1,) int64."""
    k0, k1 = seed & LOW, (seed >> 32) & LOW
    for _ in range(ROUNDS):
        # The 64-bit products wrap; both halves are correct once each is masked to 32 bits.
        product_0, product_1 = MULTIPLIER_0 * c0, MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            ((product_1 >> 32) & LOW) ^ c1 ^ k0,
            product_1 & LOW,
            ((product_0 >> 32) & LOW) ^ c3 ^ k1,
            product_0 & LOW,
        )
        k0, k1 = (k0 + WEYL_0) & LOW, (k1 + WEYL_1) & LOW
    return c0, c1, c2, c3


def keep_mask(seed: Tensor, dropout_p: float, shape: tuple[int, int, int, int]) -> Tensor:
    """The (B, H, N, M) bool mask of kept probabilities for `seed`, a (1,) int64 tensor."""
    batch, heads, queries, keys = shape
    groups = (keys + 3) // 4
    counts = torch.meshgrid(
        *(torch.arange(n, device=seed.device) for n in (batch, heads, queries, groups)), indexing="ij"
    )
    b, h, i, group = counts
    drawn = torch.stack(words(seed, group, i, h, b), dim=-1).flatten(-2)[..., :keys]
    return drawn >= threshold(dropout_p)
