"""history.csv: the losses and scores of each epoch, and what follows from them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence

from ..cli.command import CommandError, finished_file, why
from .checkpoint import COLUMNS, read_last
from .contents import read_json
from .options import Options
from .run_folder import RunFolder
from .wording import counted


def write_history(folder: RunFolder, history: Sequence[dict[str, float]]) -> None:
    with finished_file(folder.history) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(history)


def read_history(folder: RunFolder) -> list[dict[str, float]]:
    """The rows of history.csv; empty where no epoch is finished.

    Raises:
        CommandError: the file is damaged.
    """
    if not folder.history.exists() or not folder.last.exists():
        return []
    try:
        with folder.history.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        history = [{name: float(row[name]) for name in COLUMNS} for row in rows]
    except OSError as error:
        raise _damaged(folder, f"it cannot be read ({why(error)})") from None
    except (csv.Error, ValueError) as error:
        raise _damaged(folder, why(error)) from None
    except (KeyError, TypeError):
        raise _damaged(folder, f"expected the columns {', '.join(COLUMNS)} in every row") from None
    if [row["epoch"] for row in history] != list(range(1, len(history) + 1)) or not history:
        raise _damaged(folder, "expected a row for each epoch, starting at 1")
    return history


def restored_history(folder: RunFolder) -> list[dict[str, float]]:
    """The rows of history.csv; where it lacks epochs of the last checkpoint, it is rewritten from the checkpoint.

    Raises:
        CommandError: the file or the checkpoint is damaged.
    """
    history = read_history(folder)
    if folder.last.exists():
        kept = read_last(folder.last).history
        if len(kept) != len(history):
            write_history(folder, kept)
            return kept
    return history


def _damaged(folder: RunFolder, reason: str) -> CommandError:
    return CommandError(
        f"{folder.history} is damaged: {reason}; delete it, and `rsattn finetune --resume {folder.path}` restores it "
        f"from {folder.last.relative_to(folder.path)}"
    )


def is_finished(history: Sequence[dict[str, float]], options: Options) -> bool:
    """Whether all epochs are done, or early stopping has ended the training."""
    if not history:
        return False
    return len(history) >= options.epochs or 0 < options.patience <= len(history) - best_epoch(history)


def best_epoch(history: Sequence[dict[str, float]]) -> int:
    """The epoch with the lowest validation loss, the first of equal ones, counted from 1; NaN counts as infinite."""
    losses = [math.inf if math.isnan(row["val_loss"]) else row["val_loss"] for row in history]
    return losses.index(min(losses)) + 1


def tested_epoch(history: Sequence[dict[str, float]], options: Options) -> int:
    """The epoch whose weights are tested, counted from 1."""
    return best_epoch(history) if options.keep == "best" else len(history)


def refuse_unfinished(folder: RunFolder) -> None:
    """Raise where the run was never tested, or has had more epochs since.

    Raises:
        CommandError: the message says how to finish the run.
    """
    if reason := why_unfinished(folder):
        raise CommandError(reason)


def why_unfinished(folder: RunFolder) -> str | None:
    """Why metrics.json does not describe the weights of the run, and what to do; None where it does."""
    to_do = f"finish it with `rsattn finetune --resume {folder.path}`"
    if not folder.metrics.exists():
        reason = f"{folder.path} is not the folder of a finished run: it has no {folder.metrics.name}"
        return f"{reason}; {to_do}" if folder.config.exists() else reason
    tested = read_json(folder.metrics, {"epochs": int}, f"{to_do}, which tests it again")["epochs"]
    done = len(read_history(folder))
    if done in (0, tested):  # 0: a copy without checkpoints
        return None
    return f"the run in {folder.path} was tested after {counted(tested, 'epoch')} and has {done} now: {to_do}"


def how_to_go_on(folder: RunFolder) -> str:
    """A sentence on the finished epochs of an interrupted run, and how to resume it."""
    if not folder.config.exists():
        return "no epoch is finished, and nothing is kept; to try again: repeat the command"
    resume = f"to continue: rsattn finetune --resume {folder.path}"
    if folder.rates_tried.exists():  # history.csv lacks their epochs
        return resume
    done = len(read_history(folder))
    return f"{done} finished epoch{'s are' if done != 1 else ' is'} kept; {resume}"
