"""Helpers for tests of runs."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from rsattn.cli.outputs import MARKER, names_in
from rsattn.finetune.memory import Needed, memory_needed
from rsattn.finetune.options import Options

MakeOptions = Callable[..., Options]
"""Keywords -> `Options` of a run that takes a second, with these changes."""


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def written(out: Path) -> list[str]:
    """The sorted names of what a command wrote into its output folder, after a check that the folder has the marker."""
    names = names_in(out)
    assert MARKER in names
    return sorted(names - {MARKER})


def memory_of(options: Options, classes: int = 2, images: int = 0) -> Needed:
    needed = memory_needed(options, classes, images)
    assert needed is not None
    return needed
