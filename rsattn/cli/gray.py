"""Gray levels of images with more than 8 bits per pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Window = tuple[float, float]
"""Center and width, in the units of the values, such as the Hounsfield units of CT."""


def ends_of(window: Window) -> tuple[float, float]:
    """The values that become black and white (LINEAR_EXACT in DICOM PS3.3, C.11.2.1.3.2)."""
    center, width = window
    return center - width / 2, center + width / 2


def as_gray(values: ArrayLike, ends: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Gray levels from 0 to 255; NaN counts as 0.

    Args:
        values: real numbers, of any shape.
        ends: the values that become 0 and 255. Default: the smallest and the largest finite one.
    """
    levels = np.nan_to_num(np.asarray(values, dtype=np.float64), posinf=np.inf, neginf=-np.inf)
    if ends is None:
        finite = levels[np.isfinite(levels)]
        ends = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    low, high = ends
    return ((np.clip(levels, low, high) - low) * (255.0 / (high - low or 1.0))).astype(np.uint8)
