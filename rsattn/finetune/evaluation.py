"""Evaluate the trained model on the test split, and write the files for the report."""

from __future__ import annotations

import csv
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ..cli.command import shown
from ..plot import head_choices, norm_map
from ..recording import Record, record
from .calibration import fitted_temperature
from .card import write_card
from .cells import as_cell
from .checkpoint import damaged, keep_temperature, read_checkpoint
from .classifier import freeze
from .contents import csv_file, write_json
from .gates import described_gates
from .history import read_history, tested_epoch
from .loading import TrainedModel, load
from .measuring import measured
from .methods import paragraph
from .mistakes import as_written
from .optimizer import ignored
from .options import Options
from .references import with_references
from .report import accuracy_result, cautions, write_report
from .run_folder import NO_COPY, RunFolder
from .samples import draw_samples, most_confident_mistakes, some_of_each
from .splits import Splits, described_data
from .testing import logits_of
from .thresholds import chosen_thresholds
from .weights_writer import write_weights
from .wording import counted, some

PACKAGES = (
    *("rsattn", "torch", "lightning", "timm", "torchvision", "pytorch_pretrained_vit"),
    *("torchmetrics", "scikit-learn", "scipy", "numpy"),
)

OF_THE_TRAINING = ("tested_epoch", "epochs", "stopped", "seconds")  # see `RunFolder.metrics`


def evaluate(folder: RunFolder, options: Options, splits: Splits, console: Console) -> None:
    """Test the model, and write the files of `RunFolder` about the test and the tested model; print the result."""
    history = read_history(folder)
    _refuse_another_epoch(folder, tested_epoch(history, options))
    loaded = load(folder.tested)
    if loaded.classes != splits.classes:
        clause = f"its classes are {some(loaded.classes)}, and those of {folder.data.name} are {some(splits.classes)}"
        raise damaged(folder.tested, clause)
    splits.normalize = loaded.normalize
    loaded, thresholds = _calibrated(folder, loaded, options, splits, console)
    found = tested(folder, loaded, splits, options, thresholds, console)
    training = {
        "tested_epoch": tested_epoch(history, options),
        "epochs": len(history),
        "stopped": "finished" if len(history) >= options.epochs else "early stopping",
        "seconds": sum(row["seconds"] for row in history),
    }
    content = metrics_of(options, loaded, found, splits, training)
    content["methods"] = with_references(paragraph(options, described_data(folder), content))
    folder.external.unlink(missing_ok=True)  # of the weights before
    write_json(folder.metrics, content)
    write_weights(folder.weights, loaded)
    write_card(folder, console)
    tell(loaded.label, found, "test images", console)
    console.print(f"report: {shown(str(write_report(folder.path)))}", markup=False)


def _refuse_another_epoch(folder: RunFolder, epoch: int) -> None:
    """Raise where the tested checkpoint is not of the epoch that history.csv names."""
    found = len(read_checkpoint(folder.tested).history)
    if found != epoch:
        clause = f"it has the weights of epoch {found}, and those of epoch {epoch} are to be tested"
        raise damaged(folder.tested, clause, NO_COPY)


def tested(
    folder: RunFolder,
    loaded: TrainedModel,
    splits: Splits,
    options: Options,
    thresholds: Sequence[Mapping[str, Any]],
    console: Console,
) -> dict[str, Any]:
    """Test the model on the test split, and write roc_pr.json, predictions.csv, heads.json and the figures of images.

    Returns:
        As `measuring.measured`, without the curves.
    """
    indices = splits.indices("test")
    recording = record(loaded.model) if loaded.residual else nullcontext()
    with recording as recorded:
        logits = logits_of(loaded, splits.dataset("test", options), options, "testing", console)
    labels, groups = splits.labels_of(indices), [splits.rows[i].group for i in indices]
    found = measured(labels, logits, loaded.temperature, groups, splits.classes, thresholds)
    write_json(folder.roc_pr, found.pop("curves"))
    probabilities = loaded.probabilities(logits)
    _write_predictions(folder, splits, indices, probabilities)
    folder.figures.mkdir(exist_ok=True)
    if isinstance(recorded, Record):
        _write_heads(folder, recorded)
    _draw(folder, loaded, splits, dict(zip(indices, probabilities)))
    return found


