"""The paper's experiment as a grid of runs: each trains and tests one model, and leaves one JSON file."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import TensorDataset
from torchmetrics.functional.classification import multiclass_confusion_matrix

from rsattn.finetune.arguments import GATE_RATE
from rsattn.finetune.dataset import Pictures
from rsattn.finetune.features import can_be_kept, features
from rsattn.finetune.gates import sizes_of_gates
from rsattn.finetune.history import best_epoch, read_history
from rsattn.finetune.loading import load
from rsattn.finetune.models import Built
from rsattn.finetune.options import Options
from rsattn.finetune.parts import Parts
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.splitting import SplitRow
from rsattn.finetune.testing import probabilities_of
from rsattn.finetune.training import train

from .ablation import Which, add_other_head
from .sets import PictureSet, divided

RESULTS = Path(__file__).parent / "results"
SMALL = "vit_small_patch14_dinov2"


@dataclass(frozen=True)
class Variant:
    """One attention: the plain one, or a residual one with what it adds.

    Attributes:
        init_values: as in `rsattn.patch`; None is the paper's residual, without a gate.
        gate_rate: learning rate of the gates.
    """

    name: str
    patched: bool = True
    norm: str = "induced"
    merge: str = "tile"
    which: Which = "best"
    init_values: float | None = None
    gate_rate: float | None = None


PLAIN = Variant("plain", patched=False)
INDUCED = Variant("induced, tile")
NORMS = (Variant("entrywise, tile", norm="entrywise"), Variant("confidence, tile", norm="confidence"))
SLOT = Variant("induced, slot", merge="slot")
ABLATIONS = (
    Variant("random head", which="random"),
    Variant("worst head", which="worst"),
    Variant("head 0", which="fixed"),
    Variant("all heads averaged", which="mean"),
)
ALL = (PLAIN, INDUCED, *NORMS, SLOT, *ABLATIONS)
UNGATED = Variant("no gate")
# The gate's learning rate: that of all other parameters, more, and what `rsattn finetune` takes.
RATES = (1e-4, 1e-3, GATE_RATE, 2e-2)
GATES = tuple(Variant(f"gate from 0, rate {rate:g}", init_values=0.0, gate_rate=rate) for rate in RATES)
GATED = GATES[RATES.index(GATE_RATE)]


@dataclass(frozen=True)
class Study:
    """One training recipe: what `ALL` the variants of one table share.

    Attributes:
        name: of the table.
        model: as `rsattn finetune --model`.
        every: train and test with every so-manieth picture.
        settings: of `Options`, where they differ from `common`.
    """

    name: str
    model: str
    epochs: int
    learning_rate: float
    settings: tuple[tuple[str, Any], ...] = ()
    every: int = 1


@dataclass(frozen=True)
class Run:
    """One cell of the grid."""

    set: str
    split: str
    study: Study
    variant: Variant
    seed: int

    @property
    def file(self) -> Path:
        words = (self.set, self.split, self.study.name, self.variant.name, f"seed {self.seed}")
        name = "_".join(words).translate({ord(","): None, ord("'"): None, ord(" "): "-"})
        return RESULTS / self.set / f"{name}.json"


KEPT = (("freeze", True), ("augment", "none"), ("weights", "pretrained"))
FROZEN = {
    "mri": Study("frozen", SMALL, 30, 1e-3, KEPT),
    "blood": Study("frozen", SMALL, 15, 1e-3, (*KEPT, ("batch_size", 64))),
}
TUNED = Study("fine-tuned", SMALL, 8, 1e-4, (("weights", "pretrained"),))
SCRATCH = Study("from scratch", SMALL, 12, 5e-4)
AUTHORS = Study("authors' setting", "vit", 4, 1e-4, (("size", "base"), ("image_size", 128)))
NETS = (
    Study("resnet18", "resnet18", 12, 1e-3, (("image_size", 128),)),
    Study("alexnet", "alexnet", 12, 1e-4, (("image_size", 128),)),
    Study("cnn", "cnn", 12, 1e-3, (("image_size", 128),)),
)
FULL_WIDTH = Variant("authors' residual", norm="entrywise")


def two_cores() -> Iterator[Run]:
    """What two cores do in some two hours: five seeds where a run is cheap, fewer where it is not."""
    yield from _grid("mri", ("leak-free", "authors"), FROZEN["mri"], ALL, range(5))
    yield from _grid("mri", ("leak-free",), TUNED, ALL, range(4))
    yield from _grid("blood", ("leak-free",), replace(FROZEN["blood"], every=9), ALL, range(5))
    for net in NETS:
        yield from _grid("mri", ("leak-free",), net, (PLAIN,), range(3))
    yield from _grid("mri", ("authors",), replace(AUTHORS, epochs=1), (PLAIN, FULL_WIDTH), range(1))
    yield from _grid("mri", ("leak-free",), SCRATCH, (PLAIN, INDUCED), range(3))
    for net in NETS:
        yield from _grid("blood", ("leak-free",), replace(net, every=18), (PLAIN,), range(1))
    yield from _grid("blood", ("leak-free",), replace(TUNED, epochs=4, every=18), (PLAIN, INDUCED), range(1))
    yield from _grid("mri", ("leak-free",), _of_the_gate(FROZEN["mri"]), (PLAIN, UNGATED, GATED), range(5))
    yield from _grid("mri", ("leak-free",), _of_the_gate(TUNED), (PLAIN, UNGATED, *GATES), range(4))
    blood = replace(_of_the_gate(FROZEN["blood"]), every=9)
    yield from _grid("blood", ("leak-free",), blood, (PLAIN, UNGATED, GATED), range(5))


def everything() -> Iterator[Run]:
    """The whole grid, five seeds everywhere, all pictures, more epochs."""
    for study_set in ("mri", "blood"):
        yield from _grid(study_set, ("leak-free", "authors"), FROZEN[study_set], ALL, range(5))
        for study in (TUNED, SCRATCH):
            yield from _grid(study_set, ("leak-free", "authors"), replace(study, epochs=30), ALL, range(5))
        authors = replace(AUTHORS, epochs=20)  # their number
        yield from _grid(study_set, ("leak-free", "authors"), authors, (PLAIN, FULL_WIDTH), range(5))
        for net in NETS:
            yield from _grid(study_set, ("leak-free", "authors"), replace(net, epochs=30), (PLAIN,), range(5))


def _of_the_gate(study: Study) -> Study:
    """A table of its own, whose rows were all trained on one machine."""
    return replace(study, name=f"the gate, {study.name}")


def _grid(
    name: str, splits: tuple[str, ...], study: Study, variants: tuple[Variant, ...], seeds: range
) -> Iterator[Run]:
    for seed in seeds:
        for split in splits:
            for variant in variants:
                yield Run(name, split, study, variant, seed)


def options_of(run: Run, weights: Path, out: Path) -> Options:
    """A run of the grid as `rsattn finetune` would be asked for it."""
    study, variant = run.study, run.variant
    authors = variant is FULL_WIDTH
    options = Options(
        out=str(out),
        data=run.set,
        model="resvit" if study.model == "vit" and variant.patched else study.model,
        patch=variant.patched and study.model == SMALL,
        norm=variant.norm,  # type: ignore[arg-type]
        scope="batch" if authors else "sample",
        merge=variant.merge,  # type: ignore[arg-type]
        full_width=authors,
        size="base",
        weights="none",
        image_size=112,  # with 14-pixel patches as many tokens as the paper's 128 with 16-pixel ones, 65
        epochs=study.epochs,
        patience=0,
        batch_size=16,
        learning_rate=study.learning_rate,
        weight_decay=0.05,
        augment="mirror",
        seed=run.seed,
        split_seed=None,
        freeze=False,
        class_weights=False,
        groups=None,
        workers=0,
        precision="bf16-mixed",
        devices="1",
        strategy="auto",
        nodes=1,
        init_values=variant.init_values,
        gate_rate=variant.gate_rate,
    )
    options = replace(options, **dict(study.settings))
    return replace(options, weights=str(weights)) if options.weights == "pretrained" else options


def do(run: Run, pictures: PictureSet, weights: Path, work: Path, console: Console) -> None:
    """Train and test one cell; its JSON file appears when all is done."""
    started = time.monotonic()
    folder = RunFolder(work / "run" / run.file.stem)
    options = options_of(run, weights, folder.path)
    rows = divided(pictures, run.split, run.seed)
    write_parts(folder, pictures, rows)
    parts = Parts(folder, options.image_size)
    tested = parts.indices("test")
    # One generator, so that the heads drawn in testing are not those drawn in training.
    adjust = partial(add_other_head, which=run.variant.which, generator=torch.Generator().manual_seed(run.seed))
    if can_be_kept(options):
        kept = Features(work / "features" / f"{run.set}-{run.variant.name}.pt", parts, options, console)
        train(folder, options, parts, console, kept.of_part, adjust)
        loaded = load(folder.best, adjust)
        classifier = loaded.model.get_submodule(loaded.classifier)
        probabilities = classifier(kept.of(tested).tensors[0].to(loaded.device)).detach().cpu().softmax(1)
    else:
        train(folder, options, parts, console, adjust=adjust)
        loaded = load(folder.best, adjust)
        parts.normalise = loaded.normalise
        probabilities = probabilities_of(loaded, parts, options, console)
    labels = torch.tensor([parts.labels[i] for i in tested])
    confusion = multiclass_confusion_matrix(probabilities, labels, len(parts.classes))
    history = read_history(folder)
    content = {
        "run": {**asdict(run), "options": {**asdict(options), "out": "", "weights": Path(options.weights).name}},
        "confusion": confusion.tolist(),
        "best_epoch": best_epoch(history),
        "val_loss": min(row["val_loss"] for row in history),
        "gates": list(sizes_of_gates(loaded.model).values()),
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "pictures": {part: len(parts.indices(part)) for part in ("train", "val", "test", "left-out")},
        "groups": {part: len({rows[i].group for i in parts.indices(part)}) for part in ("train", "val", "test")},
        "seconds": time.monotonic() - started,
        "tested": {
            "picture": tested,
            "group": [parts.rows[i].group for i in tested],
            "correct": (probabilities.argmax(1) == labels).int().tolist(),
        },
        "machine": _machine(),
    }
    run.file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = run.file.with_suffix(".partial")
    unfinished.write_text(json.dumps(content) + "\n")
    unfinished.rename(run.file)
    shutil.rmtree(folder.path)


class Features:
    """A frozen model's features of a whole set: computed once, and read by every split and seed.

    The file names the pictures it is of, in their order. A file of other pictures, or of another order, is made anew:
    it would give a picture the features of another one.
    """

    def __init__(self, file: Path, parts: Parts, options: Options, console: Console) -> None:
        self.file, self.parts, self.options, self.console = file, parts, options, console

    def of_part(self, built: Built, part: str) -> TensorDataset:
        """As `rsattn.finetune.training.train` asks for them."""
        if not self.file.exists() or torch.load(self.file)["pictures"] != self._pictures():
            everything = Pictures(
                self.parts.store, range(len(self.parts.rows)), self.parts.labels, self.parts.normalise
            )
            made = features(built, everything, self.options, self.console, f"features, {self.file.stem}")
            self.file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"pictures": self._pictures(), "features": made.tensors[0]}, self.file)
        return self.of(self.parts.indices(part))

    def _pictures(self) -> list[str]:
        return [row.file for row in self.parts.rows]

    def of(self, indices: list[int]) -> TensorDataset:
        """(features (n, D), labels (n,), indices (n,))."""
        labels = torch.tensor([self.parts.labels[i] for i in indices])
        return TensorDataset(torch.load(self.file)["features"][indices], labels, torch.tensor(indices))


def write_parts(folder: RunFolder, pictures: PictureSet, rows: list[SplitRow]) -> None:
    """The split as `rsattn finetune` writes it."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.data.write_text(json.dumps({"root": str(pictures.root), "classes": list(pictures.classes)}))
    with folder.split.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "part", "group"])
        writer.writerows([row.file, row.label, row.part, row.group] for row in rows)


def _machine() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"device": device, "torch": torch.__version__}
