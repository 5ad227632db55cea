"""What a user is told about a folder of images: what was left out, linked, or is unusual."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..cli.command import shown
from ..cli.outputs import is_inside
from ..cli.scans import hint_at_scans
from .class_folders import SPLIT_NAMES, Reading, caseless, readings
from .image_tree import Folder
from .same_files import same_files
from .wording import counted, examples, in_words, some


def notes_on(
    root: Path, tree: Folder, reading: Reading, used: set[str], groups: str | None, own: Path | None
) -> Iterator[str]:
    """All notes on a folder with class folders.

    Args:
        used: the images that are used, relative to the root.
        groups, own: as in `folders.find_images`.
    """
    yield from notes_on_links(root, tree, used)
    yield from _notes_on_same_files(root, used)
    yield from _notes_on_left_out(tree, reading, used)
    yield from _notes_on_empty_splits(tree, reading)
    yield from _notes_on_subfolders(reading, groups)
    yield from notes_on_files(root, tree)
    yield from notes_on_outputs(root, tree, own)


def _notes_on_left_out(tree: Folder, reading: Reading, used: set[str]) -> Iterator[str]:
    loose: list[str] = []
    for folder in _left_out(tree, used, loose):
        again = any(caseless(other.names) <= caseless(reading.names) for other in readings(folder))
        number = counted(len(folder.all_images), "image")
        reason = "it has the same classes again" if again else "it is not one of the class folders"
        yield f"{shown(folder.path)} ({number}) was left out: {reason}"
    if loose:
        yield f"ignored {counted(len(loose), 'image')} outside class folders, such as {examples(loose)}"


def _left_out(folder: Folder, used: set[str], loose: list[str]) -> Iterator[Folder]:
    """The topmost folders without any used image; the other unused images are added to `loose`."""
    loose += [image for image in folder.images if image not in used]
    for child in folder.full:
        if used.isdisjoint(child.all_images):
            yield child
        else:
            yield from _left_out(child, used, loose)


def _notes_on_empty_splits(tree: Folder, reading: Reading) -> Iterator[str]:
    for folder in tree.walk():
        split = SPLIT_NAMES.get(folder.name.casefold())
        if "train" in reading.classes and split not in (None, *reading.classes) and not folder.all_images:
            yield f"{shown(folder.path)} has no images: the {split} split is taken from the train split"


def _notes_on_subfolders(reading: Reading, groups: str | None) -> Iterator[str]:
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


def notes_on_links(root: Path, tree: Folder, used: set[str]) -> Iterator[str]:
    """Notes on the links to used images."""
    folders = [folder for folder in tree.walk() if not used.isdisjoint(folder.all_images)]
    linked = {link for folder in folders for link in folder.links}
    if links := [folder.path for folder in folders if folder.path in linked]:
        yield f"used {counted(len(links), 'linked folder')}: {some([_led(root, link) for link in links])}"
    if outside := [link for folder in folders for link in folder.links_outside if link in used]:
        places = ", ".join(_led(root, link) for link in outside[:3])
        yield f"used {counted(len(outside), 'linked image')} from outside the folder, such as {places}"


def _led(root: Path, link: str) -> str:
    return f"{shown(link)} -> {shown(os.path.realpath(root / link))}"


def _notes_on_same_files(root: Path, used: set[str]) -> Iterator[str]:
    files = sorted(used)
    if again := [(file, first) for file, first in zip(files, same_files(root, files)) if file != first]:
        examples = ", ".join(f"{shown(file)} and {shown(first)}" for file, first in again[:3])
        yield (
            f"some files appear more than once, as a link or under a second name ({examples}; "
            f"{counted(len(again), 'image')} in all): the names of a file are kept in one split, so that no image is "
            "in both training and test"
        )


def notes_on_files(root: Path, tree: Folder) -> Iterator[str]:
    folders = list(tree.walk())
    if others := [other for folder in folders for other in folder.others]:
        hint = hint_at_scans([root / file for file in others])
        yield (
            f"ignored {counted(len(others), 'file')} that rsattn cannot read, such as {examples(others)}"
            f"{f'; {hint}' if hint else ''}"
        )
    if links := [link for folder in folders for link in folder.bad_links]:
        yield f"ignored {counted(len(links), 'broken or circular link')}, such as {examples(links)}"
    for folder in folders:
        if folder.fault is not None:
            yield f"the folder {shown(folder.path)} cannot be read and was left out: {folder.fault}"


def notes_on_outputs(root: Path, tree: Folder, own: Path | None = None) -> Iterator[str]:
    if outputs := [path for path in tree.outputs if own is None or not is_inside(own, root / path)]:
        yield f"skipped {counted(len(outputs), 'folder')} that rsattn wrote: {some([shown(path) for path in outputs])}"
