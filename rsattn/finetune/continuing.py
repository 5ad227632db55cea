"""What may change when a run resumes: its number of epochs, once it is finished, and the folder of its images.

The images themselves may not.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from ..cli.command import CommandError, shown, why
from .checking import over_images
from .checksums import of_file, of_images
from .contents import write_json
from .folders import Found, ImageFile, find_images
from .history import is_finished, restored_history
from .options import Options, with_all_epochs
from .rates import chosen_rate
from .run_folder import RunFolder
from .splits import described_data, root_of, rows_of
from .splitting import read_split
from .wording import counted


def with_more_epochs(folder: RunFolder, options: Options, epochs: int) -> Options:
    """The options of a run, with more epochs if it is finished.

    The added epochs are a new cycle: the learning rate rises and falls again, and AdamW's moments start from zero. So
    a run with these options from the start gives the same weights. Early stopping does not apply to them.

    Args:
        epochs: the number of epochs, with those that are finished.

    Raises:
        CommandError: the run has not begun or is not finished, early stopping ended it, or it has that many epochs
            already.
    """
    _refuse_unbegun(folder)
    planned = with_all_epochs(options, sum(row.split == "train" for row in read_split(folder.split)))
    if epochs == planned.epochs:
        return options
    history = restored_history(folder)
    done = len(history)
    if not is_finished(history, planned):
        raise CommandError(
            f"the run in {folder.path} has finished {done} of {planned.epochs} epochs: complete it first with "
            f"`rsattn finetune --resume {folder.path}`, then give more epochs"
        )
    if epochs < done:
        raise CommandError(
            f"--epochs {epochs}: the run in {folder.path} has {counted(done, 'epoch')} already; give a larger number"
        )
    if done < planned.epochs:
        raise CommandError(
            f"early stopping ended the run in {folder.path} after {counted(done, 'epoch')}: start a new run from its "
            f"weights with --weights {folder.path}"
        )
    rate = chosen_rate(folder) if options.lr_auto else options.learning_rate
    return replace(
        options,
        epochs=epochs,
        least_steps=0,
        restarts=(*(options.restarts or ()), done),
        learning_rate=rate,
        lr_auto=False,
        patience=0,  # the validation loss rises at first in a new cycle, which would end it
    )


def with_moved_data(folder: RunFolder, options: Options, data: Path) -> Options:
    """The options of a run whose images are in another folder now.

    Raises:
        CommandError: the run has not begun, or `data` lacks images of it, or has them in folders of other classes.
    """
    _refuse_unbegun(folder)
    if options.data is None:
        raise CommandError(f"the run in {folder.path} is on the digits of scikit-learn, which need no --data")
    found = find_images(data, groups=options.groups)
    labels = {image.file: image.label for image in found.images}
    rows = read_split(folder.split)
    if lacking := [row.file for row in rows if labels.get(row.file) != row.label]:
        raise CommandError(
            f"{data} lacks {len(lacking)} of the {counted(len(rows), 'image')} of the run in {folder.path}, such as "
            f"{shown(lacking[0])}: give the folder that the run's data was moved to, with the same folders in it"
        )
    return replace(options, data=str(data))


def refuse_changed_images(folder: RunFolder, earlier: Options, now: Options, console: Console) -> None:
    """Raise where the images are not those that were split, by their SHA-256, which the report states.

    Args:
        earlier, now: the options of the run before and after `with_moved_data`.
        console: shows the progress bar.

    Raises:
        CommandError: an image differs or cannot be read, or split.csv is damaged.
    """
    described = described_data(folder)
    checksum = described.get("checksums", {}).get("images")
    if checksum is None:  # a run of an earlier version
        return
    root = _root(now) if _moved(earlier, now) else root_of(folder, described)
    files = [row.file for row in rows_of(folder, described)]
    found = Found(root, (), tuple(ImageFile(file, "", None) for file in files), ())
    if of_images(zip(over_images(found, _checksum, "looking for changed images", console), files)) != checksum:
        raise CommandError(
            f"the images in {root} have changed since the run in {folder.path} split them (their SHA-256 differs): "
            "restore them from a copy, or start a new run"
        )


def _checksum(path: Path) -> str:
    try:
        return of_file(path)
    except OSError as error:
        raise CommandError(f"cannot read the image {path}: {why(error)}") from None


def _moved(earlier: Options, now: Options) -> bool:
    return now.data is not None and now.data != earlier.data


def _root(options: Options) -> Path:
    assert options.data is not None
    return find_images(Path(options.data), groups=options.groups).root


def write_changes(folder: RunFolder, earlier: Options, now: Options) -> None:
    """Rewrite data.json and config.json for options that the functions above returned."""
    if _moved(earlier, now):
        write_json(folder.data, {**described_data(folder), "root": str(_root(now).resolve())})
    write_json(folder.config, asdict(now))


def _refuse_unbegun(folder: RunFolder) -> None:
    if not folder.split.exists():
        raise CommandError(
            f"the run in {folder.path} stopped before its images were split, so nothing of it can be changed: start a "
            "new run"
        )
