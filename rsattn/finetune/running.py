"""A run, from a folder of images to a report."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from ..cli.command import CommandError, finished_file, free_space, is_full, shown, why
from ..cli.outputs import LOCK, MARKER, locked, names_in, output_folder, warning_inside
from ..cli.terminal import print_once
from . import near_identical
from .checking import Checked, check
from .checksums import of_file, of_images
from .contents import write_json
from .continuing import refuse_changed_images, write_changes
from .digits import write_digits
from .evaluation import evaluate
from .fetching import fetch
from .fitting import refuse_what_cannot_fit
from .folders import Found, find_images
from .grouping import group
from .history import how_to_go_on, is_finished, restored_history
from .near_identical import Overlap
from .options import Options, differences, hint_at_gates, read_options, with_all_epochs
from .rates import with_best_rate
from .run_folder import NO_COPY, RunFolder
from .splits import Splits
from .splitting import split_fold, split_images, write_split
from .training import train
from .wording import counted

# Reasons of an `OSError` that are about a disk, where the error names no file.
OF_A_DISK = (errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
GONE = 10.0  # seconds without the lock of the first process, which a network file system may show late
SHOWN_DAMAGED = 3  # images; the report lists them all


def run(options: Options, console: Console, changed: Options | None = None) -> None:
    """Train, evaluate and report; an interrupted run with the same options and folder resumes.

    Under torchrun, or Lightning's own launcher, this is one of several processes; only the first one continues after
    training.

    Args:
        options: those of the run; a run that resumes has them in its config.json.
        console: shows the progress.
        changed: the options with which the run goes on, from continuing.py. Default: the same.

    Raises:
        CommandError: the run is not possible, another process works in its folder, or a file cannot be written;
            finished epochs are kept, and without any, nothing is.
        KeyboardInterrupt: Ctrl-C; finished epochs are kept.
    """
    folder = RunFolder(Path(options.out))
    if not _is_first_process():
        _wait_for_splits(folder, changed or options)
        _trained(folder, changed or options, console)
        return
    with _telling_how_to_go_on(folder), _working_in(folder, options), _naming_the_disk(folder):
        if not folder.split.exists():
            if folder.last.exists():  # new splits could put its training images into the test split
                raise CommandError(f"{folder.path} has a checkpoint, but no {folder.split.name}: {NO_COPY}")
            prepare(folder, options, console)
        else:
            refuse_changed_images(folder, options, changed or options, console)
        if changed is not None:
            write_changes(folder, options, changed)
            options = changed
        splits, options = _trained(folder, options, console)
        evaluate(folder, options, splits, console)


def _trained(folder: RunFolder, options: Options, console: Console) -> tuple[Splits, Options]:
    """Train what is left to train. Returns the images, and the options with the epochs and the rate of the training."""
    splits = Splits(folder, options.image_size, options.resize, options.window)
    options = with_all_epochs(options, len(splits.indices("train")))
    if options.lr_auto:
        return splits, with_best_rate(folder, options, splits, console)
    history = restored_history(folder)
    if not is_finished(history, options):
        train(folder, options, splits, console)
    elif _is_first_process():
        console.print(f"already trained {counted(len(history), 'epoch')}; the model is only tested")
    return splits, options


@contextmanager
def _telling_how_to_go_on(folder: RunFolder) -> Iterator[None]:
    """After an error of a disk, or Ctrl-C outside of training, add what is kept and how to continue."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(*(stop.args or [how_to_go_on(folder)])) from None
    except CommandError as error:
        fault = error.__cause__
        if is_full(fault) or (isinstance(fault, OSError) and folder.config.exists()):
            raise CommandError(f"{error}; {how_to_go_on(folder)}") from None
        raise


