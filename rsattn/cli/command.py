"""What every command needs: faults that are one sentence, packages that may be missing, files written whole."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Control characters, marks that turn the direction of text, ends of lines and paragraphs, and halves of characters.
OBEYED = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class CommandError(Exception):
    """Something the person at the keyboard can put right; the message is one line."""


def require(command: str, extra: str, *packages: str) -> None:
    """Raise a `CommandError` that names every package `rsattn command` needs and cannot import."""
    missing, broken = [], []
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            missing.append(package if error.name == package else f"{package} (which lacks {error.name})")
        except Exception as error:  # a compiled package beside another build of what it was compiled for
            broken.append(f"{package} is installed but cannot be imported: {why(error)}")
    if missing:
        raise CommandError(f"the {command} needs {', '.join(missing)}: pip install 'rsattn[{extra}]'")
    if broken:
        raise CommandError("; ".join(broken))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals inside it into a `CommandError` about `path`."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"cannot write {path}: {why(error)}") from None


@contextmanager
def finished_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its name when all went well.

    The file is made at once, so that a folder nobody can write to is found before the work, not after it.
    If anything is raised, that file and the folders made for it go, and an older `path` stays as it was.
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
    """A name or a message on one line: what a terminal would obey and not show is escaped, as in Python's strings."""
    return OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


def why(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
