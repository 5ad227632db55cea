"""scikit-learn's handwritten digits as a folder of class folders: data without a download."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..cli.command import CommandError, writing


def write_digits(folder: Path) -> None:
    """Write the 1797 digits to `folder/<0 to 9>/<index>.png`, gray, 8 x 8 pixels; an existing `folder` is kept.

    The folder gets its name after all images are written, so it is never incomplete.

    Raises:
        CommandError: it cannot be written, or is a file.
    """
    if folder.is_dir():
        return
    if folder.exists():
        raise CommandError(f"cannot write the digits to {folder}: it is a file")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with writing(folder):
            _write_images(partial)
            try:
                os.rename(partial, folder)
            except OSError:
                if not folder.is_dir():  # another process wrote the same digits first
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_images(folder: Path) -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for label in digits.target_names:
        (folder / str(label)).mkdir(parents=True)
    for index, (pixels, label) in enumerate(zip(images, digits.target)):
        Image.fromarray(pixels).save(folder / str(label) / f"{index}.png")
