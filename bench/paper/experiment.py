"""The paper's experiment as a grid of runs; each trains and tests one model and writes one JSON file."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch.utils.data import TensorDataset
from torchmetrics.functional.classification import multiclass_confusion_matrix

from rsattn.cli.command import finished_file
from rsattn.finetune.arguments import parsed
from rsattn.finetune.chosen_options import options_of as options_of_command
from rsattn.finetune.dataset import ImageDataset
from rsattn.finetune.features import can_be_kept, features
from rsattn.finetune.gates import sizes_of_gates
from rsattn.finetune.history import read_history, tested_epoch
from rsattn.finetune.loading import load
from rsattn.finetune.models import Built
from rsattn.finetune.options import Options, with_all_epochs
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.splits import Splits
from rsattn.finetune.splitting import SplitRow
from rsattn.finetune.testing import logits_of
from rsattn.finetune.training import train

from ..machine import processor
from .ablation import Which, add_other_head
from .sets import ImageSet, divided

RESULTS = Path(__file__).parent / "results"
SMALL = "vit_small_patch14_dinov2"


@dataclass(frozen=True)
class Variant:
    """One attention: the plain one, or a residual one with what it adds.

    Attributes:
        command: what it adds to the command line of `rsattn finetune`.
        which: the head that is added.
    """

    name: str
    command: tuple[str, ...] = ()
    which: Which = "best"


def _residual(name: str, norm: str, start: str, which: Which = "best") -> Variant:
    return Variant(name, ("--patch", "--norm", norm, f"--init-values={start}"), which)


PLAIN = Variant("plain")
NORMS = ("induced", "entrywise", "confidence")
UNGATED = tuple(_residual(f"{norm}, no gate", norm, "none") for norm in NORMS)
GATED = tuple(_residual(f"{norm}, gate from 0", norm, "0") for norm in NORMS)
GATED_HIGHER = _residual("induced, gate from 0.1", "induced", "0.1")
# What the gate's learning rate could be; `rsattn finetune` takes one of them.
RATES = tuple(
    Variant(f"gate from 0, rate {rate}", ("--patch", "--init-values=0", "--gate-lr", rate))
    for rate in ("1e-4", "1e-3", "2e-2")
)
OTHER_HEADS: dict[str, Which] = {
    "worst head": "worst",
    "random head": "random",
    "head 0": "fixed",
    "all heads averaged": "mean",
    "induced over patches": "patches",
    "value-weighted": "value-weighted",
    "centered output": "centered",
}
ABLATIONS = tuple(_residual(name, "induced", "none", which) for name, which in OTHER_HEADS.items())
GATED_ABLATIONS = tuple(_residual(f"{name}, gate from 0", "induced", "0", which) for name, which in OTHER_HEADS.items())
FULL_WIDTH = Variant("full width, no gate", ("--patch", "--full-width", "--norm", "entrywise", "--scope", "batch"))
FULL_WIDTH_GATED = Variant("full width, gate from 0", (*FULL_WIDTH.command, "--init-values=0"))
VARIANTS = (
    *(PLAIN, *UNGATED, *GATED, GATED_HIGHER, *RATES, *ABLATIONS, *GATED_ABLATIONS),
    *(FULL_WIDTH, FULL_WIDTH_GATED),
)


@dataclass(frozen=True)
class Study:
    """One way to train: what all variants of one table share.

    Attributes:
        name: of the table.
        command: of `rsattn finetune`; "pretrained" stands for the file of weights.
        every: n, to train and test with every n-th of the 12,192 images of blood cells.
    """

    name: str
    command: tuple[str, ...]
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
        every = (f"every {self.every}",) * (self.every > 1)
        words = (self.set, self.split, self.study.name, *every, self.variant.name, f"seed {self.seed}")
        name = "_".join(words).translate({ord(","): None, ord("'"): None, ord(" "): "-"})
        return RESULTS / self.set / f"{name}.json"

    @property
    def every(self) -> int:
        return self.study.every if self.set == "blood" else 1


# 112 pixels with 14-pixel patches give as many tokens as the paper's 128 pixels with 16-pixel patches: 65.
VIT = ("--model", SMALL, "--image-size", "112")
FROZEN = Study("frozen", (*VIT, "--weights", "pretrained", "--recipe", "probe"), every=9)
TUNED = Study("fine-tuned", (*VIT, "--weights", "pretrained"), every=5)
SCRATCH = Study("from scratch", (*VIT, "--weights", "none"), every=5)
NETS = tuple(Study(name, ("--model", name, "--weights", "none"), every=5) for name in ("cnn", "alexnet", "resnet18"))
LEAK_FREE = ("leak-free",)


def two_cores() -> Iterator[Run]:
    """The runs for two cores in some hours, most important first: five seeds where a run takes minutes, else three."""
    yield from dict.fromkeys(_in_order_of_weight())


def _in_order_of_weight() -> Iterator[Run]:
    for name in ("mri", "blood"):
        yield from _grid(name, LEAK_FREE, FROZEN, (PLAIN, *UNGATED, GATED[0], *ABLATIONS), range(5))
    main = (PLAIN, UNGATED[0], GATED[0])
    yield from _grid("mri", LEAK_FREE, TUNED, main, range(5))
    yield from _grid("blood", LEAK_FREE, TUNED, (PLAIN,), range(1))
    yield from _grid("blood", LEAK_FREE, NETS[2], (PLAIN,), range(1))
    yield from _grid("blood", LEAK_FREE, TUNED, main, range(3))
    yield from _grid("blood", LEAK_FREE, NETS[2], (PLAIN,), range(3))
    yield from _grid("blood", LEAK_FREE, replace(TUNED, every=2), (PLAIN,), range(5))
    yield from _grid("blood", ("authors",), TUNED, main, range(3))
    yield from _grid("mri", LEAK_FREE, TUNED, (*RATES, GATED_HIGHER), range(5))
    for net in NETS:
        yield from _grid("mri", LEAK_FREE, net, (PLAIN,), range(5))
    yield from _grid("mri", ("authors",), FROZEN, (PLAIN, *UNGATED, GATED[0]), range(5))
    yield from _grid("mri", ("authors",), TUNED, main, range(5))
    yield from _grid("mri", LEAK_FREE, TUNED, (*GATED[1:], *UNGATED[1:]), range(5))
    yield from _grid("mri", LEAK_FREE, TUNED, GATED_ABLATIONS, range(3))
    yield from _grid("mri", LEAK_FREE, TUNED, (FULL_WIDTH, FULL_WIDTH_GATED), range(3))
    yield from _grid("mri", LEAK_FREE, SCRATCH, (PLAIN, UNGATED[0]), range(3))
    for net in NETS[:2]:
        yield from _grid("blood", LEAK_FREE, net, (PLAIN,), range(3))
    yield from _grid("blood", LEAK_FREE, TUNED, (*GATED[1:], *UNGATED[1:]), range(3))
    yield from _grid("blood", LEAK_FREE, TUNED, (FULL_WIDTH, FULL_WIDTH_GATED), range(3))
    yield from _grid("blood", LEAK_FREE, SCRATCH, (PLAIN, UNGATED[0]), range(3))
    yield from _grid("blood", LEAK_FREE, TUNED, GATED_ABLATIONS, range(3))


def everything() -> Iterator[Run]:
    """The whole grid, five seeds everywhere, all images."""
    both = ("leak-free", "authors")
    residuals = (*UNGATED, *GATED, GATED_HIGHER)
    full_width = (FULL_WIDTH, FULL_WIDTH_GATED)
    for name in ("mri", "blood"):
        yield from _grid(name, both, _whole(FROZEN), (PLAIN, *UNGATED, GATED[0], *ABLATIONS), range(5))
        yield from _grid(name, both, _whole(TUNED), (PLAIN, *residuals, *RATES, *full_width), range(5))
        yield from _grid(name, both, _whole(TUNED), (*ABLATIONS, *GATED_ABLATIONS), range(5))
        yield from _grid(name, both, _whole(SCRATCH), (PLAIN, *residuals, *full_width), range(5))
        for net in NETS:
            yield from _grid(name, both, _whole(net), (PLAIN,), range(5))


def _whole(study: Study) -> Study:
    return replace(study, every=1)


def _grid(
    name: str, splits: tuple[str, ...], study: Study, variants: tuple[Variant, ...], seeds: range
) -> Iterator[Run]:
    for seed in seeds:
        for split in splits:
            for variant in variants:
                yield Run(name, split, study, variant, seed)


# A cell has no upright side. The results were made when "mirror" was the default of the recipes.
AUGMENTATION = {"mri": "mirror", "blood": "rotate"}


def options_of(run: Run, weights: Path, out: Path) -> Options:
    """The options of a run of the grid, as from a command line of `rsattn finetune`."""
    command = [*run.study.command, *run.variant.command, "--precision", "bf16-mixed"]
    if run.study.name != FROZEN.name:
        command = ["--augment", AUGMENTATION[run.set], *command]
    command = [str(weights) if word == "pretrained" else word for word in command]
    given = parsed([run.set, *command, "--seed", str(run.seed), "--devices", "1"])
    return options_of_command(given, given.model, run.seed, out)


def do(run: Run, images: ImageSet, weights: Path, work: Path, console: Console) -> None:
    """Train and test one cell of the grid; its JSON file is written at the end."""
    started = time.monotonic()
    folder = RunFolder(work / "run" / run.file.stem)
    options = options_of(run, weights, folder.path)
    rows = divided(images, run.split, run.seed)
    write_splits(folder, images, rows)
    splits = Splits(folder, options.image_size)
    options = with_all_epochs(options, len(splits.indices("train")))
    tested = splits.indices("test")
    # One generator, so that the heads drawn in testing are not those drawn in training.
    adjust = partial(add_other_head, which=run.variant.which, generator=torch.Generator().manual_seed(run.seed))
    kept = Features(work / "features" / f"{run.set}-{run.variant.name}.pt", splits, options, console)
    train(folder, options, splits, console, kept.of_split, adjust)
    loaded = load(folder.tested, adjust)
    if can_be_kept(options):
        classifier = loaded.model.get_submodule(loaded.classifier)
        probabilities = classifier(kept.of(tested).tensors[0].to(loaded.device)).detach().cpu().softmax(1)
    else:
        splits.normalize = loaded.normalize
        tested_images = splits.dataset("test", options)
        probabilities = logits_of(loaded, tested_images, options, "testing", console).softmax(1)
    labels = torch.tensor([splits.labels[i] for i in tested])
    confusion = multiclass_confusion_matrix(probabilities, labels, len(splits.classes))
    history = read_history(folder)
    content = {
        "run": {**asdict(run), "options": {**asdict(options), "out": "", "weights": Path(options.weights).name}},
        "confusion": confusion.tolist(),
        "epochs": len(history),
        "val_loss": history[tested_epoch(history, options) - 1]["val_loss"],
        "gates": list(sizes_of_gates(loaded.model).values()),
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "pictures": {split: len(splits.indices(split)) for split in ("train", "val", "test", "left-out")},
        "groups": {split: len({rows[i].group for i in splits.indices(split)}) for split in ("train", "val", "test")},
        "seconds": time.monotonic() - started,
        "tested": {
            "picture": tested,
            "group": [splits.rows[i].group for i in tested],
            "correct": (probabilities.argmax(1) == labels).int().tolist(),
        },
        "machine": machine(),
    }
    run.file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = run.file.with_suffix(".partial")
    unfinished.write_text(json.dumps(content) + "\n")
    unfinished.rename(run.file)
    shutil.rmtree(folder.path)


class Features:
    """The features of a frozen model for a whole set, computed once and used for all splits and seeds.

    The file lists its images in their order. If the images or their order differ, the features are computed again.
    """

    def __init__(self, file: Path, splits: Splits, options: Options, console: Console) -> None:
        self.file, self.splits, self.options, self.console = file, splits, options, console

    def of_split(self, built: Built, split: str, for_head: bool = False) -> TensorDataset:
        """The features of a split, a `FeaturesOf` for `rsattn.finetune.training.train`."""
        if not self.file.exists() or torch.load(self.file).get("images") != self._images():
            everything = ImageDataset(
                self.splits.store, range(len(self.splits.rows)), self.splits.labels, self.splits.normalize
            )
            made = features(built, everything, self.options, self.console, f"features, {self.file.stem}")
            with finished_file(self.file) as unfinished:
                torch.save({"images": self._images(), "features": made.tensors[0]}, unfinished)
        return self.of(self.splits.indices(split))

    def _images(self) -> list[str]:
        return [row.file for row in self.splits.rows]

    def of(self, indices: list[int]) -> TensorDataset:
        """(features (n, D), labels (n,), indices (n,))."""
        labels = torch.tensor([self.splits.labels[i] for i in indices])
        return TensorDataset(torch.load(self.file)["features"][indices], labels, torch.tensor(indices))


def write_splits(folder: RunFolder, images: ImageSet, rows: list[SplitRow]) -> None:
    """Write the splits as `rsattn finetune` does."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.data.write_text(json.dumps({"root": str(images.root), "classes": list(images.classes)}))
    with folder.split.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "split", "group"])
        writer.writerows([row.file, row.label, row.split, row.group] for row in rows)


def machine() -> dict[str, str]:
    """The device, the processor and the version of torch, for the result file."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"device": device, "processor": processor(), "torch": torch.__version__}
