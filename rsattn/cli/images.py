"""Load an image file; errors name the file."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .command import CommandError, shown, why
from .gray import Window, as_gray, ends_of
from .packages import is_installed
from .scans import READERS, hint_at_scans, read_scan, scan_format

if TYPE_CHECKING:
    from PIL.Image import Image


DEEP_COLORS = re.compile(r"'(LA|RGB[AX]?|CMYK);16")  # in what Pillow tells its decoder


@dataclass(frozen=True)
class Source:
    """What the file of an image holds.

    Attributes:
        deep: more than 8 bits per pixel in one channel, or floating-point values.
        deep_colors: 16 bits in each of several channels.
        pages: whether there are pages or frames after the first one.
        from_header, several, patient: as in `scans.Scan`; only of DICOM and NIfTI files.
    """

    deep: bool
    deep_colors: bool
    pages: bool
    from_header: bool = False
    several: bool = False
    patient: str | None = None


def load_image(path: Path | None, window: Window | None = None) -> tuple[Image, str]:
    """The image in RGB, and a short text on its source; scikit-image's retina where `path` is None.

    Args:
        window: as in `read_image`.
    """
    if path is None:
        from PIL import Image
        from skimage import data

        return Image.fromarray(data.retina()), "retina, from scikit-image"
    return read_image(path, window)[0], display_name(path)


def read_image(path: Path, window: Window | None = None) -> tuple[Image, Source]:
    """The image in RGB, and what its file holds.

    Args:
        window: for gray images with more than 8 bits per pixel. Default: that in the header of a DICOM or NIfTI file,
            and without one the smallest and the largest value of the image.

    Raises:
        CommandError: the file cannot be read, or is no image; the message names it.
    """
    from PIL import Image, UnidentifiedImageError

    kind = scan_format(path)
    if kind is not None and is_installed(READERS[kind]):
        scan = read_scan(path, kind, window)
        patient = scan.patient if kind == "DICOM" else None
        return scan.image, Source(scan.deep, False, False, scan.from_header, scan.several, patient)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                deep_colors = DEEP_COLORS.search(str(image.tile)) is not None  # empty after the image is decoded
                return as_rgb(image, window), Source(_is_deep(image), deep_colors, _has_pages(image))
    except UnidentifiedImageError:
        hint = hint_at_scans([path])
        raise CommandError(f"{path} is not an image that rsattn can read{f': {hint}' if hint else ''}") from None
    except Image.DecompressionBombError as error:
        raise CommandError(f"the image {path} is too large: {why(error)}") from None
    except OSError as error:
        raise CommandError(f"cannot read the image {path}: {why(error)}") from None
    except (SyntaxError, ValueError, EOFError, RuntimeError) as error:  # how Pillow reports damaged data
        raise CommandError(f"{path} is a damaged image: {why(error)}") from None


def _is_deep(image: Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _has_pages(image: Image) -> bool:
    # In an MPO file, a photograph of a phone, the other images are previews.
    return bool(getattr(image, "is_animated", False)) and image.format != "MPO"


def as_rgb(image: Image, window: Window | None = None) -> Image:
    """Turn the image upright, put it on white where it is transparent, and reduce more than 8 bits to 0 to 255.

    Args:
        window: as in `read_image`.
    """
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if _is_deep(image):
        image = Image.fromarray(as_gray(np.asarray(image), None if window is None else ends_of(window)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def display_name(path: Path) -> str:
    """The name of the file on one line; the middle of a long name is left out."""
    name = shown(path.name)
    return name if len(name) <= 40 else f"{name[:18]}...{name[-18:]}"
