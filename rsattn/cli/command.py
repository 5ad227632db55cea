"""What every command needs: one-line errors, a check for missing packages, and files written all or not at all."""

from __future__ import annotations

import errno
import importlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .packages import cause_of, sentence

# Control characters, marks that change the direction of text, separators of lines and paragraphs, and surrogates.
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class CommandError(Exception):
    """An error that the user can fix; the message is one line."""


def require(command: str, extra: str, *packages: str) -> None:
    """Raise a `CommandError` that names each package that `rsattn command` needs and cannot import."""
    missing, broken = [], {}
    for package in packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # a compiled package that does not fit another one can raise anything
            if isinstance(error, ModuleNotFoundError) and error.name == package:
                missing.append(package)
            else:
                broken[package] = cause_of(package, error)
    if missing:
        raise CommandError(f"the {command} needs {', '.join(missing)}: pip install 'rsattn[{extra}]'")
    if broken:
        raise CommandError(sentence(broken))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn each `OSError` in the block into a `CommandError` that names `path`, and its disk where that is full."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"cannot write {path}: {why(error)}{free_space(path) if is_full(error) else ''}") from error


def is_full(error: BaseException | None) -> bool:
    """Whether the reason of an error is a full disk; PyTorch raises a `RuntimeError` with the words of the system."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return isinstance(error, RuntimeError) and os.strerror(errno.ENOSPC) in str(error)


def free_space(path: Path) -> str:
    """The mount point and the free space of the disk of a file or folder that may not exist yet, in parentheses."""
    there = existing(path)
    mount = next(place for place in (there, *there.parents) if os.path.ismount(place))
    return f" (the disk mounted at {mount} has {shutil.disk_usage(there).free / 1e6:.1f} MB free)"


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


@contextmanager
def finished_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which is renamed to `path` when the block succeeds.

    The file is created at once, so that a folder without write permission is found before the work, not after it.
    If the block raises, the temporary file and the folders created for it are removed, and an existing `path` stays
    as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    created = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        if path.parent.exists() and not path.parent.is_dir():
            raise CommandError(f"cannot write to {path.parent}: it is not a folder")
        if path.is_dir():
            raise CommandError(f"cannot write {path}: it is a folder")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
        yield partial
        with writing(path):
            os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        for folder in created:
            with suppress(OSError):
                folder.rmdir()
        raise


def shown(text: str) -> str:
    """A name or a message on one line, with control characters escaped as in Python's strings."""
    return UNSAFE.sub(lambda found: repr(found[0])[1:-1], text)


def why(error: BaseException) -> str:
    """The reason that an error gives, without the file name of an `OSError`."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
