"""The one table of tile shapes, configs.json, and how a launch finds its row in it.

Nothing is tuned at run time. A row serves an architecture ("any" for the rest), an element size, heads up to
`max_width` wide, up to `max_keys` keys (0: any number), and calls with or without dropout ("any" for both), whose
random words need registers of their own. The first row that fits is taken. `block_n` 0 means one tile across all keys,
`block_m` 0 one across all queries; `block_e` is the widest chunk of a head's columns that a tile may hold. A row
without warps leaves its calls to the kernels that take any number of keys.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Config:
    """One row of configs.json: sizes in elements, `itemsize` in bytes."""

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
        """Columns of a head that one tile holds: a power of two, at least 16 (what tl.dot needs).

        A head wider than `block_e` is cut into chunks of that size or half of it, whichever pads less.
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
    """The first row that fits, or None: that kernel does not take the call."""
    for config in table():
        if config.fits(kernel, arch, itemsize, width, keys, dropout):
            return config if config.warps else None
    return None


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
