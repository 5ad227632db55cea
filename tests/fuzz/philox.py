"""The elements that dropout keeps, from the generator's paper (Salmon et al., SC 2011), for whole arrays at once.

`oracle.philox_keep` computes the same one element at a time; tests/test_fuzz.py compares the two.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LOW = np.uint64(0xFFFFFFFF)
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10


def kept(seed: int, dropout_p: float, shape: tuple[int, int, int, int]) -> Tensor:
    """(B, H, N, M) bool."""
    batch, heads, queries, keys = shape
    sizes = (batch, heads, queries, -(-keys // 4))
    b, h, i, group = (np.ascontiguousarray(grid) for grid in np.indices(sizes, dtype=np.uint64))
    words = np.stack(_words(seed, [group, i, h, b]), axis=-1).reshape(*sizes[:3], sizes[3] * 4)
    return torch.from_numpy(words[..., :keys] >= np.uint64(min(round(dropout_p * 2**32), 2**32 - 1)))


def _words(seed: int, counter: list[np.ndarray]) -> list[np.ndarray]:
    keys = [seed % 2**32, (seed >> 32) % 2**32]
    for _ in range(ROUNDS):
        first, second = counter[0] * MULTIPLIERS[0], counter[2] * MULTIPLIERS[1]
        counter = [
            second >> np.uint64(32) ^ counter[1] ^ np.uint64(keys[0]),
            second & LOW,
            first >> np.uint64(32) ^ counter[3] ^ np.uint64(keys[1]),
            first & LOW,
        ]
        keys = [(key + step) % 2**32 for key, step in zip(keys, WEYL)]
    return counter
