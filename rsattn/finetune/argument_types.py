"""What the words of a command line can be: numbers in a range, a window, a gate."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Literal

from ..cli.gray import Window
from .options import is_window

NO_GATE: Literal["none"] = "none"
LARGEST_GATE = (2 - 2**-23) * 2.0**127  # in float32, in which gates are built


def config(text: str) -> Path:
    """A file of options; that of a run can be given as the folder of the run."""
    path = Path(text)
    return path / "config.json" if path.is_dir() else path


def count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**32 - 1")
    return int(text)


def workers(text: str) -> int:
    most = 4 * (os.cpu_count() or 1)
    if count(text) > most:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {most}, four times the number of CPU cores here")
    return int(text)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    if int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is larger than 2**32 - 1")
    return int(text)


def folds(text: str) -> int:
    if positive(text) == 1:
        raise argparse.ArgumentTypeError("'1' is too few: cross-validation needs 2 folds or more")
    return int(text)


def window(text: str) -> Window:
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if not is_window(values):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not CENTER,WIDTH, two numbers such as 40,400 with a width above 0"
        )
    return values[0], values[1]


def gate(text: str) -> float | Literal["none"]:
    if text == NO_GATE:
        return NO_GATE
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or none")
    if abs(value) > LARGEST_GATE:
        raise argparse.ArgumentTypeError(f"{text!r} is too large for float32")
    return value


def rate_or_auto(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        value = rate(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto or a number above 0") from None
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} trains nothing: expected auto, or a number above 0")
    return value


def share(text: str) -> float:
    value = rate(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def below_one(text: str) -> float:
    value = share(text)
    if value == 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1, 1 excluded")
    return value


def factor(text: str) -> float:
    value = share(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1, 0 excluded")
    return value


def rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number that is 0 or larger")
    return value


def renamed(text: str) -> tuple[str, str]:
    name, equals, label = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not FOLDER=CLASS")
    return name, label
