"""What a run will need, in a line before it starts."""

from __future__ import annotations

import torch

from ..cli.terminal import duration, in_bytes
from .devices import device_in_words
from .disk import largest_bytes
from .features import can_be_kept
from .memory import Needed
from .options import RATE_FACTORS, Options
from .wording import counted


def announce(options: Options, steps: int, validation: int, step_seconds: float, needed: Needed | None) -> str:
    """One line on the length, time, memory and disk space of a run.

    Args:
        steps: the number of steps of an epoch on one device.
        validation: the number of batches of the validation images on one device.
        step_seconds: as `seconds_per_batch` measures it.
        needed: as `memory_needed` counts it.
    """
    count, epochs = counted(steps, "step"), counted(options.epochs, "epoch")
    if can_be_kept(options):
        run = f"one pass of {count} over all images, then {epochs} of only the classifier"
    else:
        run = f"{'at most ' if options.patience else ''}{epochs} of {count}"
    if options.lr_auto:
        run = f"{len(RATE_FACTORS)} learning rates, each with {run}"
    line = f"{run}, about {duration(seconds_of_run(options, steps, validation, step_seconds))} on {device_in_words()}"
    if needed is None:
        return line
    memory = needed.step if torch.cuda.is_available() else needed.total
    disk = largest_bytes(options, needed.weights, needed.moments)
    return f"{line}; at least {in_bytes(memory)} of memory and {in_bytes(disk)} of disk"


def seconds_of_run(options: Options, steps: int, validation: int, step_seconds: float) -> float:
    """The time of all training of a run, with its validation; `announce` explains the arguments."""
    if can_be_kept(options):  # then a step is a forward pass
        seconds = (steps + validation) * step_seconds
    else:
        forward = step_seconds / 3
        seconds = options.epochs * (steps * step_seconds + validation * forward)
        seconds += (steps + validation) * forward if options.head_first else 0
    return (len(RATE_FACTORS) if options.lr_auto else 1) * seconds


def hint(options: Options, needed: Needed | None) -> str:
    """A line on a size that is probably a mistake; empty where there is none.

    A tiny ViT always has 4 x 4 patches, so with large images, most of its weights are the patch embedding.
    """
    if needed is None or 2 * needed.embedding <= needed.weights:
        return ""
    return (
        f"{needed.embedding / needed.weights:.0%} of the weights are the patch embedding: a tiny {options.model} "
        f"always has 4 x 4 patches, here of {options.image_size // 4} pixels; use a smaller --image-size, or --size "
        "small, which has patches of 16 pixels"
    )
