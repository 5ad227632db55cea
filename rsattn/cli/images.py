"""Reading an image, whatever its file holds; a fault names the file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from .command import CommandError, shown, why

if TYPE_CHECKING:
    from PIL.Image import Image


def load_image(path: Path | None) -> tuple[Image, str]:
    """The image in RGB and a few words on where it is from; scikit-image's retina when `path` is None."""
    from PIL import Image, UnidentifiedImageError

    if path is None:
        from skimage import data

        return Image.fromarray(data.retina()), "retina, from scikit-image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _as_rgb(image), display_name(path)
    except UnidentifiedImageError:
        raise CommandError(f"{path} is not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise CommandError(f"{path} is too large an image: {why(error)}") from None
    except OSError as error:
        raise CommandError(f"cannot read the image {path}: {why(error)}") from None
    except (SyntaxError, ValueError, EOFError) as error:  # how Pillow's decoders report damaged data
        raise CommandError(f"{path} is a damaged image: {why(error)}") from None


def _as_rgb(image: Image) -> Image:
    """Upright, transparency on white, and grey levels deeper than 8 bits stretched to the whole range."""
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        levels = np.nan_to_num(np.asarray(image, dtype=np.float64))
        span = float(np.ptp(levels)) or 1.0
        image = Image.fromarray(((levels - levels.min()) * (255.0 / span)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def display_name(path: Path) -> str:
    """The file's name on one line, its middle left out when it is long."""
    name = shown(path.name)
    return name if len(name) <= 40 else f"{name[:18]}...{name[-18:]}"
