"""Find the images of a folder, their classes and their splits, from the names of its folders.

The layouts are `ROOT/<class>/*.png` and `ROOT/{train,test,val}/<class>/*.png`. Either may be inside wrapper folders
that hold nothing else, and may have a second copy of itself beside it. Images in subfolders of a class folder belong to
that class. Where class folders have subfolders, as in `ROOT/<class>/<patient>/*.png`, these could be the classes too:
`--groups folder` says that they are groups.

Folders that commands of rsattn wrote are skipped: their figures are no data (`cli.outputs`).

Links to folders and to images are followed; notes name linked folders, and linked images outside the root. A link to a
folder that contains the link is left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from ..cli.command import CommandError, shown, why
from ..cli.outputs import MARKER, is_inside, is_output
from ..cli.scans import hint_at_scans, is_readable_scan

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx", "dicomdir"}
MOST_WAYS = 32  # paths by which links may lead to one folder; links among k folders make more than k! paths


@dataclass(frozen=True)
class ImageFile:
    """An image in a folder.

    Attributes:
        file: relative to the root, with /.
        label: the name of its class.
        split: "train", "val" or "test" where the folders say so, else None.
        subfolder: the name of the folder in the class folder that has the image; empty where it is in no subfolder.
    """

    file: str
    label: str
    split: str | None
    subfolder: str = ""


@dataclass(frozen=True)
class Found:
    """The images of a folder.

    Attributes:
        root: the folder.
        classes: their names, sorted.
        images: sorted by file.
        notes: sentences for the user on what was left out or is unusual.
    """

    root: Path
    classes: tuple[str, ...]
    images: tuple[ImageFile, ...]
    notes: tuple[str, ...]


@dataclass
class _Folder:
    """The root or a folder in it; `path` and the files are relative to the root, whose own `path` is ""."""

    path: str
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    bad_links: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)  # to folders
    links_outside: list[str] = field(default_factory=list)  # to images outside the root
    folders: list[_Folder] = field(default_factory=list)
    fault: str | None = None  # the reason why it cannot be read
    is_output: bool = False  # written by a command, and not read further

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def walk(self) -> Iterator[_Folder]:
        yield self
        for folder in self.folders:
            yield from folder.walk()

    @cached_property
    def all_images(self) -> list[str]:
        return [image for folder in self.walk() for image in folder.images]

    @property
    def full(self) -> list[_Folder]:
        """Its subfolders that contain images, at any depth."""
        return [folder for folder in self.folders if folder.all_images]

    @property
    def empty(self) -> list[_Folder]:
        """Its subfolders that contain no images, except outputs and folders of outputs."""
        return [folder for folder in self.folders if not folder.all_images and not folder.outputs]

    @property
    def outputs(self) -> list[str]:
        return [folder.path for folder in self.walk() if folder.is_output]

    @cached_property
    def readings(self) -> list[_Reading]:
        """All ways to read it as a folder with two or more classes."""
        return _readings(self)


@dataclass(frozen=True)
class _Reading:
    """One way to read a folder: for each split, the folder of its class folders, and these."""

    holders: dict[str | None, _Folder]
    classes: dict[str | None, list[_Folder]]

    @property
    def names(self) -> set[str]:
        return {folder.name for folders in self.classes.values() for folder in folders}

    def __str__(self) -> str:
        places = some([shown(holder.path or ".") for holder in self.holders.values()])
        return f"{places} (with {some(sorted(shown(name) for name in self.names))})"


def find_images(root: Path, own: Path | None = None, groups: str | None = None, one_class: bool = False) -> Found:
    """Find the class folders in `root`, or in its wrapper folders, and their images.

    Args:
        own: the folder that the command writes in, which the notes do not name.
        groups: as in `Options`; "folder" says that the subfolders of the class folders are groups, not classes.
        one_class: accept a folder with images of one class.

    Raises:
        CommandError: `root` is no folder, cannot be read, or is the output of a command; it has no images, fewer than
            two class folders (or none, with `one_class`), a class folder without images, a class in test or val that is
            missing in train, or several sets of class folders; or links lead to one folder by too many paths.
    """
    tree = _read_root(root)
    if not tree.all_images:
        others = [other for folder in tree.walk() for other in folder.others]
        beside = f" among its {len(others)} files (such as {_examples(others)})" if others else ""
        to_do = _hint_at_scans(root, others) or "give a folder with one folder of images per class"
        raise CommandError(f"{root} has no images that rsattn can read{beside}{_apart_from(tree)}: {to_do}")
    reading = _the_reading(root, tree, groups, one_class)
    _refuse_gaps(root, reading, one_class)
    images = [
        ImageFile(file, folder.name, split, _subfolder(folder, file))
        for split, folders in reading.classes.items()
        for folder in folders
        for file in folder.all_images
    ]
    images.sort(key=lambda image: image.file)
    used = {image.file for image in images}
    notes = [
        *_notes_on_links(root, tree, used),
        *_notes_on_same_files(root, used),
        *_notes_on_left_out(tree, reading, used),
        *_notes_on_empty_splits(tree, reading),
        *_notes_on_subfolders(reading, groups),
        *_notes_on_files(root, tree),
        *_notes_on_outputs(root, tree, own),
    ]
    classes = tuple(sorted(reading.names))
    return Found(root, classes, tuple(images), (*notes, *notes_on_missing(classes, images)))


def images_below(root: Path) -> tuple[list[Path], list[str]]:
    """All images in a folder and its subfolders, sorted, and notes on links and other files.

    Raises:
        CommandError: `root` cannot be read or is the output of a command, or links lead to one folder by too many
            paths.
    """
    tree = _read_root(root)
    images = tree.all_images
    notes = [*_notes_on_links(root, tree, set(images)), *_notes_on_files(root, tree), *_notes_on_outputs(root, tree)]
    return sorted(root / image for image in images), notes


def notes_on_missing(classes: Sequence[str], images: Sequence[ImageFile]) -> list[str]:
    """A sentence for each class that is missing in the test or val split of the folder."""
    counts = Counter((image.split, image.label) for image in images)
    consequence = {"test": "its recall cannot be measured", "val": "validation does not measure it"}
    return [
        f"the class {shown(label)} has no images in the {split} split: {words}"
        for split, words in consequence.items()
        for label in classes
        if any(split == other for other, _ in counts) and not counts[split, label]
    ]


def some(names: Collection[str], most: int = 8) -> str:
    """The names, or the first ones and the number of the others."""
    first = ", ".join(list(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"


def in_words(names: Sequence[str], last: str) -> str:
    """The names in a sentence, such as a, b and c; `last` is the word before the last one."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(number: int, thing: str) -> str:
    """A number and a noun: 1 image, 2 images."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _examples(files: Sequence[str]) -> str:
    return ", ".join(shown(file) for file in files[:3])


@cache
def _readable_extensions() -> frozenset[str]:
    from PIL import Image

    Image.init()
    return frozenset(extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def _is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in _readable_extensions() or is_readable_scan(Path(file))


def _read_root(root: Path) -> _Folder:
    if not os.path.exists(root):
        raise CommandError(f"there is no folder {root}: give a folder with one folder of images per class")
    if not os.path.isdir(root):
        raise CommandError(
            f"{root} is a file: give a folder with one folder of images per class (unpack a zip file first)"
        )
    tree = _Reader(root).read()
    if tree.fault is not None:
        raise CommandError(f"cannot read the folder {root}: {tree.fault}")
    if tree.is_output:
        unless = f", or delete {root / MARKER} if these are yours" if (root / MARKER).exists() else ""
        raise CommandError(
            f"rsattn wrote the folder {root}, so its images are not read as data: give the folder of your images"
            f"{unless}"
        )
    return tree


class _Reader:
    """Reads the folders in a root, and follows links."""

    def __init__(self, root: Path) -> None:
        self.root, self.real_root = root, os.path.realpath(root)
        self.ways: Counter[str] = Counter()  # real path of a folder -> the number of paths to it

    def read(self) -> _Folder:
        return self._read("", frozenset([self.real_root]))

    def _read(self, path: str, above: frozenset[str]) -> _Folder:
        """The folder at `path` with its subfolders; `above` are the real paths of it and of its parents."""
        folder = _Folder(path)
        try:
            with os.scandir(self.root / path) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            folder.fault = why(error)
            return folder
        if is_output(names):
            folder.is_output = True
            return folder
        for name in names:
            if not name.startswith(".") and name.casefold() not in SYSTEM_FILES:
                self._sort_in(folder, f"{path}/{name}" if path else name, above)
        return folder

    def _sort_in(self, folder: _Folder, path: str, above: frozenset[str]) -> None:
        # os.path, because the methods of Path raise in a folder without search permission
        file = os.path.join(self.root, path)
        if os.path.isdir(file):
            self._sort_in_folder(folder, path, file, above)
        elif os.path.islink(file) and not os.path.exists(file):
            folder.bad_links.append(path)
        elif os.path.isfile(file) and _is_image(file):
            folder.images.append(path)
            if os.path.islink(file) and not self._is_inside(os.path.realpath(file)):
                folder.links_outside.append(path)
        else:
            folder.others.append(path)

    def _sort_in_folder(self, folder: _Folder, path: str, file: str, above: frozenset[str]) -> None:
        real = os.path.realpath(file)
        if real in above:
            folder.bad_links.append(path)
            return
        self.ways[real] += 1
        if self.ways[real] > MOST_WAYS:
            raise CommandError(
                f"links in {self.root} lead to {real} by more than {MOST_WAYS} paths, such as {path}: remove links "
                "between folders"
            )
        if os.path.islink(file):
            folder.links.append(path)
        folder.folders.append(self._read(path, above | {real}))

    def _is_inside(self, real: str) -> bool:
        return Path(real).is_relative_to(self.real_root)


def _the_reading(root: Path, tree: _Folder, groups: str | None, one_class: bool) -> _Reading:
    """The only way to read the folder; raises a `CommandError` where there is none, or more than one."""
    readings = tree.readings
    if len(readings) > 1:
        has_groups = _is_of_groups(readings)
        if has_groups and groups == "folder":
            return readings[0]
        also = ", give --groups folder if the first set is yours and its subfolders are patients," if has_groups else ""
        raise CommandError(
            f"{root} has several sets of class folders: {_listed(readings)}. Give the folder of one set"
            f"{also} or put the class folders into a folder named train"
        )
    if readings:
        return readings[0]
    folder = tree
    while not folder.images and len(folder.full) == 1:
        if empty := folder.empty:
            raise _no_images_in(root, empty)
        if folder.full[0].images and one_class:
            return _Reading({None: folder}, {None: [*folder.full]})
        if folder.full[0].images:
            raise _one_class(root, folder.full[0].name)
        folder = folder.full[0]
    raise CommandError(
        f"the images in {root} (such as {_examples(tree.all_images)}) are not in class folders: put the images of each "
        "class into a folder with the name of the class"
    )


def _readings(folder: _Folder) -> list[_Reading]:
    if splits := _splits(folder):
        return [splits]
    full = _without_copies(folder.full)
    if sum(child.name.casefold() in SPLIT_NAMES and bool(child.images) for child in full) > 1:
        return []  # splits with images outside class folders
    here = _Reading({None: folder}, {None: [*full, *folder.empty]})
    below = [reading for child in full for reading in child.readings]
    if any(child.images for child in full):
        rivals = [reading for reading in below if None not in reading.classes or _share_names(reading, here)]
        return [here, *rivals] if len(full) > 1 else rivals
    if not below:
        return [here] if len(full) > 1 else []
    if len(full) == 1 or None not in below[0].classes:
        return below
    return [here, *below]


def _is_of_groups(readings: list[_Reading]) -> bool:
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
    names = [frozenset(_caseless(other.names)) for other in others if other.holders[None].path in tops]
    return not any(_share_names(other, first) for other in others) and (len(names) < 2 or len(set(names)) > 1)


def _listed(readings: list[_Reading], most: int = 4) -> str:
    more = f"; and {len(readings) - most} more" if len(readings) > most else ""
    return "; ".join(map(str, readings[:most])) + more


def _subfolder(folder: _Folder, file: str) -> str:
    """The name of the folder in `folder` that has the file; empty where there is none."""
    return file[len(folder.path) + 1 :].rpartition("/")[0].partition("/")[0]


def _without_copies(folders: list[_Folder]) -> list[_Folder]:
    """The folders without copies of the others: beside `yes` and `no`, `copy` with `copy/yes` and `copy/no` is one."""
    return [
        folder
        for folder in folders
        if not any(
            None in reading.classes
            and _caseless(reading.names) <= _caseless({other.name for other in folders if other is not folder})
            for reading in folder.readings
        )
    ]


def _share_names(one: _Reading, other: _Reading) -> bool:
    return not _caseless(one.names).isdisjoint(_caseless(other.names))


def _caseless(names: set[str]) -> set[str]:
    return {name.casefold() for name in names}


def _splits(folder: _Folder) -> _Reading | None:
    """The splits in a folder; None without a folder named train that has class folders."""
    holders: dict[str | None, _Folder] = {}
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
    classes: dict[str | None, list[_Folder]] = {}
    for split, holder in holders.items():
        inner = train if split == "train" else _unwrapped(holder, known)
        classes[split] = [*inner.full, *(inner.empty if split == "train" else [])]
    return _Reading(holders, classes)


def _unwrapped(split: _Folder, known: set[str]) -> _Folder:
    """The folder in a split that has several folders, or one of a known class; the split itself if there is none."""
    folder = split
    while len(folder.full) == 1 and folder.full[0].name not in known:
        if folder.images or folder.empty:
            return split
        folder = folder.full[0]
    return folder if folder.full else split


def _refuse_gaps(root: Path, reading: _Reading, one_class: bool) -> None:
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


def _no_images_in(root: Path, empty: list[_Folder]) -> CommandError:
    for folder in empty:
        if folder.fault is not None:
            return CommandError(f"cannot read the class folder {shown(str(root / folder.path))}: {folder.fault}")
    names = some([shown(folder.path) for folder in empty])
    others = [other for folder in empty for below in folder.walk() for other in below.others]
    to_do = _hint_at_scans(root, others) or "add images, or remove these folders"
    return CommandError(f"{root} has class folders without images that rsattn can read: {names}; {to_do}")


def _one_class(root: Path, name: str) -> CommandError:
    return CommandError(
        f"{root} has images of only one class ({shown(name)}), and a classifier needs two: add a class folder, or give "
        "the folder that contains the class folders"
    )


def _notes_on_left_out(tree: _Folder, reading: _Reading, used: set[str]) -> Iterator[str]:
    loose: list[str] = []
    for folder in _left_out(tree, used, loose):
        again = any(_caseless(other.names) <= _caseless(reading.names) for other in folder.readings)
        number = counted(len(folder.all_images), "image")
        reason = "it has the same classes again" if again else "it is not one of the class folders"
        yield f"{shown(folder.path)} ({number}) was left out: {reason}"
    if loose:
        yield f"ignored {counted(len(loose), 'image')} outside class folders, such as {_examples(loose)}"


def _left_out(folder: _Folder, used: set[str], loose: list[str]) -> Iterator[_Folder]:
    """The topmost folders without any used image; the other unused images are added to `loose`."""
    loose += [image for image in folder.images if image not in used]
    for child in folder.full:
        if used.isdisjoint(child.all_images):
            yield child
        else:
            yield from _left_out(child, used, loose)


def _notes_on_empty_splits(tree: _Folder, reading: _Reading) -> Iterator[str]:
    for folder in tree.walk():
        split = SPLIT_NAMES.get(folder.name.casefold())
        if "train" in reading.classes and split not in (None, *reading.classes) and not folder.all_images:
            yield f"{shown(folder.path)} has no images: the {split} split is taken from the train split"


def _notes_on_subfolders(reading: _Reading, groups: str | None) -> Iterator[str]:
    """A sentence on the subfolders of class folders: which are the groups, or which could be."""
    full = [below for folders in reading.classes.values() for folder in folders for below in folder.full]
    if groups == "folder" and full:
        classes = in_words(sorted(shown(name) for name in reading.names), "and")
        yield f"the classes are {classes}; their {counted(len(full), 'subfolder')} are the groups"
    elif groups in (None, "phash") and len(full) > 1 and any(len(folder.all_images) > 1 for folder in full):
        yield (
            f"the class folders have {len(full)} subfolders, such as {shown(full[0].path)}; if these are patients, "
            "--groups folder makes the images of each one group"
        )


def _notes_on_links(root: Path, tree: _Folder, used: set[str]) -> Iterator[str]:
    """Notes on the links to used images."""
    folders = [folder for folder in tree.walk() if not used.isdisjoint(folder.all_images)]
    linked = {link for folder in folders for link in folder.links}
    if links := [folder.path for folder in folders if folder.path in linked]:
        yield f"used {counted(len(links), 'linked folder')}: {some([_led(root, link) for link in links])}"
    if outside := [link for folder in folders for link in folder.links_outside if link in used]:
        places = ", ".join(_led(root, link) for link in outside[:3])
        yield f"used {counted(len(outside), 'linked image')} from outside the folder, such as {places}"


def _notes_on_same_files(root: Path, used: set[str]) -> Iterator[str]:
    files = sorted(used)
    if again := [(file, first) for file, first in zip(files, same_files(root, files)) if file != first]:
        examples = ", ".join(f"{shown(file)} and {shown(first)}" for file, first in again[:3])
        yield (
            f"some files appear more than once, as a link or under a second name ({examples}; "
            f"{counted(len(again), 'image')} in all): the names of a file are kept in one split, so that no image is "
            "in both training and test"
        )


def _led(root: Path, link: str) -> str:
    return f"{shown(link)} -> {shown(os.path.realpath(root / link))}"


def same_files(root: Path, files: Sequence[str]) -> list[str]:
    """For each file, the first file that is the same one on the disk, through links or several names."""
    first: dict[object, str] = {}
    return [first.setdefault(_identity(root / file), file) for file in files]


def _identity(path: Path) -> object:
    """A value that is equal only for the same file on the disk; the path where the file system has no such value."""
    try:
        status = os.stat(path)
    except OSError:
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else path  # some network file systems have no inode numbers


def _apart_from(tree: _Folder) -> str:
    return f", apart from what rsattn wrote ({_examples(tree.outputs)})" if tree.outputs else ""


def _notes_on_outputs(root: Path, tree: _Folder, own: Path | None = None) -> Iterator[str]:
    if outputs := [path for path in tree.outputs if own is None or not is_inside(own, root / path)]:
        yield f"skipped {counted(len(outputs), 'folder')} that rsattn wrote: {some([shown(path) for path in outputs])}"


def _hint_at_scans(root: Path, files: Sequence[str]) -> str | None:
    return hint_at_scans([root / file for file in files])


def _notes_on_files(root: Path, tree: _Folder) -> Iterator[str]:
    folders = list(tree.walk())
    if others := [other for folder in folders for other in folder.others]:
        hint = _hint_at_scans(root, others)
        yield (
            f"ignored {counted(len(others), 'file')} that rsattn cannot read, such as {_examples(others)}"
            f"{f'; {hint}' if hint else ''}"
        )
    if links := [link for folder in folders for link in folder.bad_links]:
        yield f"ignored {counted(len(links), 'broken or circular link')}, such as {_examples(links)}"
    for folder in folders:
        if folder.fault is not None:
            yield f"the folder {shown(folder.path)} cannot be read and was left out: {folder.fault}"
