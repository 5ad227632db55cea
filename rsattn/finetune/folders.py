"""Find the images of a folder, their classes and their splits, from the names of its folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cli.command import CommandError, shown
from ..cli.scans import hint_at_scans
from .class_folders import only_reading, refuse_gaps
from .folder_notes import notes_on, notes_on_files, notes_on_links, notes_on_outputs
from .image_tree import Folder, read_tree
from .wording import examples


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
    tree = read_tree(root)
    if not tree.all_images:
        others = [other for folder in tree.walk() for other in folder.others]
        beside = f" among its {len(others)} files (such as {examples(others)})" if others else ""
        to_do = hint_at_scans([root / file for file in others]) or "give a folder with one folder of images per class"
        raise CommandError(f"{root} has no images that rsattn can read{beside}{_apart_from(tree)}: {to_do}")
    reading = only_reading(root, tree, groups, one_class)
    refuse_gaps(root, reading, one_class)
    images = [
        ImageFile(file, folder.name, split, _subfolder(folder, file))
        for split, folders in reading.classes.items()
        for folder in folders
        for file in folder.all_images
    ]
    images.sort(key=lambda image: image.file)
    used = {image.file for image in images}
    notes = notes_on(root, tree, reading, used, groups, own)
    classes = tuple(sorted(reading.names))
    return Found(root, classes, tuple(images), (*notes, *notes_on_missing(classes, images)))


def _subfolder(folder: Folder, file: str) -> str:
    """The name of the folder in `folder` that has the file; empty where there is none."""
    return file[len(folder.path) + 1 :].rpartition("/")[0].partition("/")[0]


def _apart_from(tree: Folder) -> str:
    return f", apart from what rsattn wrote ({examples(tree.outputs)})" if tree.outputs else ""


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


def images_below(root: Path) -> tuple[list[Path], list[str]]:
    """All images in a folder and its subfolders, sorted, and notes on links and other files.

    Raises:
        CommandError: `root` cannot be read or is the output of a command, or links lead to one folder by too many
            paths.
    """
    tree = read_tree(root)
    images = tree.all_images
    notes = [*notes_on_links(root, tree, set(images)), *notes_on_files(root, tree), *notes_on_outputs(root, tree)]
    return sorted(root / image for image in images), notes
