"""What the file of a library provides; each is a module with these functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import nn

from ..module import ResidualOptions

Undo = Callable[[], None]


class Integration(Protocol):
    """How `rsattn.patch` changes one library's blocks. Both changes return what takes them back."""

    def recognises(self, module: nn.Module) -> bool:
        """Whether `module` is one this integration changes."""

    def swap(self, module: nn.Module, options: ResidualOptions) -> Undo:
        """Change the module's class in place, keeping its weights and their names."""

    def replace(self, module: nn.Module, options: ResidualOptions, num_heads: int | None, head_dim: int | None) -> Undo:
        """Put a freshly initialised `ResidualSelfAttention` in the place of the module's own attention."""
