"""Where trained weights are kept between runs, and whether they are still what was written."""

from __future__ import annotations

import hashlib
import inspect
import io
import os
from dataclasses import asdict
from pathlib import Path

import torch

from . import reader, scenes
from .reader import Trained

DIGEST_BYTES = hashlib.sha256().digest_size


class DamagedError(Exception):
    """A file in the cache that is not as it was written."""


def cache_file(*settings: object) -> Path:
    """The file of the model trained with these settings by the code as it is now."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    code = hashlib.sha256((inspect.getsource(reader) + inspect.getsource(scenes)).encode())
    return folder / "rsattn" / f"demo-{'-'.join(map(str, settings))}-{code.hexdigest()[:8]}.pt"


def write(path: Path, trained: Trained) -> None:
    """A digest, then what it is of."""
    content = io.BytesIO()
    torch.save(asdict(trained), content)
    path.write_bytes(hashlib.sha256(content.getvalue()).digest() + content.getvalue())


def read(path: Path) -> Trained | None:
    """What `write` wrote; None when there is no such file, or it cannot be read.

    Raises:
        DamagedError: the file holds something else.
    """
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    digest, content = whole[:DIGEST_BYTES], whole[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise DamagedError
    return Trained(**torch.load(io.BytesIO(content), weights_only=True))
