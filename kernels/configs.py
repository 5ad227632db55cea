"""The one table of tile shapes, configs.json, and how a launch finds its row in it.

Nothing is tuned at run time. A row serves an architecture ("any" for the rest), an element size, heads whose
width is cut into chunks of at most `max_chunk` columns, and up to `max_keys` keys (0: any number). The first row
that fits is taken. `block_n` 0 means one tile across all keys.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources


WIDEST_CHUNK = 128


@dataclass(frozen=True)
class Config:
    """One row of configs.json: sizes in elements, `itemsize` in bytes."""

    kernel: str
    arch: str
    itemsize: int
    max_chunk: int
    max_keys: int
    block_m: int
    block_n: int
    warps: int
    stages: int

    def fits(self, kernel: str, arch: str, itemsize: int, chunk: int, keys: int) -> bool:
        return (
            self.kernel == kernel
            and self.arch in ("any", arch)
            and self.itemsize == itemsize
            and chunk <= self.max_chunk
            and (self.max_keys == 0 or keys <= self.max_keys)
        )


@functools.cache
def table() -> tuple[Config, ...]:
    text = resources.files(__package__).joinpath("configs.json").read_text()
    return tuple(Config(**row) for row in json.loads(text))


@functools.cache
def find(kernel: str, arch: str, itemsize: int, chunk: int, keys: int) -> Config | None:
    """The first row that fits, or None: that kernel does not take the call."""
    for config in table():
        if config.fits(kernel, arch, itemsize, chunk, keys):
            return config
    return None


def chunk_width(head_dim: int) -> int:
    """How many columns of a head one tile holds: a power of two, at least 16 (what tl.dot needs).

    A head no wider than WIDEST_CHUNK is one chunk; a wider one is cut where the padding is least.
    """
    if head_dim <= WIDEST_CHUNK:
        return max(16, power_of_two(head_dim))
    halves = (WIDEST_CHUNK, WIDEST_CHUNK // 2)
    return min(halves, key=lambda width: (-(-head_dim // width) * width, -width))


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
