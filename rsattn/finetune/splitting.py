"""Divide images into train, val and test splits; a group is never divided between splits."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cli.command import CommandError, shown, why
from .cells import as_cell, from_cell
from .contents import csv_file
from .folders import Found
from .run_folder import NO_COPY
from .wording import counted, some

SPLITS = ("train", "val", "test", "left-out")
TRIES = 20  # shuffles, each with several folds, before splitting counts as impossible


@dataclass(frozen=True)
class SplitRow:
    """An image and its split.

    Attributes:
        file: relative to the root, with /.
        label: the name of its class.
        split: "train", "val", "test" or "left-out".
        group: the images of a group are in one split or left out.
    """

    file: str
    label: str
    split: str
    group: str


def split_images(
    found: Found, groups: Sequence[str], seed: int, test_share: float = 0.2, val_share: float = 0.15
) -> list[str]:
    """The split of every image: "train", "val", "test" or "left-out".

    The splits of the folder stay. Missing splits are drawn at random from the other images, by group and with the
    classes in proportion as far as groups allow. An image is "left-out" if it is in the folder's train split and others
    of its group are in test or val (or if it is in val and others are in test), because it would leak the test images
    into training. If no image of the val split remains, a val split is drawn from the train split.

    Args:
        found: the images.
        groups: one name for each.
        seed: 0 or larger; the same seed gives the same splits on any machine.
        test_share, val_share: the shares of the images that are not in the folder's own test or val split; at most
            a half, and val at most a half of what test leaves.

    Raises:
        CommandError: the groups do not allow every class to be in every split.
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


def split_fold(
    found: Found, groups: Sequence[str], folds: int, fold: int, folds_seed: int, seed: int, val_share: float = 0.15
) -> list[str]:
    """The split of every image in one run of a cross-validation: "train", "val" or "test".

    The test splits of the folds are disjoint and together all images, with the classes in proportion as far as groups
    allow; a group is in one of them. The val split is drawn from the rest, as in `split_images`.

    Args:
        found: the images; their folder has no test or val split.
        groups: one name for each.
        folds: their number, 2 or larger.
        fold: the one to test, from 0.
        folds_seed: the seed of the folds, the same for all runs.
        seed: the seed of the val split.
        val_share: the share of all images.

    Raises:
        CommandError: the folder has its own test or val split, or the groups do not allow every class to be in every
            split of every fold.
    """
    given = {image.split for image in found.images}
    if own := [split for split in ("test", "val") if split in given]:
        raise CommandError(
            f"--folds tests every image once, but {found.root} has its own {' and '.join(own)} split: use --seeds, "
            "or a folder without splits"
        )
    labels, names = np.array([image.label for image in found.images]), np.array(list(groups))
    _refuse_few_for_folds(found, names, labels, folds)
    result = np.full(len(labels), "train", dtype=object)
    tested = _all_folds(labels, names, folds, folds_seed)[fold]
    result[tested] = "test"
    pool = np.flatnonzero(result == "train")
    share = min(0.5, val_share * len(labels) / len(pool))
    result[pool[_fold(labels[pool], names[pool], share, seed, 1)]] = "val"
    return list(result)


def _refuse_few_for_folds(found: Found, names: NDArray[np.str_], labels: NDArray[np.str_], folds: int) -> None:
    """Raise where a class has fewer groups than folds, or too few for train and val beside a fold."""
    least = max(folds, 3)
    counts = {label: len(np.unique(names[labels == label])) for label in found.classes}
    if few := [label for label in found.classes if counts[label] < least]:
        words = some([f"{shown(label)} has {counted(counts[label], 'group')}" for label in few])
        raise CommandError(
            f"too few groups of images for {folds} folds: {words}, and each class needs at least {least}; use fewer "
            "folds, add images, or remove the class"
        )


def _all_folds(labels: NDArray[np.str_], names: NDArray[np.str_], folds: int, seed: int) -> list[NDArray[np.int64]]:
    """Disjoint folds with images of every class, which leave two groups of every class."""
    for chosen in _shuffled_folds(labels, names, folds, seed):
        if all(_has_all(labels, names, fold, 2) for fold in chosen):
            return chosen
    raise _impossible()


