"""The folders below a root and their images, before anything is known about classes.

Folders that commands of rsattn wrote are skipped: their figures are no data (`cli.outputs`). Links to folders and to
images are followed; a link to a folder that contains the link is left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from ..cli.command import CommandError, why
from ..cli.outputs import MARKER, is_output
from ..cli.scans import is_readable_scan

SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx", "dicomdir"}
MOST_WAYS = 32  # paths by which links may lead to one folder; links among k folders make more than k! paths


@dataclass(eq=False)
class Folder:
    """The root or a folder in it; `path` and the files are relative to the root, whose own `path` is ""."""

    path: str
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    bad_links: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)  # to folders
    links_outside: list[str] = field(default_factory=list)  # to images outside the root
    folders: list[Folder] = field(default_factory=list)
    fault: str | None = None  # the reason why it cannot be read
    is_output: bool = False  # written by a command, and not read further

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def walk(self) -> Iterator[Folder]:
        yield self
        for folder in self.folders:
            yield from folder.walk()

    @cached_property
    def all_images(self) -> list[str]:
        return [image for folder in self.walk() for image in folder.images]

    @property
    def full(self) -> list[Folder]:
        """Its subfolders that contain images, at any depth."""
        return [folder for folder in self.folders if folder.all_images]

    @property
    def empty(self) -> list[Folder]:
        """Its subfolders that contain no images, except outputs and folders of outputs."""
        return [folder for folder in self.folders if not folder.all_images and not folder.outputs]

    @property
    def outputs(self) -> list[str]:
        return [folder.path for folder in self.walk() if folder.is_output]


def read_tree(root: Path) -> Folder:
    """The folder with its subfolders.

    Raises:
        CommandError: `root` is no folder, cannot be read, or is the output of a command; or links lead to one folder by
            too many paths.
    """
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

    def read(self) -> Folder:
        return self._read("", frozenset([self.real_root]))

    def _read(self, path: str, above: frozenset[str]) -> Folder:
        """The folder at `path` with its subfolders; `above` are the real paths of it and of its parents."""
        folder = Folder(path)
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

    def _sort_in(self, folder: Folder, path: str, above: frozenset[str]) -> None:
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

    def _sort_in_folder(self, folder: Folder, path: str, file: str, above: frozenset[str]) -> None:
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


def _is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in _readable_extensions() or is_readable_scan(Path(file))


@cache
def _readable_extensions() -> frozenset[str]:
    from PIL import Image

    Image.init()
    return frozenset(extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN)
