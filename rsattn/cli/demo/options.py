"""The command line of `rsattn demo`, read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...contract import Merge, Norm, Scope


@dataclass(frozen=True)
class DemoOptions:
    """The command line of `rsattn demo`, argument by argument."""

    image: Path | None
    weights: Path | None
    pretrained: bool
    image_size: int | None
    out: Path
    norm: Norm
    scope: Scope
    merge: Merge
    backend: str | None
    seed: int

    @property
    def asks_for_vit_b16(self) -> bool:
        """Whether it names something that only ViT-B/16 takes; the demo's own model has one size and one task."""
        return self.pretrained or any(value is not None for value in (self.weights, self.image, self.image_size))
