"""Several processes at work on one grid: a lock on a file, which the system gives back however a process ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(file: Path, wait: bool = True) -> Iterator[bool]:
    """Whether this process has the lock of `file`, which is made empty where it is not there and stays.

    Args:
        wait: until another process gives it back; else the answer is False where another one has it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
