"""Which folders of a tree are the classes, and which are the splits.

The layouts are `ROOT/<class>/*.png` and `ROOT/{train,test,val}/<class>/*.png`. Either may be inside wrapper folders
that hold nothing else, and may have a second copy of itself beside it. Images in subfolders of a class folder belong to
that class. Where class folders have subfolders, as in `ROOT/<class>/<patient>/*.png`, these could be the classes too:
`--groups folder` says that they are groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..cli.command import CommandError, shown
from ..cli.scans import hint_at_scans
from .image_tree import Folder
from .wording import examples, some

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}


@dataclass(frozen=True)
class Reading:
    """One way to read a folder: for each split, the folder of its class folders, and these."""

    holders: dict[str | None, Folder]
    classes: dict[str | None, list[Folder]]

    @property
    def names(self) -> set[str]:
        return {folder.name for folders in self.classes.values() for folder in folders}

    def __str__(self) -> str:
        places = some([shown(holder.path or ".") for holder in self.holders.values()])
        return f"{places} (with {some(sorted(shown(name) for name in self.names))})"


def only_reading(root: Path, tree: Folder, groups: str | None, one_class: bool) -> Reading:
    """The only way to read the folder; raises a `CommandError` where there is none, or more than one."""
    found = readings(tree)
    if len(found) > 1:
        has_groups = _is_of_groups(found)
        if has_groups and groups == "folder":
            return found[0]
        also = ", give --groups folder if the first set is yours and its subfolders are patients," if has_groups else ""
        raise CommandError(
            f"{root} has several sets of class folders: {_listed(found)}. Give the folder of one set"
            f"{also} or put the class folders into a folder named train"
        )
    if found:
        return found[0]
    folder = tree
    while not folder.images and len(folder.full) == 1:
        if empty := folder.empty:
            raise _no_images_in(root, empty)
        if folder.full[0].images and one_class:
            return Reading({None: folder}, {None: [*folder.full]})
        if folder.full[0].images:
            raise _one_class(root, folder.full[0].name)
        folder = folder.full[0]
    raise CommandError(
        f"the images in {root} (such as {examples(tree.all_images)}) are not in class folders: put the images of each "
        "class into a folder with the name of the class"
    )


def readings(folder: Folder) -> list[Reading]:
    """All ways to read it as a folder with two or more classes."""
    if splits := _splits(folder):
        return [splits]
    of_children = [(child, readings(child)) for child in folder.full]
    full = _without_copies(of_children)
    kept = set(full)
    if sum(child.name.casefold() in SPLIT_NAMES and bool(child.images) for child in full) > 1:
        return []  # splits with images outside class folders
    here = Reading({None: folder}, {None: [*full, *folder.empty]})
    below = [reading for child, found in of_children if child in kept for reading in found]
    if any(child.images for child in full):
        rivals = [reading for reading in below if None not in reading.classes or _share_names(reading, here)]
        return [here, *rivals] if len(full) > 1 else rivals
    if not below:
        return [here] if len(full) > 1 else []
    if len(full) == 1 or None not in below[0].classes:
        return below
    return [here, *below]


def _is_of_groups(readings: list[Reading]) -> bool:
    """Whether the folders of the other readings can be groups in the classes of the first one, such as patients.

    Not where there are splits among them, a folder with the name of a class, or the same folders in each class: these
    are rather the classes, and the others hospitals or patients.
    """
    first, *others = readings
    classes = first.classes.get(None, [])
    inside = {folder.path for of_class in classes for folder in of_class.walk()}
    if any(None not in other.classes or other.holders[None].path not in inside for other in others):
        return False
    tops = {folder.path for folder in classes}
    names = [frozenset(caseless(other.names)) for other in others if other.holders[None].path in tops]
    return not any(_share_names(other, first) for other in others) and (len(names) < 2 or len(set(names)) > 1)


def _listed(readings: list[Reading], most: int = 4) -> str:
    more = f"; and {len(readings) - most} more" if len(readings) > most else ""
    return "; ".join(map(str, readings[:most])) + more


def _without_copies(folders: list[tuple[Folder, list[Reading]]]) -> list[Folder]:
    """The folders without copies of the others: beside `yes` and `no`, `copy` with `copy/yes` and `copy/no` is one.

    Args:
        folders: with the readings of each.
    """
    return [
        folder
        for folder, found in folders
        if not any(
            None in reading.classes
            and caseless(reading.names) <= caseless({other.name for other, _ in folders if other is not folder})
            for reading in found
        )
    ]


def _share_names(one: Reading, other: Reading) -> bool:
    return not caseless(one.names).isdisjoint(caseless(other.names))


def caseless(names: set[str]) -> set[str]:
    return {name.casefold() for name in names}


def _splits(folder: Folder) -> Reading | None:
    """The splits in a folder; None without a folder named train that has class folders."""
    holders: dict[str | None, Folder] = {}
    for child in folder.full:
        split = SPLIT_NAMES.get(child.name.casefold())
        if split in holders:
            raise CommandError(
                f"{shown(holders[split].path)} and {shown(child.path)} are both the {split} split: remove or rename one"
            )
        if split is not None and child.full:
            holders[split] = child
    if "train" not in holders:
        return None
    train = _unwrapped(holders["train"], set())
    known = {child.name for child in train.full}
    classes: dict[str | None, list[Folder]] = {}
    for split, holder in holders.items():
        inner = train if split == "train" else _unwrapped(holder, known)
        classes[split] = [*inner.full, *(inner.empty if split == "train" else [])]
    return Reading(holders, classes)


def _unwrapped(split: Folder, known: set[str]) -> Folder:
    """The folder in a split that has several folders, or one of a known class; the split itself if there is none."""
    folder = split
    while len(folder.full) == 1 and folder.full[0].name not in known:
        if folder.images or folder.empty:
            return split
        folder = folder.full[0]
    return folder if folder.full else split


def refuse_gaps(root: Path, reading: Reading, one_class: bool) -> None:
    """Raise where a class has no images, where there is only one class, and where the train split lacks a class."""
    trained = {folder.name for folder in reading.classes.get("train", reading.classes.get(None, []))}
    for split, folders in reading.classes.items():
        if empty := [folder for folder in folders if not folder.all_images]:
            raise _no_images_in(root, empty)
        if unknown := sorted({folder.name for folder in folders} - trained):
            raise CommandError(
                f"the {split} split of {root} has {some([shown(name) for name in unknown])}, which the train split "
                "lacks: give both the same class folders"
            )
    if len(trained) == 1 and not one_class:
        raise _one_class(root, *trained)


def _no_images_in(root: Path, empty: list[Folder]) -> CommandError:
    for folder in empty:
        if folder.fault is not None:
            return CommandError(f"cannot read the class folder {shown(str(root / folder.path))}: {folder.fault}")
    names = some([shown(folder.path) for folder in empty])
    others = [other for folder in empty for below in folder.walk() for other in below.others]
    to_do = hint_at_scans([root / file for file in others]) or "add images, or remove these folders"
    return CommandError(f"{root} has class folders without images that rsattn can read: {names}; {to_do}")


def _one_class(root: Path, name: str) -> CommandError:
    return CommandError(
        f"{root} has images of only one class ({shown(name)}), and a classifier needs two: add a class folder, or give "
        "the folder that contains the class folders"
    )
