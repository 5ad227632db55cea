"""Test a finished run on images from elsewhere: another hospital, scanner or laboratory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..cli.command import CommandError, shown
from ..cli.images import read_image
from ..cli.outputs import locked, output_folder
from ..cli.terminal import print_once
from .card import external_tests, write_card
from .checking import Checked, check, over_images
from .contents import read_json, write_json
from .evaluation import OF_THE_TRAINING, metrics_of, tell, tested
from .folders import Found, ImageFile, find_images
from .grouping import group
from .history import refuse_unfinished
from .loading import TrainedModel, load
from .near_identical import Overlap, overlaps, perceptual_hash
from .one_class import NEEDS, without_other_classes
from .options import Options
from .report import write_report
from .run_folder import RunFolder
from .shift import brightness, shift
from .splits import Splits, described_data, root_of
from .splitting import read_split, write_split
from .wording import counted, some

MOST_MEASURED = 500  # images whose brightness is measured
SHOWN_DAMAGED = 3
KEPT = ("scores", "intervals", "calibration")
INSIDE: dict[str, Any] = {"scores": {"images": int}, "intervals": {"groups": int}, "calibration": {"ece": float}}


def score_outside(
    run: Path, images: Path, names: Mapping[str, str], groups: str | None, out: Path, console: Console
) -> Path:
    """Test a finished run on a folder with one folder of images per class, and write the results into `out`.

    `out` has the files of a run's folder that describe a test, and a report with the result beside that of the run's
    own test split.

    Args:
        run: the folder of a finished run.
        images: the folder. Its own splits, if it has any, are tested together.
        names: class folder -> class of the run; "" leaves the folder out. Others keep their name.
        groups: as in `Options`, of these images.
        out: a new folder.
        console: shows the progress and the result.

    Returns:
        The path of the report.

    Raises:
        CommandError: the run is not finished, the images cannot be used (the message says what was found), or `out`
            holds files already.
    """
    folder, trained = RunFolder(out), RunFolder(run)
    again = f"`rsattn finetune --resume {run}` tests the run again"
    refuse_unfinished(trained)
    inside = read_json(trained.metrics, {}, again)
    if lacking := [key for key in (*INSIDE, "thresholds", *OF_THE_TRAINING) if key not in inside]:
        raise CommandError(f"{trained.metrics} lacks {some(lacking)}, because an earlier version wrote it: {again}")
    if folder.metrics.exists():
        raise CommandError(f"{folder.metrics} exists already and is not overwritten: choose another --out")
    loaded = load(run)
    found = _found(images, names, loaded.classes, out, groups)
    checked = check(found, loaded.options.resize, console, loaded.options.window, groups)
    with output_folder(out), locked(out):
        options = replace(loaded.options, out=str(out), data=str(images), groups=groups)
        splits = _prepared(folder, trained, checked, options, console)
        splits.normalize = loaded.normalize
        measured = tested(folder, loaded, splits, options, inside["thresholds"], console)
        compared = "accuracy"
        if len(found.classes) == 1:
            measured = without_other_classes(measured)
            compared = f"sensitivity: {found.classes[0]}"
        content = metrics_of(options, loaded, measured, splits, inside)
        content["external"] = {
            "run": run.resolve().name,
            "groups": inside["intervals"]["groups"],
            "images": inside["scores"]["images"],
            "shift": shift(inside, content, loaded.classes),
            "pixels": _pixels(trained, splits, loaded),
        }
        write_json(folder.metrics, content)
        data = described_data(folder)
        tell(loaded.label, measured, "outside images", console)
        _tell_difference(next(row for row in content["external"]["shift"] if row["name"] == compared), console)
        report = write_report(out)
    _keep(trained, {"root": data["root"], "notes": data["notes"], **{key: measured[key] for key in KEPT}}, console)
    console.print(f"report: {shown(str(report))}", markup=False)
    return report


def _tell_difference(row: Mapping[str, Any], console: Console) -> None:
    """Print a row of `shift`; a class that the run's own test split lacks has no difference."""
    before, change = row["inside"]["value"], row["difference"]
    if before is None:
        return
    low, high = (100 * end for end in change["interval"])
    console.print(
        f"on its own test split: {before:.1%}; difference {100 * change['value']:+.1f} points (95 % interval "
        f"{low:+.1f} to {high:+.1f})"
    )


def _keep(trained: RunFolder, test: dict[str, Any], console: Console) -> None:
    """Add the result to external.json and the model card of the run, in place of an earlier one of the same folder."""
    try:
        with locked(trained.path):
            tests = {one["root"]: one for one in external_tests(trained)} | {test["root"]: test}
            write_json(trained.external, {"tests": [*tests.values()]})
            write_card(trained, console)
    except CommandError as error:
        console.print(f"note: the model card of the run does not get this result: {shown(str(error))}", markup=False)


