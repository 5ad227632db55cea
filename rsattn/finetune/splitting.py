"""Which images train, which choose the best epoch, and which are only tested: groups never share splits."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cli.command import CommandError, finished_file, shown, why, writing
from .cells import as_cell, from_cell
from .folders import Found, counted, some
from .run_folder import NO_COPY

SPLITS = ("train", "val", "test", "left-out")
TRIES = 20  # shuffles, each of several folds, before a split is called impossible


@dataclass(frozen=True)
class SplitRow:
    """One image of a split.

    Attributes:
        file: relative to the root, with /.
        label: the name of its class.
        split: "train", "val", "test" or "left-out".
        group: images of one group are in one split, or left out.
    """

    file: str
    label: str
    split: str
    group: str


def split_images(
    found: Found, groups: Sequence[str], seed: int, test_share: float = 0.2, val_share: float = 0.15
) -> list[str]:
    """The split of every image: "train", "val", "test" or "left-out".

    Splits that the folder has stay as they are; those it has not are taken from its other images at random, by
    groups, with the classes in like shares as far as groups allow. "left-out" are images that the folder has in its
    train split with others of their group in its test or val split (or in val with others in test): to train with them
    would be to train with the test. A val split of which nothing is left is taken from the train split.

    Args:
        found: the images.
        groups: one name for each.
        seed: not negative; the same gives the same splits, whenever and wherever.
        test_share, val_share: of the images that the folder itself does not put into test or val; at most a half, and
            val at most a half of what the test leaves.

    Raises:
        CommandError: a class has too few groups to be in every split, or they are too entangled for it.
    """
    splits = _without_leaks([image.split or "train" for image in found.images], groups)
    shares = {split: share for split, share in (("test", test_share), ("val", val_share)) if split not in splits}
    labels, names = np.array([image.label for image in found.images]), np.array(list(groups))
    result = np.array(splits, dtype=object)
    _refuse_few(found, splits, names, labels, ["train", *shares])
    for index, (split, share) in enumerate(shares.items()):
        pool = np.flatnonzero(result == "train")
        of_pool = share / (1 - sum(list(shares.values())[:index]))
        result[pool[_fold(labels[pool], names[pool], of_pool, seed, len(shares) - index)]] = split
    return list(result)


def _without_leaks(splits: list[str], groups: Sequence[str]) -> list[str]:
    """The splits, with "left-out" where an image's group is also in a split that weighs more: test, then val."""
    tested = {name for split, name in zip(splits, groups) if split == "test"}
    validated = {name for split, name in zip(splits, groups) if split == "val"}
    return [
        "left-out" if (split != "test" and name in tested) or (split == "train" and name in validated) else split
        for split, name in zip(splits, groups)
    ]


def _refuse_few(
    found: Found, splits: list[str], names: NDArray[np.str_], labels: NDArray[np.str_], needed: list[str]
) -> None:
    """Raise where a class has fewer groups than there are splits to be filled from the train split."""
    pool = np.array(splits) == "train"
    counts = {label: len(np.unique(names[pool & (labels == label)])) for label in found.classes}
    if few := [label for label in found.classes if counts[label] < len(needed)]:
        words = some([f"{shown(label)} has {counted(counts[label], 'group')}" for label in few])
        left_out = splits.count("left-out")
        leaks = f" ({counted(left_out, 'image')} left out: their groups are in the test or val split)"
        raise CommandError(
            f"too few groups of images for {', '.join(needed)}: {words}{leaks if left_out else ''}, and each class "
            f"needs {len(needed)} or more; add images, or take the class away"
        )


def _fold(labels: NDArray[np.str_], names: NDArray[np.str_], share: float, seed: int, others: int) -> NDArray[np.int64]:
    """Indices of about `share` of the images: whole groups, of every class, and of each `others` groups not in it."""
    from sklearn.model_selection import StratifiedGroupKFold

    most = max(len(np.unique(names[labels == label])) for label in np.unique(labels))
    number = min(round(1 / share), most)
    for attempt in range(TRIES):
        state = int(np.random.SeedSequence((seed, attempt)).generate_state(1)[0])
        folds = StratifiedGroupKFold(number, shuffle=True, random_state=state)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            chosen = [fold for _, fold in folds.split(labels, labels, names)]
        if fit := [fold for fold in chosen if _has_all(labels, names, fold, others)]:
            return min(fit, key=lambda fold: abs(len(fold) - share * len(labels)))
    raise CommandError(
        "the groups of images cannot be split so that every class is in every split: too many groups have images "
        "of several classes, or too few have many images; give other groups, or more images"
    )


def _has_all(labels: NDArray[np.str_], names: NDArray[np.str_], fold: NDArray[np.int64], others: int) -> bool:
    """Whether every class is in the fold, with `others` groups outside it."""
    inside = np.isin(np.arange(len(labels)), fold)
    return all(
        (inside & of_class).any() and len(np.unique(names[of_class & ~inside])) >= others
        for of_class in (labels == label for label in np.unique(labels))
    )


def write_split(path: Path, found: Found, groups: Sequence[str], splits: Sequence[str]) -> None:
    """Write a CSV file with the columns of `SplitRow`, a row for each image.

    Raises:
        CommandError: it cannot be written.
    """
    with (
        finished_file(path) as partial,
        writing(path),
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        rows = csv.DictWriter(file, [column.name for column in fields(SplitRow)], lineterminator="\n")
        rows.writeheader()
        for image, split, name in zip(found.images, splits, groups, strict=True):
            row = SplitRow(image.file, image.label, split, name)
            rows.writerow({column: as_cell(text) for column, text in asdict(row).items()})


def read_split(path: Path) -> list[SplitRow]:
    """What `write_split` wrote.

    Raises:
        CommandError: there is no such file, or it is another kind of file.
    """
    columns = [column.name for column in fields(SplitRow)]
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file, strict=True))
    except OSError as error:
        raise CommandError(f"cannot read the split {path}: {why(error)}; {NO_COPY}") from None
    except csv.Error as error:
        raise CommandError(f"{path} is not a split: {why(error)}; {NO_COPY}") from None
    if not rows or any(list(row) != columns or None in row.values() or row["split"] not in SPLITS for row in rows):
        raise CommandError(
            f"{path} is not a split: it is damaged, or another version of rsattn wrote it (expected the columns "
            f"{', '.join(columns)}, and {', '.join(SPLITS)} in the column split); {NO_COPY}"
        )
    return [SplitRow(**{column: from_cell(cell) for column, cell in row.items()}) for row in rows]
