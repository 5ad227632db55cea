"""Classify images with a trained model: a CSV file, a table, and drawings of where the model looks."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from ..cli.command import CommandError, finished_file, shown, writing
from ..cli.images import load_image
from ..cli.outputs import is_output, locked, names_in, output_folder, warning_inside
from ..cli.terminal import progress
from ..recording import record
from .cells import as_cell
from .folders import images_below
from .history import why_unfinished
from .loading import TrainedModel, load
from .overlays import Overlays
from .run_folder import RunFolder

BATCH = 16
SHOWN = 20  # images in the terminal's table, and lines on images that cannot be read


@dataclass(frozen=True)
class Prediction:
    """The row of one image: the probability of each class, or the reason why there are none."""

    file: str
    probabilities: tuple[float, ...] = ()
    error: str = ""


def predict(checkpoint: Path, images: Sequence[Path], out: Path, console: Console, overlays: bool = True) -> Path:
    """Classify images and write OUT/predictions.csv, and a drawing of each image with where the model looks.

    The CSV file has the columns file, predicted, probability, p_<class> for each class, and error; an image that
    cannot be read has only file and error. A name that a spreadsheet would read as a formula has a single quote in
    front, which `cells.from_cell` removes. OUT/<number>-<name>.png shows the image, for models with residual attention
    beside it the attention that its patches receive from the best head of the last block, and the Grad-CAM of the
    predicted class. After Ctrl-C, the file has the images finished so far.

    Args:
        checkpoint: as in `load`.
        images: image files, and folders to search for images.
        out: a folder; the output files must not exist in it.
        console: shows the progress and the table.
        overlays: whether to draw the images.

    Returns:
        The path of predictions.csv.

    Raises:
        CommandError: no image can be found or read, the checkpoint is invalid, an output file exists, `out` has
            files of the user among which nothing should be drawn, or another process works in it.
    """
    files = _files(images, out, console)
    with output_folder(out), locked(out):
        return _predict(checkpoint, files, out, console, overlays)


def _predict(checkpoint: Path, files: Sequence[Path], out: Path, console: Console, overlays: bool) -> Path:
    target = out / "predictions.csv"
    drawings = {file: out / f"{n:0{len(str(len(files)))}}-{file.stem[:40]}.png" for n, file in enumerate(files, 1)}
    _refuse_to_overwrite([target, *drawings.values()])
    loaded = load(checkpoint)
    if RunFolder(checkpoint).last.exists() and (reason := why_unfinished(RunFolder(checkpoint))):
        console.print(Text(f"warning: {shown(reason)}", style="yellow"))
    drawer = Overlays(loaded, drawings, console) if overlays else None
    if drawer is not None and not is_output(names_in(out)):
        raise CommandError(
            f"{out} has files that rsattn did not write, and drawings among them could be taken for data: choose "
            "another --out, or give --no-overlays"
        )
    done: list[Prediction] = []
    stopped: BaseException | None = None
    with finished_file(target) as partial:
        try:
            for batch in _batches(files, _batch_size(loaded), console):
                done += _predicted(batch, loaded, drawer)
        except BaseException as fault:
            if not any(one.probabilities for one in done):
                for drawn in drawings.values():  # they would be in the way of the same command
                    drawn.unlink(missing_ok=True)
                raise
            stopped = fault
        if not any(one.probabilities for one in done):
            raise CommandError(f"none of the {len(files)} images can be read; the first error: {done[0].error}")
        with writing(target):
            _write(partial, loaded.classes, done)
    _tell(done, len(files), loaded.classes, target, console)
    if stopped is not None:
        raise stopped
    return target


def _files(images: Sequence[Path], out: Path, console: Console) -> list[Path]:
    """Each image once, in the given order and sorted within folders; an `out` inside a folder is skipped."""
    files: dict[Path, Path] = {}
    for path in images:
        if path.is_dir():
            below, notes = images_below(path)
            own = out.resolve() if path.resolve() in out.resolve().parents else None
            found = [file for file in below if own not in file.resolve().parents]
            if not found:
                reasons = "; ".join([*notes, "give image files, or folders of them"])
                raise CommandError(f"there are no images in {path}: {reasons}")
            for note in notes:
                console.print(Text(f"note: {note}"))
            if warning := warning_inside(out, path):
                console.print(Text(shown(warning), style="yellow"))
        elif path.exists():
            found = [path]
        else:
            raise CommandError(f"there is no {path}: give image files, or folders of them")
        for file in found:
            files.setdefault(file.absolute(), file)
    return list(files.values())


def _refuse_to_overwrite(targets: Sequence[Path]) -> None:
    if there := next((target for target in targets if target.exists()), None):
        raise CommandError(f"{there} exists already and is not overwritten: choose another --out")


def _batch_size(loaded: TrainedModel) -> int:
    """The batch size; 1 where a batch shares its best head, so that a prediction depends on its image alone.

    It is at most that of the training, because Grad-CAM needs as much memory for an image as training does.
    """
    return 1 if loaded.residual and loaded.options.scope == "batch" else min(BATCH, loaded.options.batch_size)


def _batches(files: Sequence[Path], size: int, console: Console) -> Iterator[Sequence[Path]]:
    with progress(console) as bar:
        task = bar.add_task("classifying images", total=len(files))
        for start in range(0, len(files), size):
            batch = files[start : start + size]
            yield batch
            bar.advance(task, len(batch))


def _predicted(files: Sequence[Path], loaded: TrainedModel, drawer: Overlays | None) -> list[Prediction]:
    """The row of each file, in order; the images are drawn too."""
    errors, opened = {}, {}
    for file in files:
        try:
            opened[file], _ = load_image(file, loaded.options.window)
        except CommandError as error:
            errors[file] = str(error)
    rows = {}
    if opened:
        inputs = torch.stack([loaded.transform(image) for image in opened.values()])
        watching = record(loaded.model, received=True) if drawer is not None and loaded.residual else nullcontext()
        with torch.inference_mode(), watching as recorded:
            probabilities = loaded.probabilities(loaded.model(inputs.to(loaded.device))).cpu()
        if not probabilities.isfinite().all():
            raise CommandError(
                "the probabilities of the model are NaN, so its training diverged: choose another checkpoint"
            )
        rows = {file: Prediction(str(file), tuple(row.tolist())) for file, row in zip(opened, probabilities)}
        if drawer is not None:
            drawer.draw(opened, inputs, [_best(row) for row in rows.values()], recorded)
    return [rows[file] if file in rows else Prediction(str(file), error=errors[file]) for file in files]


def _best(row: Prediction) -> tuple[int, float]:
    """The most probable class, the first of equal ones, and its probability."""
    probability = max(row.probabilities)
    return row.probabilities.index(probability), probability


def _write(path: Path, classes: Sequence[str], rows: Sequence[Prediction]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "predicted", "probability", *(f"p_{name}" for name in classes), "error"])
        for row in rows:
            if row.error:
                writer.writerow([as_cell(row.file), "", "", *("" for _ in classes), as_cell(row.error)])
                continue
            index, probability = _best(row)
            numbers = [f"{value:.6g}" for value in (probability, *row.probabilities)]
            writer.writerow([as_cell(row.file), as_cell(classes[index]), *numbers, ""])


def _tell(rows: Sequence[Prediction], asked: int, classes: Sequence[str], target: Path, console: Console) -> None:
    """Print the first rows as a table, the unreadable images, and the path of the CSV file."""
    from rich.table import Table

    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    readable = [row for row in rows if row.probabilities]
    for row in readable[:SHOWN]:
        index, probability = _best(row)
        table.add_row(Text(shown(row.file)), Text(shown(classes[index])), f"{probability:.1%}")
    console.print(table)
    if len(readable) > SHOWN:
        console.print(f"the first {SHOWN} of {len(readable)} images")
    errors = [row.error for row in rows if row.error]
    for error in errors[:SHOWN]:
        console.print(Text(shown(f"skipped: {error}"), style="yellow"))
    if more := len(errors[SHOWN:]):
        console.print(Text(f"skipped: {more} more, which {target.name} lists", style="yellow"))
    if len(rows) < asked:
        console.print(f"stopped after {len(rows)} of {asked} images")
    console.print(Text(shown(f"predictions: {target}")))
