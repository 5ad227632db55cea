"""Estimate the time and disk space of the models of a comparison before the first run starts."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..cli.command import CommandError
from ..cli.terminal import tracked
from .announcing import seconds_of_run
from .cpu_attention import use_matrix_products
from .dataset import ImageDataset, Normalize, Store
from .digits import write_digits
from .disk import kept_bytes, largest_bytes
from .folders import Found, find_images
from .memory import memory_needed
from .models import build, refuse_images_of_another_size
from .options import Options, with_all_epochs
from .splitting import split_images
from .step_time import seconds_per_batch


@dataclass(frozen=True)
class Estimate:
    """What one run of a model takes.

    Attributes:
        seconds: the time of its training on the device of this process.
        kept: the bytes of disk of the finished run.
        largest: those while it trains.
    """

    seconds: float
    kept: int
    largest: int


def estimates(models: Sequence[Options], console: Console) -> list[Estimate | None]:
    """An estimate for each model; None where there is none, because of a fault that its run will report.

    Args:
        models: options with the same data.

    Raises:
        CommandError: a model cannot be built, or cannot take images of its size.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = _images(models[0], Path(folder))
            splits = split_images(found, [image.file for image in found.images], 0)
        except CommandError:
            return [None for _ in models]
        train = [index for index, split in enumerate(splits) if split == "train"]
        each = tracked(models, "estimating the time", console)
        return [_estimate(options, found, train, splits.count("val")) for options in each]


def _images(options: Options, temporary: Path) -> Found:
    if options.data is not None:
        return find_images(Path(options.data), groups=options.groups)
    write_digits(temporary / "digits")
    return find_images(temporary / "digits")


def _estimate(options: Options, found: Found, train: Sequence[int], val: int) -> Estimate | None:
    classes = len(found.classes)
    store = Store(found.root, [image.file for image in found.images], options.image_size, window=options.window)
    needed = memory_needed(options, classes)
    if needed is None:
        refuse_images_of_another_size(options, classes)
        return None
    try:
        built = build(options, classes, with_weights=False)
        use_matrix_products(built.model, options)
        normalize = Normalize(built.mean, built.std)
        images = ImageDataset(store, train, [0] * len(store.files), normalize, options.augment)
        options = with_all_epochs(options, len(train))
        seconds = seconds_per_batch(built, options, images)
    except CommandError:
        return None
    steps, validation = (math.ceil(count / options.batch_size) for count in (len(train), val))
    return Estimate(
        seconds=seconds_of_run(options, steps, validation, seconds),
        kept=kept_bytes(options, needed.weights),
        largest=largest_bytes(options, needed.weights, needed.moments),
    )
