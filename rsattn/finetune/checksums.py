"""SHA-256 checksums that identify the data of a run in a paper."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def of_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_images(images: Iterable[tuple[str, str]]) -> str:
    """One SHA-256 for a set of images, which does not depend on their order.

    It is that of their sorted lines "checksum  file", as in `sha256sum FILES | LC_ALL=C sort | sha256sum` in the folder
    of the images.

    Args:
        images: the checksum of each image, and its file relative to the folder of the images.
    """
    lines = sorted(f"{checksum}  {file}\n".encode("utf-8", "surrogateescape") for checksum, file in images)
    return hashlib.sha256(b"".join(lines)).hexdigest()
