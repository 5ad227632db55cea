"""Several names of one file on the disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


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