def _without_leaks(splits: list[str], groups: Sequence[str]) -> list[str]:
    """The splits, with "left-out" where the group of an image is also in test, or for train images in val."""
    tested = {name for split, name in zip(splits, groups) if split == "test"}
    validated = {name for split, name in zip(splits, groups) if split == "val"}
    return [
        "left-out" if (split != "test" and name in tested) or (split == "train" and name in validated) else split
        for split, name in zip(splits, groups)
    ]


def _refuse_few(
    found: Found, splits: list[str], names: NDArray[np.str_], labels: NDArray[np.str_], needed: list[str]
) -> None:
    """Raise where a class has fewer groups than the number of splits that need one."""
    pool = np.array(splits) == "train"
    counts = {label: len(np.unique(names[pool & (labels == label)])) for label in found.classes}
    if few := [label for label in found.classes if counts[label] < len(needed)]:
        words = some([f"{shown(label)} has {counted(counts[label], 'group')}" for label in few])
        left_out = splits.count("left-out")
        leaks = f" ({counted(left_out, 'image')} left out: their groups are in the test or val split)"
        raise CommandError(
            f"too few groups of images for {', '.join(needed)}: {words}{leaks if left_out else ''}, and each class "
            f"needs at least {len(needed)}; add images, or remove the class"
        )


def _fold(labels: NDArray[np.str_], names: NDArray[np.str_], share: float, seed: int, others: int) -> NDArray[np.int64]:
    """Indices of about `share` of the images: whole groups of every class, with at least `others` left of each."""
    most = max(len(np.unique(names[labels == label])) for label in np.unique(labels))
    for chosen in _shuffled_folds(labels, names, min(round(1 / share), most), seed):
        if fit := [fold for fold in chosen if _has_all(labels, names, fold, others)]:
            return min(fit, key=lambda fold: abs(len(fold) - share * len(labels)))
    raise _impossible()


def _shuffled_folds(
    labels: NDArray[np.str_], names: NDArray[np.str_], number: int, seed: int
) -> Iterator[list[NDArray[np.int64]]]:
    """Several ways to divide the images into folds, each after another shuffle."""
    from sklearn.model_selection import StratifiedGroupKFold

    for attempt in range(TRIES):
        state = int(np.random.SeedSequence((seed, attempt)).generate_state(1)[0])
        folds = StratifiedGroupKFold(number, shuffle=True, random_state=state)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            chosen = [fold for _, fold in folds.split(labels, labels, names)]
        yield chosen


def _impossible() -> CommandError:
    return CommandError(
        "the groups do not allow every class to be in every split: too many groups have images of several classes, or "
        "a few groups have most images; use other groups, or add images"
    )


def _has_all(labels: NDArray[np.str_], names: NDArray[np.str_], fold: NDArray[np.int64], others: int) -> bool:
    """Whether every class is in the fold, with `others` groups outside it."""
    inside = np.isin(np.arange(len(labels)), fold)
    return all(
        (inside & of_class).any() and len(np.unique(names[of_class & ~inside])) >= others
        for of_class in (labels == label for label in np.unique(labels))
    )


def write_split(path: Path, found: Found, groups: Sequence[str], splits: Sequence[str]) -> None:
    """Write a CSV file with the columns of `SplitRow` and a row for each image.

    Raises:
        CommandError: the file cannot be written.
    """
    with csv_file(path) as file:
        rows = csv.DictWriter(file, [column.name for column in fields(SplitRow)], lineterminator="\n")
        rows.writeheader()
        for image, split, name in zip(found.images, splits, groups, strict=True):
            row = SplitRow(image.file, image.label, split, name)
            rows.writerow({column: as_cell(text) for column, text in asdict(row).items()})


def read_split(path: Path) -> list[SplitRow]:
    """Read a file that `write_split` wrote.

    Raises:
        CommandError: the file cannot be read, or is no such file.
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
