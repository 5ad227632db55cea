"""The folders that commands write in: marked, so that none is read as data, and locked while a command writes."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .command import CommandError, writing

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

MARKER, LOCK = ".rsattn", ".rsattn.lock"
SENTENCE = "rsattn wrote this folder. Because of this file, its commands do not read the images in here as data.\n"
BEFORE_MARKERS = {"config.json", "data.json", "split.csv"}  # the files of a run of a version without markers


def is_output(names: Collection[str]) -> bool:
    """Whether a folder with files of these names is the output of a command."""
    return MARKER in names or BEFORE_MARKERS.issubset(names)


def names_in(folder: Path) -> set[str]:
    """The names of the files and folders in `folder`; empty where it does not exist or cannot be read."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def is_inside(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder`, or in it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def warning_inside(out: Path, data: Path) -> str:
    """A line for the user where the output is inside the data; else empty."""
    if not is_inside(out, data):
        return ""
    return (
        f"warning: the output {out} is inside the data {data}: rsattn skips it there, but another program may take its "
        "figures for data; choose another folder with --out"
    )


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Create a folder to write in. It gets the marker, unless it holds files already.

    If the block raises and leaves no files in the folder, the marker and the folders created for it are removed.

    Raises:
        CommandError: the folder cannot be created, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"cannot write to {folder}: it is not a folder")
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        if not names_in(folder):
            with writing(folder):
                (folder / MARKER).write_text(SENTENCE)
        yield
    except BaseException:
        with suppress(OSError):
            if names_in(folder) <= {MARKER}:
                (folder / MARKER).unlink(missing_ok=True)
            for place in created:
                place.rmdir()
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from working in `folder`.

    The operating system holds the lock and releases it when the process ends, however it ends. On Windows, and on
    network file systems without locks, nothing is locked.

    Raises:
        CommandError: another process works in the folder; the message names it.
    """
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    file = _acquired(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)  # after the unlink, so that no process locks a file that is about to be removed


def _acquired(path: Path) -> int:
    while True:
        with writing(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Not flock: processes that load images inherit its locks, and outlive a killed run by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(file, 200).decode(errors="replace") or "another process"
            os.close(file)
            raise CommandError(
                f"{path.parent} is in use by {holder}: wait until that process ends, or choose another --out"
            ) from None
        except OSError:  # a file system without locks
            return file
        if _is_at(file, path):
            with suppress(OSError):  # a full disk
                os.truncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return file
        os.close(file)  # its holder has just removed it


def _is_at(file: int, path: Path) -> bool:
    """Whether `path` still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