def _found(images: Path, names: Mapping[str, str], classes: Sequence[str], out: Path, groups: str | None) -> Found:
    """The images with the classes of the run; all are of one split."""
    try:
        found = find_images(images, out, groups, one_class=True)
    except CommandError as error:
        if "class folders" in str(error):
            raise CommandError(f"{error}; `rsattn predict` classifies images without labels") from None
        raise
    if unknown := sorted(set(names) - set(found.classes)):
        raise CommandError(
            f"--map {unknown[0]}=...: {images} has no class folder {unknown[0]}; it has {some(found.classes)}"
        )
    if wrong := sorted({name for name in names.values() if name} - set(classes)):
        raise CommandError(f"--map ...={wrong[0]}: the classes of the run are {some(classes)}")
    called = {name: names.get(name, name) for name in found.classes}
    if unknown := [shown(name) for name, label in called.items() if label and label not in classes]:
        folders = "folder" if len(unknown) == 1 else "folders"
        raise CommandError(
            f"{images} has the class {folders} {some(unknown)}, and the classes of the run are "
            f"{some([shown(name) for name in classes])}: say which class each is with --map {unknown[0]}=CLASS, or "
            f"leave it out with --map {unknown[0]}="
        )
    kept = tuple(replace(image, label=called[image.label], split=None) for image in found.images if called[image.label])
    notes = [note for note in found.notes if "split" not in note]
    if left_out := [name for name, label in called.items() if not label]:
        number = sum(image.label in left_out for image in found.images)
        notes.append(f"left out {counted(number, 'image')} of {some([shown(name) for name in left_out])} (--map)")
    if renamed := [f"{shown(name)} is {shown(label)}" for name, label in called.items() if label and label != name]:
        notes.append(f"class folders with another name (--map): {some(renamed)}")
    present = {image.label for image in kept}
    if not present:
        raise CommandError(f"--map leaves out all images of {images}: keep those of one class at least")
    if len(present) == 1:
        notes.append(f"all images are of the class {shown(*present)}: {NEEDS}")
    return Found(found.root, tuple(name for name in classes if name in present), kept, tuple(notes))


def _prepared(folder: RunFolder, trained: RunFolder, checked: Checked, options: Options, console: Console) -> Splits:
    """Write data.json and split.csv of the outside images."""
    found = checked.found
    groups, meaning = group(found, options.groups, checked.hashes, checked.patients)
    classes = described_data(trained)["classes"]
    counts = Counter(image.label for image in found.images)
    alike, note = _seen_in_training(trained, checked, options, console)
    notes = [*found.notes, *([note] if note else [])]
    for line in notes:
        print_once(f"note: {line}", console)
    for image in checked.damaged[:SHOWN_DAMAGED]:
        print_once(f"left out: {image.why}", console)
    described = {
        "root": str(found.root.resolve()),
        "classes": classes,
        "notes": notes,
        "damaged": [asdict(image) for image in checked.damaged],
        "groups": meaning,
        "counts": {"test": {name: counts[name] for name in classes}},
        "near_identical": None if alike is None else [asdict(one) for one in alike],
        "group_counts": {"test": len(set(groups))},
    }
    write_json(folder.config, asdict(options))
    write_json(folder.data, described)
    write_split(folder.split, found, groups, ["test"] * len(found.images))
    return Splits(folder, options.image_size, options.resize, options.window)


def _seen_in_training(
    trained: RunFolder, checked: Checked, options: Options, console: Console
) -> tuple[list[Overlap] | None, str | None]:
    """The outside images that look the same as a training image, and a sentence on them; None where unknown."""
    try:
        root = root_of(trained, described_data(trained))
    except CommandError:
        return None, (
            "the training images are not there any more, so it is unknown whether outside images are among them"
        )
    rows = [row for row in read_split(trained.split) if row.split == "train"]
    found = Found(root, (), tuple(ImageFile(row.file, row.label, None) for row in rows), ())

    def hashed(path: Path) -> Any:
        with suppress(CommandError):
            return perceptual_hash(read_image(path, options.window)[0])

    hashes = over_images(found, hashed, "comparing with the training images", console)
    known = [(row.file, one) for row, one in zip(rows, hashes) if one is not None]
    if not known:
        return None, None
    files = [image.file for image in checked.found.images]
    alike = overlaps(
        [*files, *(file for file, _ in known)],
        ["test"] * len(files) + ["train"] * len(known),
        np.concatenate([checked.hashes, np.stack([one for _, one in known])]),
    )
    number = sum(one.images for one in alike or () if (one.split, one.other) == ("test", "train"))
    if not number:
        return alike, None
    look, they = ("looks", "it is") if number == 1 else ("look", "they are")
    return alike, (
        f"{number} of {len(files)} outside images {look} the same as a training image, so {they} no external test: the "
        "result is too good"
    )


def _pixels(trained: RunFolder, splits: Splits, loaded: TrainedModel) -> dict[str, Any]:
    """Brightness and contrast of the outside images, and of the run's test images where they are still there."""

    def measured(of: Splits) -> dict[str, float]:
        indices = of.indices("test")
        return brightness([of.store[i] for i in indices[:: -(-len(indices) // MOST_MEASURED)]])

    inside = None
    with suppress(CommandError):
        inside = measured(Splits(trained, loaded.image_size, loaded.options.resize, loaded.options.window))
    return {"inside": inside, "outside": measured(splits)}
