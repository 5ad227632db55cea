"""history.csv: what every epoch came to, and what follows from it."""

from __future__ import annotations

import csv
from collections.abc import Sequence

from ..cli.command import finished_file
from .options import Options
from .run_folder import RunFolder


def write_history(folder: RunFolder, history: Sequence[dict[str, float]]) -> None:
    with finished_file(folder.history) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def read_history(folder: RunFolder) -> list[dict[str, float]]:
    """The rows of history.csv; none where no epoch is finished."""
    if not folder.history.exists() or not folder.last.exists():
        return []
    with folder.history.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def is_finished(history: Sequence[dict[str, float]], options: Options) -> bool:
    """Whether all epochs are done, or so many without a better one that there will be no more."""
    if not history:
        return False
    return len(history) >= options.epochs or 0 < options.patience <= len(history) - best_epoch(history)


def best_epoch(history: Sequence[dict[str, float]]) -> int:
    """The epoch of the least validation loss, the first of equals, counted from 1."""
    losses = [row["val_loss"] for row in history]
    return losses.index(min(losses)) + 1


def tested_epoch(history: Sequence[dict[str, float]], options: Options) -> int:
    """The epoch whose weights are tested, counted from 1."""
    return best_epoch(history) if options.keep == "best" else len(history)


def how_to_go_on(folder: RunFolder) -> str:
    """A sentence on what is kept after a run that broke off."""
    done = len(read_history(folder))
    kept = f"{done} finished epoch{'s are' if done != 1 else ' is'} kept"
    return f"{kept}; `rsattn finetune --resume {folder.path}` goes on"
