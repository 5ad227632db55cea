"""The pictures of a run, part by part."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from ..cli.command import CommandError
from .contents import fault, read_json
from .dataset import Normalise, Pictures, Store, numbered
from .options import Options
from .run_folder import NO_COPY, RunFolder
from .splitting import SplitRow, read_split


class Parts:
    """The pictures of a run and the part each belongs to, as its split.csv says."""

    def __init__(self, folder: RunFolder, size: int) -> None:
        described = read_json(folder.data, {"root": str, "classes": [str]}, NO_COPY)
        if clause := fault(described.get("counts", {}), {str: {str: int}}, "counts"):
            raise CommandError(f"{folder.data} is damaged: {clause}; {NO_COPY}")
        self.classes = tuple(described["classes"])
        self.rows: list[SplitRow] = read_split(folder.split)
        self._refuse_losses(folder, described.get("counts", {}))
        self.labels = numbered(self.rows, self.classes)
        self.store = Store(Path(described["root"]), [row.file for row in self.rows], size)
        self.normalise = Normalise((0.0,) * 3, (1.0,) * 3)

    def _refuse_losses(self, folder: RunFolder, counts: dict[str, dict[str, int]]) -> None:
        """Raise where split.csv lost pictures, or has others than it was written with."""
        found = Counter((row.part, row.label) for row in self.rows)
        if any(found[part, label] != number for part, of_part in counts.items() for label, number in of_part.items()):
            raise CommandError(f"{folder.split} has not as many images as {folder.data.name} counts: {NO_COPY}")

    def indices(self, part: str) -> list[int]:
        return [i for i, row in enumerate(self.rows) if row.part == part]

    def pictures(self, part: str, options: Options, epoch: int = 0) -> Pictures:
        """Those of one part; only training pictures are changed at random."""
        augment = options.augment if part == "train" else "none"
        chosen = self.indices(part)
        return Pictures(self.store, chosen, self.labels, self.normalise, augment, options.seed, epoch)

    def class_weights(self) -> Tensor:
        """(classes,) inverse to the number of training pictures, 1 on average over them."""
        counts = Counter(self.labels[i] for i in self.indices("train"))
        total = sum(counts.values())
        return torch.tensor([total / (len(self.classes) * counts[c]) for c in range(len(self.classes))])
