"""configs.json, the table of tile shapes, and the lookup of a launch's row. Nothing is tuned at run time.

A launch uses the first row that fits. A row fits an architecture ("any": all), an element size, a head_dim up to
`max_width`, up to `max_keys` keys (0: any number), and calls with dropout, without it, or both ("any"); dropout needs
extra registers. `block_n` 0 is one tile across all keys, `block_m` 0 one tile across all queries. `block_e` is the
largest number of a head's columns in a tile. A row with 0 warps leaves its calls to the kernels for any number of keys.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Config:
    """One row of configs.json. Sizes are in elements, `itemsize` is in bytes."""

    kernel: str
    arch: str
    itemsize: int
    max_width: int
    max_keys: int
    dropout: str
    block_m: int
    block_n: int
    block_e: int
    warps: int
    stages: int

    def fits(self, kernel: str, arch: str, itemsize: int, width: int, keys: int, dropout: bool) -> bool:
        return (
            self.kernel == kernel
            and self.arch in ("any", arch)
            and self.itemsize == itemsize
            and width <= self.max_width
            and (self.max_keys == 0 or keys <= self.max_keys)
            and self.dropout in ("any", "yes" if dropout else "no")
        )

    def chunk(self, width: int) -> int:
        """The number of a head's columns in one tile: a power of two and at least 16, which tl.dot requires.

        A head with more than `block_e` columns is cut into chunks of that size or of half of it, whichever pads less.
        """
        if width <= self.block_e:
            return max(16, power_of_two(width))
        sizes = (self.block_e, max(16, self.block_e // 2))
        return min(sizes, key=lambda size: (-(-width // size) * size, -size))


@functools.cache
def table() -> tuple[Config, ...]:
    text = resources.files(__package__).joinpath("configs.json").read_text()
    return tuple(Config(**row) for row in json.loads(text))


@functools.cache
def find(kernel: str, arch: str, itemsize: int, width: int, keys: int, dropout: bool) -> Config | None:
    """The first row that fits, or None if this kernel does not support the call."""
    for config in table():
        if config.fits(kernel, arch, itemsize, width, keys, dropout):
            return config if config.warps else None
    return None


def blocks(length: int, size: int) -> int:
    """The number of blocks of a size that cover a length."""
    return -(-length // size)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
