"""Decode every image once before training, so that a damaged one is left out and does not end the run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from ..cli.command import CommandError, shown, why
from ..cli.images import load_image
from .folders import Found, notes_on_missing

Result = TypeVar("Result")


@dataclass(frozen=True)
class Damaged:
    """An image that cannot be decoded.

    Attributes:
        file: relative to the root, with /.
        why: the reason, for the user.
    """

    file: str
    why: str


def check(found: Found, console: Console) -> tuple[Found, tuple[Damaged, ...]]:
    """Decode every image. Returns `found` without the damaged images, and these, both in their order.

    Raises:
        CommandError: no image can be decoded, or none of a class, of a split, or of a class in the train split.
    """
    faults = over_images(found, _fault, "checking images", console)
    damaged = tuple(Damaged(image.file, fault) for image, fault in zip(found.images, faults) if fault is not None)
    images = tuple(image for image, fault in zip(found.images, faults) if fault is None)
    if damaged:
        _refuse_losses(found, replace(found, images=images), damaged)
    missing = [note for note in notes_on_missing(found.classes, images) if note not in found.notes]
    return replace(found, images=images, notes=(*found.notes, *missing)), damaged


def over_images(found: Found, work: Callable[[Path], Result], words: str, console: Console) -> list[Result]:
    """`work` on the path of each image, in threads and with a progress bar; results in the order of the images."""
    from rich.progress import track

    paths = [found.root / image.file for image in found.images]
    pool = ThreadPoolExecutor()
    # The warning filters are global, so threads that change them overwrite one another: restore them after all threads.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return list(track(pool.map(work, paths), words, total=len(paths), console=console))
        finally:
            pool.shutdown(cancel_futures=True)


def _fault(path: Path) -> str | None:
    try:
        load_image(path)
    except CommandError as error:
        return shown(str(error))
    except Exception as error:  # decoders of rare formats can raise anything
        return shown(f"{path} is a damaged image: {why(error)}")
    return None


def _refuse_losses(before: Found, after: Found, damaged: tuple[Damaged, ...]) -> None:
    """Raise where all images of the folder, of a split or of a class are damaged."""
    first = f"for example: {damaged[0].why}"
    if not after.images:
        raise CommandError(f"none of the {len(before.images)} images in {before.root} can be read; {first}")
    left = {(image.split, image.label) for image in after.images}
    for split in ("train", "val", "test"):
        if any(image.split == split for image in before.images) and all(split != kept for kept, _ in left):
            raise CommandError(f"none of the images in the {split} split can be read; {first}")
    for label in before.classes:
        if (None, label) not in left and ("train", label) not in left:
            raise CommandError(
                f"none of the training images of the class {shown(label)} can be read; {first}; replace them, or "
                "remove the class"
            )
