"""The small model's task: a printed digit somewhere on a fundus photograph. So the right place to look is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE, PATCH, DIGIT = 96, 12, 36  # sides of an image, a patch and a digit's square, which covers whole patches
GRID = SIZE // PATCH
DIGITS = 10

# Fonts that matplotlib's wheel ships; the model is tested on fonts that training does not use.
TRAINING_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmb10", "cmtt10", "cmss10"),
)
TEST_FONTS = ("DejaVuSansMono-BoldOblique", "DejaVuSerif-BoldItalic", "STIXGeneralBolIta")
VARIANTS = 40  # of each digit of each font
CROPS = 200  # of the photograph, as backgrounds


@dataclass(frozen=True)
class Scenes:
    """Images with a digit.

    Attributes:
        pixels: (B, 3, S, S) float32 from -1 to 1.
        digits: (B,) which digit it is.
        on_digit: (B, G, G) bool, the patches in the digit's square.
    """

    pixels: Tensor
    digits: Tensor
    on_digit: Tensor


class SceneMaker:
    """Makes images with digits of the given fonts; the seed decides everything."""

    def __init__(self, fonts: tuple[str, ...], seed: int) -> None:
        from PIL import Image
        from skimage import data

        self.rng = np.random.default_rng(seed)
        photograph = Image.fromarray(data.retina())
        self.whole = _pixels(photograph, (0, 0, *photograph.size))[None]
        self.crops = np.stack([self._crop(photograph) for _ in range(CROPS)])
        self.shapes = np.stack([self._shapes(font) for font in fonts for _ in range(VARIANTS)])

    def make(self, count: int) -> Scenes:
        """Digits on random parts of the photograph."""
        return self._make(self.crops[self.rng.integers(CROPS, size=count)])

    def example(self) -> Scenes:
        """One digit on the whole photograph."""
        return self._make(self.whole.copy())

    def _make(self, pixels: NDArray[np.float32]) -> Scenes:
        count, places = len(pixels), GRID - DIGIT // PATCH + 1
        digits = self.rng.integers(DIGITS, size=count)
        shapes = self.shapes[self.rng.integers(len(self.shapes), size=count), digits]
        on_digit = torch.zeros(count, GRID, GRID, dtype=torch.bool)
        for index, (top, left) in enumerate(self.rng.integers(places, size=(count, 2)) * PATCH):
            square = pixels[index, :, top : top + DIGIT, left : left + DIGIT]
            square += (1.0 - square) * shapes[index]
            on_digit[index, top // PATCH :, left // PATCH :][: DIGIT // PATCH, : DIGIT // PATCH] = True
        return Scenes(torch.from_numpy(pixels * 2.0 - 1.0), torch.from_numpy(digits), on_digit)

    def _crop(self, photograph: Image) -> NDArray[np.float32]:
        """A square of a quarter to the whole of the photograph's side, turned by a multiple of 90 degrees."""
        side = int(self.rng.integers(photograph.width // 4, photograph.width + 1))
        left, top = self.rng.integers(photograph.width - side + 1, size=2).tolist()
        pixels = _pixels(photograph, (left, top, left + side, top + side))
        return np.rot90(pixels, int(self.rng.integers(4)), axes=(1, 2))

    def _shapes(self, font: str) -> NDArray[np.float32]:
        """(10, S, S) how much each pixel is covered by each digit, from 0 to 1; turned and sized at random."""
        turned = [(self.rng.uniform(-10.0, 10.0), self.rng.uniform(0.85, 1.0)) for _ in range(DIGITS)]
        return np.stack([_shape(font, str(digit), *how) for digit, how in enumerate(turned)])


def _pixels(photograph: Image, box: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """(3, S, S) from 0 to 1."""
    from PIL import Image

    part = photograph.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
    return np.asarray(part, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)


def _shape(font: str, digit: str, angle: float, part: float) -> NDArray[np.float32]:
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    drawn: Any = Image.new("L", (112, 112))
    ImageDraw.Draw(drawn).text((56, 56), digit, 255, font=ImageFont.truetype(file, 64), anchor="mm")
    drawn = drawn.rotate(angle, Image.Resampling.BICUBIC)
    drawn = drawn.crop(drawn.getbbox())
    scale = part * DIGIT / max(drawn.size)
    width, height = (max(round(side * scale), 1) for side in drawn.size)
    shape = Image.new("L", (DIGIT, DIGIT))
    place = ((DIGIT - width) // 2, (DIGIT - height) // 2)
    shape.paste(drawn.resize((width, height), Image.Resampling.BILINEAR), place)
    return np.asarray(shape, dtype=np.float32) / np.float32(255)
