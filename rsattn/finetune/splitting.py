"""Which pictures train, which choose the best epoch, and which are only tested: groups never share parts."""

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

PARTS = ("train", "val", "test", "left-out")
TRIES = 20  # shuffles, each of several folds, before a split is called impossible


@dataclass(frozen=True)
class SplitRow:
    """One picture of a split.

    Attributes:
        file: relative to the root, with /.
        label: the name of its class.
        part: "train", "val", "test" or "left-out".
        group: pictures of one group are in one part, or left out.
    """

    file: str
    label: str
    part: str
    group: str


def split(
    found: Found, groups: Sequence[str], seed: int, test_share: float = 0.2, val_share: float = 0.15
) -> list[str]:
    """The part of every picture: "train", "val", "test" or "left-out".

    Parts that the folder has stay as they are; those it has not are taken from its other pictures at random, by
    groups, with the classes in like shares as far as groups allow. "left-out" are pictures that the folder has in its
    train part with others of their group in its test or val part (or in val with others in test): to train with them
    would be to train with the test. A val part of which nothing is left is taken from the train part.

    Args:
        found: the pictures.
        groups: one name for each.
        seed: not negative; the same gives the same parts, whenever and wherever.
        test_share, val_share: of the pictures that the folder itself does not put into test or val; at most a half, and
            val at most a half of what the test leaves.

    Raises:
        CommandError: a class has too few groups to be in every part, or they are too entangled for it.
    """
    parts = _without_leaks([picture.part or "train" for picture in found.pictures], groups)
    shares = {part: share for part, share in (("test", test_share), ("val", val_share)) if part not in parts}
    labels, names = np.array([picture.label for picture in found.pictures]), np.array(list(groups))
    result = np.array(parts, dtype=object)
    _refuse_few(found, parts, names, labels, ["train", *shares])
    for index, (part, share) in enumerate(shares.items()):
        pool = np.flatnonzero(result == "train")
        of_pool = share / (1 - sum(list(shares.values())[:index]))
        result[pool[_fold(labels[pool], names[pool], of_pool, seed, len(shares) - index)]] = part
    return list(result)


def _without_leaks(parts: list[str], groups: Sequence[str]) -> list[str]:
    """The parts, with "left-out" where a picture's group is also in a part that weighs more: test, then val."""
    tested = {name for part, name in zip(parts, groups) if part == "test"}
    validated = {name for part, name in zip(parts, groups) if part == "val"}
    return [
        "left-out" if (part != "test" and name in tested) or (part == "train" and name in validated) else part
        for part, name in zip(parts, groups)
    ]


def _refuse_few(
    found: Found, parts: list[str], names: NDArray[np.str_], labels: NDArray[np.str_], needed: list[str]
) -> None:
    """Raise where a class has fewer groups than there are parts to be filled from the train part."""
    pool = np.array(parts) == "train"
    counts = {label: len(np.unique(names[pool & (labels == label)])) for label in found.classes}
    if few := [label for label in found.classes if counts[label] < len(needed)]:
        words = some([f"{shown(label)} has {counted(counts[label], 'group')}" for label in few])
        left_out = parts.count("left-out")
        leaks = f" ({counted(left_out, 'picture')} left out: their groups are in the test or val part)"
        raise CommandError(
            f"too few groups of pictures for {', '.join(needed)}: {words}{leaks if left_out else ''}, and each class "
            f"needs {len(needed)} or more; add pictures, or take the class away"
        )


def _fold(labels: NDArray[np.str_], names: NDArray[np.str_], share: float, seed: int, others: int) -> NDArray[np.int64]:
    """Indices of about `share` of the pictures: whole groups, of every class, and of each `others` groups not in it."""
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
        "the groups of pictures cannot be split so that every class is in every part: too many groups have pictures "
        "of several classes, or too few have many pictures; give other groups, or more pictures"
    )


def _has_all(labels: NDArray[np.str_], names: NDArray[np.str_], fold: NDArray[np.int64], others: int) -> bool:
    """Whether every class is in the fold, with `others` groups outside it."""
    inside = np.isin(np.arange(len(labels)), fold)
    return all(
        (inside & of_class).any() and len(np.unique(names[of_class & ~inside])) >= others
        for of_class in (labels == label for label in np.unique(labels))
    )


def write_split(path: Path, found: Found, groups: Sequence[str], parts: Sequence[str]) -> None:
    """Write a CSV file with the columns of `SplitRow`, a row for each picture.

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
        for picture, part, name in zip(found.pictures, parts, groups, strict=True):
            row = SplitRow(picture.file, picture.label, part, name)
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
    if not rows or any(list(row) != columns or None in row.values() or row["part"] not in PARTS for row in rows):
        raise CommandError(
            f"{path} is not a split: it should have the columns {', '.join(columns)}, with {', '.join(PARTS)} as part; "
            f"{NO_COPY}"
        )
    return [SplitRow(**{column: from_cell(cell) for column, cell in row.items()}) for row in rows]