def _draw(folder: RunFolder, loaded: TrainedModel, splits: Splits, probabilities: Mapping[int, Tensor]) -> None:
    """Draw images of each class, and the most confident mistakes."""
    name = "looks.png" if loaded.residual else "samples.png"
    some_images = some_of_each(splits, list(probabilities))
    draw_samples(loaded, splits, some_images, probabilities).savefig(folder.figures / name, dpi=110)
    (folder.figures / "mistakes.png").unlink(missing_ok=True)  # of an earlier test
    if mistakes := most_confident_mistakes(splits, probabilities):
        draw_samples(loaded, splits, mistakes, probabilities).savefig(folder.figures / "mistakes.png", dpi=110)


def tell(label: str, found: Mapping[str, Any], images: str, console: Console) -> None:
    """Print the result in a line, and warnings about a model that is not useful."""
    described = found["scores"]
    right, always = round(described["accuracy"] * described["images"]), described["majority"]
    correct = f"{label}: {right} of {described['images']} {images} correct, {described['accuracy']:.1%} "
    if described["macro"]["f1"] is None:
        more = f"(the sensitivity for {shown(always['class'])})"
    else:
        more = (
            f"(always answering {shown(always['class'])}: {always['accuracy']:.1%}); "
            f"macro F1 {described['macro']['f1']:.3f}"
        )
    console.print(correct + more, markup=False)
    for line in cautions(described, accuracy_result(described, found["intervals"])):
        console.print(f"warning: {line[:1].lower()}{line[1:]}", markup=False)


def _calibrated(
    folder: RunFolder, loaded: TrainedModel, options: Options, splits: Splits, console: Console
) -> tuple[TrainedModel, list[dict[str, Any]]]:
    """The model with the temperature that the validation split asks for, and the thresholds chosen there."""
    labels = splits.labels_of(splits.indices("val"))
    logits = logits_of(loaded, splits.dataset("val", options), options, "calibrating", console)
    temperature = fitted_temperature(logits, labels)
    keep_temperature(folder.tested, temperature)
    loaded = replace(loaded, temperature=temperature)
    return loaded, chosen_thresholds(labels, loaded.probabilities(logits), splits.classes)


def _write_predictions(folder: RunFolder, splits: Splits, indices: Sequence[int], probabilities: Tensor) -> None:
    with csv_file(folder.predictions) as file:
        writer = csv.writer(file)
        writer.writerow(["file", "group", "label", "predicted", *(f"p_{name}" for name in splits.classes)])
        for index, row in zip(indices, probabilities):
            image, predicted = splits.rows[index], splits.classes[int(row.argmax())]
            values = map(as_written, row.tolist())
            writer.writerow([*map(as_cell, (image.file, image.group, image.label, predicted)), *values])


def _write_heads(folder: RunFolder, recorded: Record) -> None:
    chosen = {}
    for name, block in recorded.blocks.items():
        heads = block.norms[0].shape[1]
        chosen[name] = torch.bincount(torch.cat(block.best_head).cpu(), minlength=heads).tolist()
    write_json(folder.heads, chosen)
    head_choices(recorded).savefig(folder.figures / "head_choices.png", dpi=110)
    norm_map(recorded).savefig(folder.figures / "norms.png", dpi=110)


def metrics_of(
    options: Options, loaded: TrainedModel, found: Mapping[str, Any], splits: Splits, training: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of metrics.json.

    Args:
        found: as `measuring.measured` returns it.
        training: `OF_THE_TRAINING` of the model.
    """
    if options.freeze:
        freeze(loaded.model, loaded.classifier)
    parameters = list(loaded.model.parameters())
    return {
        **found,
        "splits": splits.described(),
        "groups": splits.groups,
        "near_identical": _without_examples(splits.near_identical),
        **{name: training[name] for name in OF_THE_TRAINING},
        "model": {
            "name": options.model,
            "label": loaded.label,
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "without_residual": dict(loaded.skipped),
            "normalize": loaded.normalize.described(),
            "ignored": ignored(loaded.model, options),
        },
        "gates": described_gates(loaded.model, options, loaded.gates_at_start),
        "seed": options.seed,
        "split_seed": options.seed if options.split_seed is None else options.split_seed,
        "versions": _versions(),
        "device": _device(),
        "options": asdict(options),
    }


def _without_examples(overlaps: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    return overlaps and [{name: one[name] for name in ("split", "other", "images", "of")} for one in overlaps]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {counted(torch.get_num_threads(), 'thread')} ({platform.machine()})"
