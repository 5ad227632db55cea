"""Decode every image once before training: leave out the damaged ones, and say what happens to unusual ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ..cli.command import CommandError, shown, why
from ..cli.gray import Window, ends_of
from ..cli.images import Source, read_image
from ..cli.terminal import tracked
from .checksums import of_file
from .folders import Found, notes_on_missing
from .near_identical import perceptual_hash
from .wording import counted

Result = TypeVar("Result")

SQUARE_ENOUGH = 1.1  # the ratio of the sides; augmentation zooms by up to a tenth too


@dataclass(frozen=True)
class Damaged:
    """An image that cannot be decoded.

    Attributes:
        file: relative to the root, with /.
        why: the reason, for the user.
    """

    file: str
    why: str


@dataclass(frozen=True)
class Checked:
    """The images that can be decoded.

    Attributes:
        found: without the damaged images, and with notes on what happens to the others.
        damaged: the others, in their order.
        hashes: (images, words), of the images in `found`, see `near_identical`.
        checksums: the SHA-256 of the file of each image in `found`.
        patients: the PatientID of each image in `found`; empty where a DICOM file has none, None for other files.
    """

    found: Found
    damaged: tuple[Damaged, ...]
    hashes: NDArray[np.uint64]
    checksums: tuple[str, ...]
    patients: tuple[str | None, ...]


@dataclass(frozen=True)
class _Seen:
    """What decoding an image showed."""

    source: Source
    size: tuple[int, int]
    hash: NDArray[np.uint64]
    checksum: str


def check(
    found: Found, resize: str, console: Console, window: Window | None = None, groups: str | None = None
) -> Checked:
    """Decode every image.

    Args:
        found: the images.
        resize: how images that are not square become square, for the notes; see `Options`.
        console: shows the progress bar.
        window: of images with more than 8 bits per pixel, see `Options`.
        groups: for the note on patients, see `Options`.

    Raises:
        CommandError: no image can be decoded, or none of a class, of a split, or of a class in the train split.
    """
    seen = over_images(found, partial(_seen, window=window), "checking images", console)
    damaged = tuple(Damaged(image.file, one) for image, one in zip(found.images, seen) if isinstance(one, str))
    images = tuple(image for image, one in zip(found.images, seen) if isinstance(one, _Seen))
    if damaged:
        _refuse_losses(found, replace(found, images=images), damaged)
    kept = [one for one in seen if isinstance(one, _Seen)]
    missing = [note for note in notes_on_missing(found.classes, images) if note not in found.notes]
    patients = tuple(one.source.patient for one in kept)
    notes = (
        *found.notes,
        *missing,
        *_notes_on_content(kept, resize, window),
        *(_notes_on_patients(patients) if groups in (None, "phash") else ()),
    )
    hashes, checksums = np.stack([one.hash for one in kept]), tuple(one.checksum for one in kept)
    return Checked(replace(found, images=images, notes=notes), damaged, hashes, checksums, patients)


def over_images(found: Found, work: Callable[[Path], Result], words: str, console: Console) -> list[Result]:
    """`work` on the path of each image, in threads and with a progress bar; results in the order of the images."""
    paths = [found.root / image.file for image in found.images]
    pool = ThreadPoolExecutor()
    # The warning filters are global, so threads that change them overwrite one another: restore them after all threads.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return list(tracked(pool.map(work, paths), words, console, len(paths)))
        finally:
            pool.shutdown(cancel_futures=True)


def _seen(path: Path, window: Window | None) -> _Seen | str:
    """What is in the image; the fault of a damaged one."""
    try:
        image, source = read_image(path, window)
        return _Seen(source, image.size, perceptual_hash(image), of_file(path))
    except CommandError as error:
        return shown(str(error))
    except Exception as error:  # decoders of rare formats can raise anything
        return shown(f"{path} is a damaged image: {why(error)}")


def _notes_on_content(seen: list[_Seen], resize: str, window: Window | None) -> Iterator[str]:
    """Sentences on what the model does not see of the images as they are."""
    yield from _notes_on_gray(seen, window)
    if deep_colors := sum(one.source.deep_colors for one in seen):
        yield (
            f"{_have(deep_colors, 'image')} 16 bits per channel; the upper 8 bits are used, so colors of 12 bits are "
            "almost black"
        )
    if pages := sum(one.source.pages for one in seen):
        yield f"{_have(pages, 'file')} several pages or frames; the first one is used"
    if several := sum(one.source.several for one in seen):
        yield f"{_have(several, 'file')} several slices or frames; the one in the middle is used"
    ratios = [max(one.size) / min(one.size) for one in seen]
    oblong = sum(ratio > SQUARE_ENOUGH for ratio in ratios)
    if oblong and resize != "pad":
        are = "1 image is not square; it is" if oblong == 1 else f"{oblong} images are not square; they are"
        done, kept = {
            "squash": ("squashed to a square", "the shape"),
            "crop": ("cropped to the square in the middle", "all of it"),
        }[resize]
        yield f"{are} {done}. The longest is {max(ratios):.1f} times as long as wide; --resize pad keeps {kept}"


def _notes_on_gray(seen: list[_Seen], window: Window | None) -> Iterator[str]:
    """Sentences on how the values of images with more than 8 bits per pixel become gray levels."""
    deep = [one.source for one in seen if one.source.deep]
    if window is not None:
        given = f"{window[0]:g},{window[1]:g}"
        if not deep:
            yield f"no image has more than 8 bits per pixel, so the window {given} has no effect"
            return
        low, high = ends_of(window)
        yield (
            f"{_have(len(deep), 'image')} more than 8 bits per pixel; by the window {given}, values from {low:g} to "
            f"{high:g} become 0 to 255"
        )
        return
    if windowed := sum(source.from_header for source in deep):
        yield f"{_have(windowed, 'image')} more than 8 bits per pixel and a window in the header, which is used"
    if stretched := len(deep) - windowed:
        each = "it is" if stretched == 1 else "each is"
        yield (
            f"{_have(stretched, 'image')} more than 8 bits per pixel; {each} stretched from its own smallest and "
            "largest value to 0 to 255"
        )


def _notes_on_patients(patients: Sequence[str | None]) -> Iterator[str]:
    """A sentence on the patients of DICOM files, which are not the groups."""
    known = [patient for patient in patients if patient]
    if not known:
        return
    number = len(set(known))
    are = "is" if len(known) == 1 else "are"
    several = "; --groups patient makes the images of each patient one group" if number < len(known) else ""
    yield f"{counted(len(known), 'DICOM file')} {are} of {counted(number, 'patient')} by PatientID{several}"


def _have(number: int, thing: str) -> str:
    return f"{counted(number, thing)} {'has' if number == 1 else 'have'}"


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
