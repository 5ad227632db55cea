"""The images of a run and their splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cli.command import CommandError
from ..cli.gray import Window
from .contents import fault, read_json
from .dataset import ImageDataset, Normalize, Store, numbered
from .near_identical import SHAPE
from .options import Options
from .run_folder import NO_COPY, RunFolder
from .splitting import SPLITS, SplitRow, read_split


def described_data(folder: RunFolder) -> dict[str, Any]:
    """The content of data.json.

    Raises:
        CommandError: the file is damaged.
    """
    described = read_json(folder.data, {"root": str, "classes": [str]}, NO_COPY)
    clause = fault(described.get("counts", {}), {str: {str: int}}, "counts") or fault(
        described.get("near_identical") or [], SHAPE, "near_identical"
    )
    if clause:
        raise CommandError(f"{folder.data} is damaged: {clause}; {NO_COPY}")
    return described


def root_of(folder: RunFolder, described: dict[str, Any]) -> Path:
    """The folder of the images; digits move with the folder of the run."""
    root = Path(described["root"])
    for place in (root, folder.digits):
        if place.is_dir():
            return place
    raise CommandError(
        f"there is no {root}, where the images of the run in {folder.path} were: put them back, or say where they are "
        f"now with `rsattn finetune --resume {folder.path} --data FOLDER`"
    )


def rows_of(folder: RunFolder, described: dict[str, Any]) -> list[SplitRow]:
    """The rows of split.csv.

    Args:
        described: the content of data.json.

    Raises:
        CommandError: the file is damaged, or has other images than it was written with.
    """
    rows = read_split(folder.split)
    found = Counter((row.split, row.label) for row in rows)
    counts: dict[str, dict[str, int]] = described.get("counts", {})
    if any(found[split, label] != number for split, of_split in counts.items() for label, number in of_split.items()):
        raise CommandError(f"{folder.split} has not as many images as {folder.data.name} counts; {NO_COPY}")
    return rows


class Splits:
    """The images of a run and the split of each, from split.csv."""

    def __init__(self, folder: RunFolder, size: int, resize: str = "squash", window: Window | None = None) -> None:
        described = described_data(folder)
        # The data.json of an earlier version has no near_identical; it is None where the images were not compared.
        self.near_identical = described.get("near_identical")
        self.groups = described.get("groups")
        self.classes = tuple(described["classes"])
        self.rows = rows_of(folder, described)
        self.labels = numbered(self.rows, self.classes)
        self.store = Store(root_of(folder, described), [row.file for row in self.rows], size, resize, window)
        self.normalize = Normalize((0.0,) * 3, (1.0,) * 3)

    def indices(self, split: str) -> list[int]:
        return [i for i, row in enumerate(self.rows) if row.split == split]

    def labels_of(self, indices: Sequence[int]) -> Tensor:
        """(n,) int64."""
        return torch.tensor([self.labels[i] for i in indices], dtype=torch.int64)

    def described(self) -> dict[str, Any]:
        """{split: {images, groups, classes: {name: images}}}."""
        found = {}
        for split in sorted({row.split for row in self.rows}, key=SPLITS.index):
            rows = [row for row in self.rows if row.split == split]
            counts = Counter(row.label for row in rows)
            found[split] = {
                "images": len(rows),
                "groups": len({row.group for row in rows}),
                "classes": {name: counts[name] for name in self.classes},
            }
        return found

    def dataset(self, split: str, options: Options, epoch: int = 0) -> ImageDataset:
        """The images of one split; only those of the train split are augmented."""
        augment = options.augment if split == "train" else "none"
        chosen = self.indices(split)
        return ImageDataset(self.store, chosen, self.labels, self.normalize, augment, options.seed, epoch)

    def class_weights(self) -> Tensor:
        """Weights (classes,), inverse to the number of training images, with an average of 1 over the images."""
        counts = Counter(self.labels[i] for i in self.indices("train"))
        total = sum(counts.values())
        return torch.tensor([total / (len(self.classes) * counts[c]) for c in range(len(self.classes))])
