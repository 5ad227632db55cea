"""Estimate the disk space of a run before it starts, and refuse runs that do not fit on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..cli.command import CommandError
from ..cli.terminal import in_bytes
from .options import Options


def kept_bytes(options: Options, weights: int, moments: int) -> int:
    """The size of a finished run: its checkpoints, beside which the other files are small.

    Args:
        weights: bytes of the parameters and buffers.
        moments: bytes of AdamW's two moments, which only the last checkpoint has.
    """
    return weights + moments + (weights if options.keep == "best" else 0)


def largest_bytes(options: Options, weights: int, moments: int) -> int:
    """The largest size of a run while it trains."""
    if options.lr_auto:  # three trainings, and a copy of the best one before the others are removed
        return 4 * kept_bytes(options, weights, moments)
    return kept_bytes(options, weights, moments) + weights + moments  # a checkpoint is written beside the earlier one


def refuse_full_disk(folder: Path, needed: int, what: str) -> None:
    """Raise where the disk of `folder` has less than `needed` bytes free.

    Args:
        folder: it need not exist.
        what: what the bytes are for, at the start of the message.

    Raises:
        CommandError: there is not enough free space.
    """
    existing = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CommandError(
            f"{what} about {in_bytes(needed)} of disk for checkpoints, and the disk of {folder} has {in_bytes(free)} "
            "free: free some space, or choose an --out on another disk"
        )
