"""Refuse a run that does not fit in memory or on the disk, before anything is read or written."""

from __future__ import annotations

from pathlib import Path

import torch

from ..cli.command import CommandError
from ..cli.terminal import in_bytes
from .available_memory import available_memory
from .disk import largest_bytes, refuse_full_disk
from .memory import memory_needed
from .models import refuse_images_of_another_size
from .options import SHARDED, Options
from .wording import in_words


def refuse_what_cannot_fit(options: Options, classes: int = 2) -> None:
    """Refuse a run that needs more memory or disk than is free, before anything is read or written.

    Raises:
        CommandError: the run does not fit, the model cannot be built, or it cannot take images of this size.
    """
    if options.strategy.startswith(SHARDED):  # the memory of one device is unknown here
        return
    there = available_memory()
    batch = 4 * 3 * options.image_size**2 * options.batch_size
    if batch > there:  # so that no model is built with sizes that overflow in PyTorch
        raise CommandError(too_large(options, batch, "for one batch of images", there))
    needed = memory_needed(options, classes)
    if needed is None:
        refuse_images_of_another_size(options, classes)
        return
    if needed.step <= there:
        refuse_full_disk(Path(options.out), largest_bytes(options, needed.weights, needed.moments), "the run needs")
        return
    parts = {
        "weights": needed.weights,
        "gradients": needed.gradients,
        "optimizer": needed.moments,
        "activations of a batch": needed.activations,
    }
    listed = ", ".join(f"{in_bytes(size)} of {name}" for name, size in parts.items() if size >= 0.01 * needed.step)
    raise CommandError(too_large(options, needed.step, f"({listed})", there))


def too_large(options: Options, needed: int, what: str, there: int) -> str:
    where = "the GPU" if torch.cuda.is_available() else "this machine"
    own = options.model in ("vit", "resvit")
    ways = ["a smaller --image-size"]
    ways += ["a smaller --batch-size"] if options.batch_size > 1 else []
    ways += ["a smaller --size"] if own and options.size != "tiny" else []
    ways += ["--freeze"] if not options.freeze else []
    model = f"a {options.size} {options.model}" if own else options.model
    return (
        f"{model} with --image-size {options.image_size} and --batch-size {options.batch_size} does not fit in memory: "
        f"it needs about {in_bytes(needed)} {what}, and {where} has {in_bytes(there)} free; use {in_words(ways, 'or')}"
    )
