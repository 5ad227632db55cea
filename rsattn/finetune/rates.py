"""`--lr auto`: try three learning rates, and choose the one with the lowest validation loss."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from ..cli.command import CommandError
from .contents import read_json, write_json
from .history import is_finished, read_history, restored_history, tested_epoch
from .initial_features import InitialFeatures
from .options import RATE_FACTORS, Options
from .run_folder import RunFolder
from .splits import Splits
from .training import train

ROW = {"rate": float, "val_loss": float, "val_accuracy": float}


def with_best_rate(folder: RunFolder, options: Options, splits: Splits, console: Console) -> Options:
    """Train with three rates around `options.learning_rate`, and keep the best one.

    The best rate has the lowest validation loss in the epoch that would be tested. The three trainings are in the
    folder rates/ until all are finished; an interrupted one resumes.

    Returns:
        The options with the chosen rate, whose training is finished in `folder`.

    Raises:
        CommandError: several processes or devices are in use.
        KeyboardInterrupt: Ctrl-C; the message says how to continue.
    """
    if not folder.rates.exists():
        several = options.devices == "auto" and torch.cuda.device_count() > 1
        if several or "WORLD_SIZE" in os.environ or options.devices not in ("auto", "1") or options.nodes > 1:
            raise CommandError("--lr auto trains on one device: give --devices 1, or a rate such as --lr 1e-4")
        _try(folder, options, splits, console)
    return replace(options, learning_rate=chosen_rate(folder))


def chosen_rate(folder: RunFolder) -> float:
    """The learning rate that a run with --lr auto chose.

    Raises:
        CommandError: rates.json is damaged.
    """
    again = "delete it to try the three rates again"
    chosen: float = read_json(folder.rates, {"tried": [ROW], "chosen": float}, again)["chosen"]
    return chosen


def _try(folder: RunFolder, options: Options, splits: Splits, console: Console) -> None:
    tried: list[dict[str, float]] = []
    features_of = InitialFeatures(options, splits, console)
    for number, factor in enumerate(RATE_FACTORS, 1):
        rate = float(f"{options.learning_rate * factor:.2g}")
        own = RunFolder(folder.rates_tried / f"{rate:g}")
        own.path.mkdir(parents=True, exist_ok=True)
        trained = replace(options, learning_rate=rate)
        if not is_finished(restored_history(own), trained):
            console.print(f"learning rate {number} of {len(RATE_FACTORS)}: {rate:g}", markup=False)
            try:
                train(own, trained, splits, console, features_of, announced=bool(tried))
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"to continue: rsattn finetune --resume {folder.path}") from None
        history = read_history(own)
        row = history[tested_epoch(history, trained) - 1]
        tried.append({"rate": rate, **{name: row[name] for name in ("val_loss", "val_accuracy")}})
    chosen = min(tried, key=lambda one: one["val_loss"])["rate"]
    best = RunFolder(folder.rates_tried / f"{chosen:g}")
    for source in (best.checkpoints, best.logs, best.history):
        _copy(source, folder.path / source.name)
    write_json(folder.rates, {"tried": tried, "chosen": chosen})
    shutil.rmtree(folder.rates_tried)
    losses = ", ".join(f"{one['rate']:g}: {one['val_loss']:.3f}" for one in tried)
    console.print(f"chosen learning rate: {chosen:g}, by validation loss ({losses})", markup=False)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)
