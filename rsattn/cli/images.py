"""Load an image file; errors name the file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .command import CommandError, shown, why

if TYPE_CHECKING:
    from PIL.Image import Image


DEEP_COLORS = re.compile(r"'(LA|RGB[AX]?|CMYK);16")  # in what Pillow tells its decoder
READERS = {"DICOM": "pydicom", "NIfTI": "nibabel"}
MOST_SCANS = 100  # files that are opened to recognize their format


@dataclass(frozen=True)
class Source:
    """What the file of an image holds.

    Attributes:
        deep: more than 8 bits per pixel in one channel, or floating-point values.
        deep_colors: 16 bits in each of several channels.
        pages: whether there are pages or frames after the first one.
    """

    deep: bool
    deep_colors: bool
    pages: bool


def load_image(path: Path | None) -> tuple[Image, str]:
    """The image in RGB, and a short text on its source; scikit-image's retina where `path` is None."""
    if path is None:
        from PIL import Image
        from skimage import data

        return Image.fromarray(data.retina()), "retina, from scikit-image"
    return read_image(path)[0], display_name(path)


def read_image(path: Path) -> tuple[Image, Source]:
    """The image in RGB, and what its file holds.

    Raises:
        CommandError: the file cannot be read, or is no image; the message names it.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                deep_colors = DEEP_COLORS.search(str(image.tile)) is not None  # empty after the image is decoded
                return as_rgb(image), Source(_is_deep(image), deep_colors, _has_pages(image))
    except UnidentifiedImageError:
        hint = hint_at_scans([path])
        raise CommandError(f"{path} is not an image that Pillow can read{f': {hint}' if hint else ''}") from None
    except Image.DecompressionBombError as error:
        raise CommandError(f"the image {path} is too large: {why(error)}") from None
    except OSError as error:
        raise CommandError(f"cannot read the image {path}: {why(error)}") from None
    except (SyntaxError, ValueError, EOFError) as error:  # how Pillow reports damaged data
        raise CommandError(f"{path} is a damaged image: {why(error)}") from None


def hint_at_scans(files: Sequence[Path]) -> str | None:
    """What to do where one of the first files is in a format of medical scanners; None where none is."""
    formats = {_scan_format(file) for file in files[:MOST_SCANS]}
    found = [f"{name} files (with {package})" for name, package in READERS.items() if name in formats]
    return f"convert {' and '.join(found)} to PNG first; docs/images.md says how" if found else None


def _scan_format(path: Path) -> str | None:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return "NIfTI"
    if name.endswith((".dcm", ".dicom", ".ima")):
        return "DICOM"
    try:
        if path.is_file():
            with path.open("rb") as file:  # many DICOM files have no suffix
                return "DICOM" if file.read(132)[128:] == b"DICM" else None
    except OSError:
        pass
    return None


def _is_deep(image: Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _has_pages(image: Image) -> bool:
    # In an MPO file, a photograph of a phone, the other images are previews.
    return bool(getattr(image, "is_animated", False)) and image.format != "MPO"


def as_rgb(image: Image) -> Image:
    """Turn the image upright, put it on white where it is transparent, and stretch more than 8 bits to 0 to 255."""
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if _is_deep(image):
        levels = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=np.inf, neginf=-np.inf)
        finite = levels[np.isfinite(levels)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        levels = (np.clip(levels, low, high) - low) * (255.0 / (float(high - low) or 1.0))
        image = Image.fromarray(levels.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def display_name(path: Path) -> str:
    """The name of the file on one line; the middle of a long name is left out."""
    name = shown(path.name)
    return name if len(name) <= 40 else f"{name[:18]}...{name[-18:]}"
