"""Estimate the disk space of a run before it starts, and refuse runs that do not fit on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..cli.command import CommandError, existing
from ..cli.terminal import in_bytes
from .options import Options


def kept_bytes(options: Options, weights: int) -> int:
    """The size of a finished run: its checkpoints, which have only weights, and model.safetensors.

    Args:
        weights: bytes of the parameters and buffers.
    """
    return _checkpoints(options, weights) + weights


def largest_bytes(options: Options, weights: int, moments: int) -> int:
    """The largest size of a run while it trains.

    Args:
        moments: bytes of AdamW's two moments, which the last checkpoint has until the run is finished.
    """
    finished = _checkpoints(options, weights)
    # A checkpoint is written beside the earlier one. The same space takes model.safetensors after the last epoch.
    training = finished + weights + 2 * moments
    if not options.lr_auto:
        return training
    # Three trainings, one after the other, and a copy of the best one before the others are removed.
    return max(2 * finished + training, 4 * finished)


def _checkpoints(options: Options, weights: int) -> int:
    """Without moments."""
    return 2 * weights if options.keep == "best" else weights


def refuse_full_disk(folder: Path, needed: int, what: str) -> None:
    """Raise where the disk of `folder` has less than `needed` bytes free.

    Args:
        folder: it need not exist.
        what: what the bytes are for, at the start of the message.

    Raises:
        CommandError: there is not enough free space.
    """
    free = shutil.disk_usage(existing(folder)).free
    if free < needed:
        raise CommandError(
            f"{what} about {in_bytes(needed)} of disk for checkpoints, and the disk of {folder} has {in_bytes(free)} "
            "free: free some space, or choose an --out on another disk"
        )
