"""The folder of a run with made-up numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rsattn.finetune.measuring import measured
from rsattn.finetune.options import Options
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.thresholds import chosen_thresholds

CLASSES = ("glioma", "meningioma", "no tumour", "pituitary")
TESTED_EPOCH = 3


def fabricate(
    run: Path,
    *,
    residual: bool = True,
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
    per_class: int = 30,
    per_group: int = 1,
    right: float = 0.9,
    never: Sequence[str] = (),
    absent: Sequence[str] = (),
    left_out: int = 0,
    epochs: int = 5,
    stopped: str = "finished",
    notes: Sequence[str] = (),
    damaged: Mapping[str, str] | None = None,
    gates: Sequence[float] = (),
    **options: Any,
) -> None:
    """Write all files of `RunFolder` but the report and what it draws; checkpoints are empty.

    Args:
        residual: a "resvit", else a "vit".
        classes: names.
        seed: of the numbers, and the run's.
        per_class: test images of every class but the `absent`.
        per_group: images in a group; of 1, the run knows no groups.
        right: the share of predictions that are right, about.
        never: classes that are never predicted.
        left_out: images of the first class that were left out of training.
        epochs: done, at least 3; the third was best.
        stopped: as in metrics.json.
        notes, damaged: of data.json; damaged is {file: why}.
        gates: what the gates became, the same number in all channels of a block; none where empty.
        options: other fields of `Options`.
    """
    folder = RunFolder(run)
    folder.checkpoints.mkdir(parents=True)
    folder.best.touch()
    folder.last.touch()
    asked = _options(run, residual, seed, grouped=per_group > 1, **options)
    tested = [name for name in classes if name not in absent]
    images = [(f"{name}/{i}.png", f"{name}-{i // per_group}", name) for name in tested for i in range(per_class)]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([classes.index(name) for _, _, name in images])
    favored = torch.where(
        torch.rand(len(labels), generator=generator) < right,
        labels,
        torch.randint(len(classes), labels.shape, generator=generator),
    )
    logits = 4.0 * torch.nn.functional.one_hot(favored, len(classes))
    logits[:, [classes.index(name) for name in never]] = -10.0
    logits = logits + torch.randn(len(labels), len(classes), generator=generator)
    probabilities = logits.softmax(1)
    chosen = chosen_thresholds(labels, probabilities, classes)
    found = measured(labels, logits, 1.0, [group for _, group, _ in images], classes, chosen)
    _json(folder.roc_pr, found.pop("curves"))
    _json(folder.config, asdict(asked))
    _json(folder.data, _data(run, classes, tested, per_class, per_group, left_out, notes, damaged or {}))
    _split(folder, classes, images, left_out)
    _predictions(folder, classes, images, probabilities)
    history = [_epoch(epoch) for epoch in range(1, epochs + 1)]
    _csv(folder.history, list(history[0]), [list(row.values()) for row in history])
    metrics = {
        **found,
        "tested_epoch": TESTED_EPOCH,
        "epochs": epochs,
        "stopped": stopped,
        "model": {
            "name": asked.model,
            "label": "resvit (induced, sample, tile)" if residual else "vit",
            "parameters": 5_500_000,
            "trained_parameters": 5_400_000,
        },
        "gates": _gates(gates, asked) if gates else None,
        "seed": seed,
        "split_seed": seed if asked.split_seed is None else asked.split_seed,
        "seconds": 12.5 * epochs,
        "versions": {"python": "3.12.1", "rsattn": "0.9.0", "torch": "2.9.0"},
        "device": "CPU, 2 threads (x86_64)",
        "options": asdict(asked),
    }
    _json(folder.metrics, metrics)
    if residual:
        _json(folder.heads, {f"blocks.{block}.attn": [per_class * len(tested), 0, 0] for block in range(2)})
    for name in ("head_choices", "norms", "looks") if residual else ("samples",):
        _image(folder.figures / f"{name}.png")


def _gates(became: Sequence[float], asked: Options) -> dict[str, Any]:
    blocks = [
        {"name": f"blocks.{i}.attn", "start": 0.0, "rms": abs(gate), "mean": gate, "largest": abs(gate)}
        for i, gate in enumerate(became)
    ]
    return {"init_values": 0.0, "rate": None if asked.freeze else 5e-3, "blocks": blocks}


def _options(run: Path, residual: bool, seed: int, grouped: bool, **others: Any) -> Options:
    values = {
        "out": str(run),
        "data": str(run.parent / "images"),
        "model": "resvit" if residual else "vit",
        "patch": False,
        "norm": "induced",
        "scope": "sample",
        "merge": "tile",
        "full_width": False,
        "size": "tiny",
        "weights": "none",
        "image_size": 32,
        "epochs": 30,
        "patience": 8,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "augment": "mirror",
        "seed": seed,
        "split_seed": None,
        "freeze": False,
        "class_weights": False,
        "groups": "patients.csv" if grouped else None,
        "workers": 0,
        "precision": "32-true",
        "devices": "auto",
        "strategy": "auto",
        "nodes": 1,
    }
    return Options(**{**values, **others})


def _data(
    run: Path,
    classes: Sequence[str],
    tested: Sequence[str],
    per_class: int,
    per_group: int,
    left_out: int,
    notes: Sequence[str],
    damaged: Mapping[str, str],
) -> dict[str, Any]:
    counts = {
        "test": {name: per_class if name in tested else 0 for name in classes},
        "train": dict.fromkeys(classes, 4 * per_class),
        "val": dict.fromkeys(classes, per_class),
    }
    if left_out:
        counts = {"left-out": {name: left_out if name == classes[0] else 0 for name in classes}, **counts}
    groups = {split: sum(-(-number // per_group) for number in count.values()) for split, count in counts.items()}
    return {
        "root": str(run.parent / "images"),
        "classes": list(classes),
        "notes": list(notes),
        "damaged": [{"file": file, "why": why} for file, why in damaged.items()],
        "groups": "each image is its own group" if per_group == 1 else "the groups are those of patients.csv",
        "counts": counts,
        "group_counts": groups,
    }


def _split(folder: RunFolder, classes: Sequence[str], images: Sequence[tuple[str, str, str]], left_out: int) -> None:
    """The tested and the left-out images; one image of each class for the other splits."""
    rows = [[file, label, "test", group] for file, group, label in images]
    rows += [[f"{name}/{split}.png", name, split, f"{name}-{split}"] for split in ("train", "val") for name in classes]
    rows += [[f"{classes[0]}/l{i}.png", classes[0], "left-out", f"{classes[0]}-0"] for i in range(left_out)]
    _csv(folder.split, ["file", "label", "split", "group"], rows)


def _predictions(
    folder: RunFolder, classes: Sequence[str], images: Sequence[tuple[str, str, str]], probabilities: torch.Tensor
) -> None:
    rows = [
        [file, group, label, classes[int(row.argmax())], *(f"{value:.6g}" for value in row.tolist())]
        for (file, group, label), row in zip(images, probabilities)
    ]
    _csv(folder.predictions, ["file", "group", "label", "predicted", *(f"p_{name}" for name in classes)], rows)


def _epoch(epoch: int) -> dict[str, float]:
    return {
        "epoch": epoch,
        "train_loss": 1.4 / epoch,
        "train_accuracy": 1.0 - 0.6 / epoch,
        "val_loss": 0.5 + 0.1 * abs(epoch - TESTED_EPOCH),
        "val_accuracy": 0.9 - 0.05 * abs(epoch - TESTED_EPOCH),
        "val_f1": 0.88 - 0.05 * abs(epoch - TESTED_EPOCH),
        "learning_rate": 1e-3,
        "seconds": 12.5,
    }


def _image(path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 6), "teal").save(path)


def _json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
