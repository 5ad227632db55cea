"""The two image sets of the paper, and their splits: those of the authors, and splits without leaks.

The data folder holds the zip files of the images, and tables that list which images are copies of one another.
README.md gives the sources.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from rsattn.finetune.splitting import SplitRow

from .side_by_side import locked

SPLITS = ("authors", "leak-free")
TEST_SHARE, VAL_SHARE = 0.2, 0.15
AUTHORS_SEED = 42  # of their train_test_split


@dataclass(frozen=True)
class ImageSet:
    """An image set; `rows` have the set's own split ("" where it has none) and the group of copies."""

    name: str
    root: Path
    classes: tuple[str, ...]
    rows: tuple[SplitRow, ...]


def mri(data: Path, work: Path) -> ImageSet:
    """253 slices; a group is a cluster of near-identical ones."""
    root = _unpacked(data / "brain_mri_gray384_jpg90.zip", work)
    table = _table(data / "brain_mri_clusters.csv")
    rows = tuple(SplitRow(row["file"], row["class"], "", row["cluster"]) for row in table)
    return ImageSet("mri", root, ("no", "yes"), rows)


def blood(data: Path, work: Path) -> ImageSet:
    """12,444 augmented cells; a group is a photograph, or photographs of one field. Uncertain origins are left out."""
    root = _unpacked(data / "blood_full_128x128_webp85.zip", work)
    same = _same_field(_table(data / "blood_duplicate_originals.csv"))
    certain = {
        (row["split"], row["class"], row["file"]): same.get(row["source_id"], row["source_id"])
        for row in _table(data / "blood_source_map.csv")
        if int(row["inliers"]) >= 12 and int(row["inliers"]) >= 2 * int(row["second_inliers"])
    }
    names = {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.glob("T*/*/*"))}
    rows = []
    for (split, label, file), group in sorted(certain.items()):
        path = names.get(f"{split}/{label}/{Path(file).stem}")
        if path is not None:
            rows.append(SplitRow(path.relative_to(root).as_posix(), label, split.lower(), group))
    return ImageSet("blood", root, ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL"), tuple(rows))


def thinned(images: ImageSet, every: int) -> ImageSet:
    """Every n-th image of each class in each split, in the order of the photographs, with n = `every`.

    The classes keep their shares. A fixed number of copies per photograph would change them, because rare classes have
    fewer photographs and more copies of each.
    """
    order = sorted(images.rows, key=lambda row: (row.split, row.label, row.group, row.file))
    kept: list[SplitRow] = []
    for _, rows in groupby(order, key=lambda row: (row.split, row.label)):
        kept += list(rows)[::every]
    return ImageSet(images.name, images.root, images.classes, tuple(kept))


def divided(images: ImageSet, how: str, seed: int) -> list[SplitRow]:
    """The rows with their splits: train, val, test or left-out.

    "authors": MRI at random, copies or not, seed 0 with their random state; blood with its own TEST. Their loop has no
    separate validation split for choosing an epoch; one is taken from training at random.
    "leak-free": groups stay together; blood keeps its TEST, and training images of TEST's groups are left out.
    """
    rows = list(images.rows)
    labels, groups = [row.label for row in rows], [row.group for row in rows]
    own = {row.split for row in rows} != {""}
    everything = np.arange(len(rows))
    if own:
        test = np.array([i for i in everything if rows[i].split == "test"])
        rest = np.array([i for i in everything if rows[i].split == "train"])
    elif how == "authors":
        rest, test = train_test_split(everything, test_size=TEST_SHARE, random_state=AUTHORS_SEED + seed)
    else:
        rest, test = _by_group(everything, labels, groups, TEST_SHARE, seed)
    if how == "authors":
        train, val = train_test_split(rest, test_size=VAL_SHARE, random_state=seed, stratify=[labels[i] for i in rest])
    else:
        tested = {groups[i] for i in test}
        rest = np.array([i for i in rest if groups[i] not in tested])
        train, val = _by_group(rest, labels, groups, VAL_SHARE, seed)
    splits = dict.fromkeys(range(len(rows)), "left-out")
    for split, indices in (("train", train), ("val", val), ("test", test)):
        splits.update(dict.fromkeys(indices.tolist(), split))
    return [SplitRow(row.file, row.label, splits[i], row.group) for i, row in enumerate(rows)]


def _by_group(
    indices: np.ndarray, labels: Sequence[str], groups: Sequence[str], share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(rest, held out): of about `share` the second, classes in proportion, groups whole."""
    folds = StratifiedGroupKFold(round(1 / share), shuffle=True, random_state=seed)
    rest, held_out = next(folds.split(indices, [labels[i] for i in indices], [groups[i] for i in indices]))
    return indices[rest], indices[held_out]


def _same_field(pairs: Sequence[dict[str, str]]) -> dict[str, str]:
    """Photograph -> the first photograph of the same field; only where the match is sure (18 inliers)."""
    sure = [(int(row["id_a"]), int(row["id_b"])) for row in pairs if int(row["orb_inliers"]) >= 18]
    size = 1 + max(max(pair) for pair in sure)
    a, b = np.array(sure).T
    _, component = connected_components(coo_array((np.ones(len(sure)), (a, b)), shape=(size, size)), directed=False)
    first: dict[int, int] = {}
    for photograph, label in enumerate(component):
        first.setdefault(int(label), photograph)
    return {str(i): str(first[int(component[i])]) for i in range(size)}


def _unpacked(archive: Path, work: Path) -> Path:
    target = work / archive.stem
    with locked(work / f"{archive.stem}.lock"):
        if not target.exists():
            partial = target.with_suffix(".partial")
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(partial)
            partial.rename(target)
    return target


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
