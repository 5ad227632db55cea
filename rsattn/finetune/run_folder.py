"""What a run leaves in its folder, and under which names. Whoever reads or writes one of these asks here.

Names in split.csv and predictions.csv that a spreadsheet would take for formulas have a single quote in front; cells.py
puts it on and takes it off.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# What to do about a damaged file that a resumed run reads and does not write anew.
NO_COPY = "restore it from a copy, or repeat the run in a new folder with --config and its config.json"


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """JSON: `Options`, field by field."""
        return self.path / "config.json"

    @property
    def data(self) -> Path:
        """JSON: root, classes (list of names), notes (list of sentences), damaged (list of {file, why}), groups (a
        sentence on what a group is), counts ({split: {class: images}}), group_counts ({split: groups})."""
        return self.path / "data.json"

    @property
    def split(self) -> Path:
        """CSV: file (relative to root, with /), label (a class), split (train, val, test or left-out), group (text)."""
        return self.path / "split.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """Lightning's checkpoint after the last finished epoch."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch with the least validation loss; runs that keep the last one have none."""
        return self.checkpoints / "best.ckpt"

    @property
    def tested(self) -> Path:
        """The checkpoint that is evaluated, and given to `predict`."""
        return self.best if self.best.exists() else self.last

    @property
    def history(self) -> Path:
        """CSV, a row per epoch: epoch (from 1), train_loss, train_accuracy, val_loss, val_accuracy, val_f1,
        learning_rate, seconds."""
        return self.path / "history.csv"

    @property
    def rates(self) -> Path:
        """JSON, of a run with --lr auto only: tried (a list of {rate, val_loss, val_accuracy}) and chosen (a rate)."""
        return self.path / "rates.json"

    @property
    def predictions(self) -> Path:
        """CSV, a row per test image: file, group, label, predicted, then one probability per class, `p_<class>`."""
        return self.path / "predictions.csv"

    @property
    def heads(self) -> Path:
        """JSON, of a residual model only: {block name: [how often each head was best over the test images]}."""
        return self.path / "heads.json"

    @property
    def metrics(self) -> Path:
        """JSON for machines: scores (see scores.py), tested_epoch, epochs, stopped ("finished" or
        "early stopping"), model ({name, label, parameters, trained_parameters}), gates, seed, split_seed, seconds,
        versions ({package: version}), device, options.

        gates is null where there are none, else init_values, rate (null: not trained) and blocks, a list of {name,
        start and rms (root mean squares over channels, before training and as tested), mean, largest (absolute
        value)}. Runs before there were gates lack it."""
        return self.path / "metrics.json"

    @property
    def figures(self) -> Path:
        """PNG files. The run draws head_choices.png, norms.png and looks.png (residual models: sample images and
        where the best head looks) or samples.png (other models); the report draws confusion.png, curves.png and, where
        there are gates, gates.png."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        return self.path / "report.html"
