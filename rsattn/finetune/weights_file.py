"""model.safetensors: the tested weights of a run and what they need, in a format that holds no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.command import CommandError
from ..cli.weights import read_metadata

if TYPE_CHECKING:
    pass

SUFFIX = ".safetensors"
DECODED = ("classes", "mean", "std", "temperature", "options", "gates_at_start")


def read_described(path: Path, to_do: str) -> dict[str, Any] | None:
    """What a file of `write_weights` says about its weights, as a checkpoint holds it; None for a file of others.

    Args:
        to_do: what the user can do about a damaged file, for the message.

    Raises:
        CommandError: the file cannot be read, or its metadata are damaged.
    """
    metadata = read_metadata(path)
    if "rsattn" not in metadata:
        return None
    return {**{name: _decoded(path, metadata, name, to_do) for name in DECODED}, "history": []}


def _decoded(path: Path, metadata: dict[str, str], name: str, to_do: str) -> Any:
    try:
        return json.loads(metadata[name])
    except (KeyError, ValueError):
        raise CommandError(f"{path} is damaged: its metadata have no valid {name}; {to_do}") from None