@contextmanager
def _naming_the_disk(folder: RunFolder) -> Iterator[None]:
    """Turn an error of a disk into a line that names the file or the full disk, before files are removed from it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if is_full(error):
            raise CommandError(_no_space(folder)) from error
        if isinstance(error, OSError) and (error.filename or error.errno in OF_A_DISK):
            raise CommandError(f"cannot write to {error.filename or folder.path}: {why(error)}") from error
        raise


def _no_space(folder: RunFolder) -> str:
    """Name the full disk: an error often names none, and it may be that of temporary files or of shared memory."""
    words = {
        folder.path: "",
        Path(tempfile.gettempdir()): ", the folder of temporary files",
        Path("/dev/shm"): ", the shared memory (in Docker, enlarge it with --shm-size)",
    }
    full = min(filter(Path.exists, words), key=lambda place: shutil.disk_usage(place).free)
    return f"cannot write to {full}{words[full]}: {os.strerror(errno.ENOSPC)}{free_space(full)}"


@contextmanager
def _working_in(folder: RunFolder, options: Options) -> Iterator[None]:
    """Begin or resume a run in its folder, and lock the folder; a new run that trains nothing leaves nothing.

    After Ctrl-C in training, the files stay, because the run can resume.
    """
    if folder.path.exists() and not folder.config.exists() and not _can_begin(folder):
        raise CommandError(f"{folder.path} exists and is not the folder of a run: choose another --out")
    with output_folder(folder.path), locked(folder.path):
        is_new = _begin(folder, options)
        try:
            yield
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt) and folder.split.exists()
            if is_new and folder.untrained and not interrupted:
                folder.clear()
            raise


def _can_begin(folder: RunFolder) -> bool:
    """Whether a path without config.json is an empty folder, or a run that was killed before it trained anything."""
    names = names_in(folder.path)
    return folder.path.is_dir() and (not names or (MARKER in names and folder.untrained))


def _begin(folder: RunFolder, options: Options) -> bool:
    """Whether the run is new, and not one with the same options that continues.

    Where a run with other options trained nothing, its files are removed.
    """
    if folder.config.exists():
        earlier = read_options(folder)
        differing = differences(earlier, options)
        if not differing:
            folder.remove_unfinished()
            return False
        if not folder.untrained:
            raise CommandError(
                f"{folder.path} holds a run with other options ({differing}); {_ways_on(folder, earlier, options)}"
            )
    folder.clear()
    return True


def _wait_for_splits(folder: RunFolder, options: Options) -> None:
    """Wait until the first process has checked the images and written the splits of a run with these options.

    Raises:
        CommandError: the first process ended before that. A killed one leaves its lock behind, and is waited for.
    """
    last_seen = None
    while True:
        with suppress(CommandError):  # no config.json yet
            # In this order: the first process writes config.json after it has removed the splits of another run.
            if not differences(read_options(folder), options) and folder.split.exists():
                return
        if (folder.path / LOCK).exists():
            last_seen = time.monotonic()
        elif last_seen is not None and time.monotonic() - last_seen > GONE:
            raise CommandError(
                f"the first process of the run in {folder.path} ended before it wrote {folder.split.name}: its output "
                "says why"
            )
        time.sleep(0.1)


def write_options(folder: RunFolder, options: Options) -> None:
    write_json(folder.config, asdict(options))


def _ways_on(folder: RunFolder, earlier: Options, now: Options) -> str:
    """How to continue an earlier run in `folder`."""
    resume = f"rsattn finetune --resume {folder.path}"
    more_epochs = replace(earlier, epochs=now.epochs, least_steps=now.least_steps)  # --epochs sets both
    if not differences(more_epochs, now) and now.epochs > earlier.epochs:
        return f"choose another --out, or add epochs to that run with `{resume} --epochs {now.epochs}`"
    if not differences(replace(earlier, data=now.data), now) and now.data is not None:
        return f"choose another --out, or, if the images of that run were moved, `{resume} --data {now.data}`"
    return f"{hint_at_gates(earlier, now)}choose another --out, or resume that run with `{resume}`"


def prepare(folder: RunFolder, options: Options, console: Console) -> None:
    """Find, check, group and split the images; then write config.json, data.json and split.csv.

    Nothing is written before the images are checked, so that a wrong DATA leaves no folder behind.
    """
    listed = None if options.data is None else find_images(Path(options.data), folder.path, options.groups)
    refuse_what_cannot_fit(options)
    fetch(options)
    if listed is None:
        write_options(folder, options)
        write_digits(folder.digits)
        listed = find_images(folder.digits)
    elif warning := warning_inside(folder.path, listed.root):
        console.print(shown(warning), markup=False, style="yellow")
    checked = check(listed, options.resize, console, options.window, options.groups)
    found = checked.found
    groups, meaning = group(found, options.groups, checked.hashes, checked.patients)
    splits = _splits(found, groups, options)
    for note in found.notes:
        print_once(f"note: {note}", console)
    for image in checked.damaged[:SHOWN_DAMAGED]:
        print_once(f"left out: {image.why}", console)
    if more := len(checked.damaged[SHOWN_DAMAGED:]):
        print_once(f"left out: {more} more, which the report lists", console)
    shared = None if options.data is None else _overlaps(checked, splits, console)  # each digit was written once
    alike = near_identical.warning(shared or [], {image.split for image in found.images}, options.groups)
    if alike:
        print_once(f"warning: {alike}", console)
    labels = [image.label for image in found.images]
    names = sorted(set(splits))
    counts = {split: Counter(label for label, p in zip(labels, splits) if p == split) for split in names}
    described = {
        "root": str(found.root.resolve()),
        "classes": list(found.classes),
        "notes": [alike, *found.notes] if alike else list(found.notes),
        "damaged": [{"file": image.file, "why": image.why} for image in checked.damaged],
        "groups": meaning,
        "counts": {split: {name: count[name] for name in found.classes} for split, count in counts.items()},
        "near_identical": None if shared is None else [asdict(one) for one in shared],
        "drawn": sorted({p for image, p in zip(found.images, splits) if p not in ("left-out", image.split or "train")}),
        "group_counts": {split: len({g for g, p in zip(groups, splits) if p == split}) for split in counts},
    }
    write_options(folder, options)
    # Other processes wait for split.csv, so data.json has to be there before.
    with finished_file(folder.split) as partial:
        write_split(partial, found, groups, splits)
        images = zip(checked.checksums, (image.file for image in found.images))
        checksums = {"split": of_file(partial), "images": of_images(images)}
        write_json(folder.data, {**described, "checksums": checksums})


def _splits(found: Found, groups: list[str], options: Options) -> list[str]:
    if options.folds is not None and options.fold is not None:
        return split_fold(found, groups, options.folds, options.fold, options.split_seed or 0, options.seed)
    return split_images(found, groups, options.seed if options.split_seed is None else options.split_seed)


def _overlaps(checked: Checked, splits: list[str], console: Console) -> list[Overlap] | None:
    """Near-identical images in different splits; None where there are too many images to compare."""
    shared = near_identical.overlaps([image.file for image in checked.found.images], splits, checked.hashes)
    if shared is None:
        print_once("note: too many images to look for near-identical ones in different splits", console)
    return shared


def _is_first_process() -> bool:
    """Whether this process is the first of the run, from torchrun, Lightning's launcher or Slurm, in this order."""
    # Lightning's launcher numbers the machines and the processes of each machine, which inherit Slurm's number.
    for names in (("RANK",), ("NODE_RANK", "LOCAL_RANK"), ("SLURM_PROCID",)):
        if numbers := [int(os.environ[name]) for name in names if name in os.environ]:
            return not any(numbers)
    return True
