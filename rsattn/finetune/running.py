"""A run, from a folder of images to a report."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path

from rich.console import Console

from ..cli.command import CommandError, finished_file, shown, why
from .checking import check
from .digits import write_digits
from .evaluation import evaluate
from .fetching import fetch
from .folders import find_images
from .grouping import group
from .history import how_to_go_on, is_finished, restored_history
from .needs import refuse_what_cannot_fit
from .options import Options, hint_at_gates, read_options, with_all_epochs
from .rates import with_best_rate
from .run_folder import NO_COPY, RunFolder
from .splits import Splits
from .splitting import split_images, write_split
from .training import train


def run(options: Options, console: Console) -> None:
    """Train, evaluate and report; an interrupted run with the same options and folder resumes.

    Under torchrun, or Lightning's own launcher, this is one of several processes; only the first one continues after
    training.

    Raises:
        CommandError: the run is not possible, or a file cannot be written; finished epochs are kept.
        KeyboardInterrupt: Ctrl-C; finished epochs are kept.
    """
    folder = RunFolder(Path(options.out))
    if _rank() == 0:
        begin(folder, options)
        if not folder.split.exists():
            if folder.last.exists():  # new splits could put its training images into the test split
                raise CommandError(f"{folder.path} has a checkpoint, but no {folder.split.name}: {NO_COPY}")
            prepare(folder, options, console)
    else:
        while not folder.split.exists():  # the first process is still checking the images
            time.sleep(0.1)
    splits = Splits(folder, options.image_size)
    options = with_all_epochs(options, len(splits.indices("train")))
    if not is_finished(restored_history(folder), options) or options.lr_auto:
        try:
            if options.lr_auto:
                options = with_best_rate(folder, options, splits, console)
            else:
                train(folder, options, splits, console)
        except OSError as error:
            raise CommandError(f"{_refused(folder, error)}{how_to_go_on(folder)}") from None
    if _rank() == 0:
        evaluate(folder, options, splits, console)


def begin(folder: RunFolder, options: Options) -> None:
    """Check that the folder is new, or that its run has the same options."""
    if folder.config.exists():
        earlier = read_options(folder)
        if differing := differences(earlier, options):
            hint = hint_at_gates(asdict(earlier), options)
            raise CommandError(
                f"{folder.path} holds a run with other options ({differing}); {hint}choose another --out, or resume "
                f"that run with `rsattn finetune --resume {folder.path}`"
            )
        return
    if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise CommandError(f"{folder.path} exists and is not the folder of a run: choose another --out")


def write_options(folder: RunFolder, options: Options) -> None:
    _write_json(folder.config, asdict(options))


def differences(earlier: Options, now: Options) -> str:
    """The options that differ, except those that do not change the result."""
    ignored = {"out", "workers", "devices", "strategy", "nodes"}
    names = [field.name for field in fields(Options) if field.name not in ignored]
    changed = [name for name in names if getattr(earlier, name) != getattr(now, name)]
    return ", ".join(f"{name} {getattr(earlier, name)!r}, now {getattr(now, name)!r}" for name in changed)


def prepare(folder: RunFolder, options: Options, console: Console) -> None:
    """Find, check, group and split the images; then write config.json, data.json and split.csv.

    Nothing is written before the images are checked, so that a wrong DATA leaves no folder behind.
    """
    listed = None if options.data is None else find_images(Path(options.data))
    refuse_what_cannot_fit(options)
    fetch(options)
    if listed is None:
        write_options(folder, options)
        write_digits(folder.digits)
        listed = find_images(folder.digits)
    found, damaged = check(listed, console)
    groups, meaning = group(found, options.groups, console)
    splits = split_images(found, groups, options.seed if options.split_seed is None else options.split_seed)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    for image in damaged:
        console.print(f"damaged, left out: {shown(image.file)} ({image.why})", markup=False)
    labels = [image.label for image in found.images]
    names = sorted(set(splits))
    counts = {split: Counter(label for label, p in zip(labels, splits) if p == split) for split in names}
    described = {
        "root": str(found.root.resolve()),
        "classes": list(found.classes),
        "notes": list(found.notes),
        "damaged": [{"file": image.file, "why": image.why} for image in damaged],
        "groups": meaning,
        "counts": {split: {name: count[name] for name in found.classes} for split, count in counts.items()},
        "group_counts": {split: len({g for g, p in zip(groups, splits) if p == split}) for split in counts},
    }
    write_options(folder, options)
    _write_json(folder.data, described)
    write_split(folder.split, found, groups, splits)


def _refused(folder: RunFolder, error: OSError) -> str:
    return f"cannot write to {error.filename or folder.path}: {why(error)}; "


def _write_json(path: Path, content: object) -> None:
    with finished_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
