"""The files in the folder of a run, and their names.

Names in split.csv and predictions.csv that a spreadsheet would read as formulas have a single quote in front, which
cells.py adds and removes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..cli.outputs import LOCK, MARKER, names_in

# What the user can do about a damaged file that a resumed run reads and does not rewrite.
NO_COPY = "restore it from a copy, or repeat the run in a new folder with --config and its config.json"


def _remove(paths: Iterable[Path]) -> None:
    """Remove files and folders, as far as possible."""
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink()


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def trained(self) -> bool:
        """Whether an epoch is finished, also one with a rate that --lr auto tries."""
        return self.last.exists() or any(self.rates_tried.glob("*/checkpoints/last.ckpt"))

    @property
    def untrained(self) -> bool:
        """Whether it holds only what a run writes before its first finished epoch."""
        names = {name for name in names_in(self.path) if not (name.startswith(".") and name.endswith(".partial"))}
        return not self.trained and names <= {MARKER, LOCK, *(path.name for path in self._before_training)}

    @property
    def _before_training(self) -> tuple[Path, ...]:
        # config.json first: without it, no other process takes the files for those of its own run.
        return (self.config, self.split, self.data, self.digits, self.checkpoints, self.logs, self.rates_tried)

    def clear(self) -> None:
        """Remove what a run writes before its first finished epoch."""
        _remove(self._before_training)
        self.remove_unfinished()

    def remove_unfinished(self) -> None:
        """Remove the temporary files that a killed process left, among them checkpoints."""
        tried = self.rates_tried.glob("*/checkpoints")
        for folder in (self.path, self.checkpoints, self.figures, self.exports, *self.rates_tried.glob("*"), *tried):
            _remove(folder.glob(".*.partial"))

    @property
    def config(self) -> Path:
        """JSON: `Options`, field by field."""
        return self.path / "config.json"

    @property
    def data(self) -> Path:
        """JSON: root, classes (list of names), notes (list of sentences), damaged (list of {file, why}), groups (a
        sentence that describes the groups), counts ({split: {class: images}}), group_counts ({split: groups}), drawn
        (the splits that were drawn at random), near_identical (a list of `near_identical.Overlap`; null where the
        images were not compared), checksums ({split: SHA-256 of split.csv, images: see checksums.py}). Runs of earlier
        versions lack drawn and checksums."""
        return self.path / "data.json"

    @property
    def split(self) -> Path:
        """CSV: file (relative to root, with /), label (a class), split (train, val, test or left-out), group (text)."""
        return self.path / "split.csv"

    @property
    def digits(self) -> Path:
        """scikit-learn's digits as images, only for runs without DATA."""
        return self.path / "digits"

    @property
    def logs(self) -> Path:
        """Logs of Lightning, as --logger asks for: metrics.csv, tensorboard/, wandb/ and mlflow.db."""
        return self.path / "logs"

    @property
    def trackers(self) -> Path:
        """JSON, only with --logger wandb or mlflow: {logger: the identifier of the run there}."""
        return self.logs / "trackers.json"

    @property
    def rates_tried(self) -> Path:
        """Only while --lr auto tries rates: a folder for each, with checkpoints, history.csv and logs."""
        return self.path / "rates"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """Lightning's checkpoint after the last finished epoch."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch with the lowest validation loss; runs with --keep last have none."""
        return self.checkpoints / "best.ckpt"

    @property
    def tested(self) -> Path:
        """The file with the weights that are tested, and that `predict` uses; a copy of a run may lack checkpoints."""
        return next((path for path in (self.best, self.last, self.weights) if path.exists()), self.last)

    @property
    def weights(self) -> Path:
        """The tested weights in the format of safetensors, with what they need to classify images: see metadata.py."""
        return self.path / "model.safetensors"

    @property
    def external(self) -> Path:
        """JSON: tests, a list with {root, notes (as in data.json), scores, intervals, calibration (as in metrics.json)}
        of each folder that `rsattn test` scored. A new test of the run itself removes it. Runs may lack it."""
        return self.path / "external.json"

    @property
    def card(self) -> Path:
        """A model card in the format of Hugging Face, from metrics.json, data.json and external.json."""
        return self.path / "README.md"

    @property
    def exports(self) -> Path:
        """The files of `rsattn export`, unless they were given another place."""
        return self.path / "export"

    @property
    def history(self) -> Path:
        """CSV, a row per epoch: epoch (from 1), train_loss, train_accuracy, val_loss, val_accuracy, val_f1,
        learning_rate, seconds."""
        return self.path / "history.csv"

    @property
    def rates(self) -> Path:
        """JSON, only for runs with --lr auto: tried (a list of {rate, val_loss, val_accuracy}) and chosen (a rate)."""
        return self.path / "rates.json"

    @property
    def predictions(self) -> Path:
        """CSV, a row per test image: file, group, label, predicted, then one probability per class, `p_<class>`."""
        return self.path / "predictions.csv"

    @property
    def roc_pr(self) -> Path:
        """JSON: ROC and precision-recall curves with bands, see curves.py. Runs of earlier versions lack it."""
        return self.path / "roc_pr.json"

    @property
    def heads(self) -> Path:
        """JSON, only for models with residual attention: {block name: [number of test images with this best head]},
        or of their windows, where the block attends in windows."""
        return self.path / "heads.json"

    @property
    def metrics(self) -> Path:
        """JSON: scores (see scores.py); intervals, calibration, thresholds and by_group (see measuring.py); splits
        ({split: {images, groups, classes: {name: images}}}), groups and near_identical (as in data.json, without
        examples), tested_epoch, epochs, stopped ("finished" or "early stopping"), model ({name, label, parameters,
        trained_parameters, without_residual: {name of an attention module: reason}, normalize: {mean, std}, ignored
        (names of options without effect on this model)}), gates, seed, split_seed, seconds, versions ({package:
        version}), device, options, methods (see methods.py). Runs of earlier versions lack some of them.

        gates is null where the model has none; else it has init_values, rate (null: not trained) and blocks, a list of
        {name, start and rms (root mean square over channels, before and after training), mean, largest (absolute
        value)}. Runs of versions without gates lack it."""
        return self.path / "metrics.json"

    @property
    def figures(self) -> Path:
        """PNG files. The run draws head_choices.png, norms.png and looks.png (sample images, with attention maps
        unless the last block attends in windows) for models with residual attention, and samples.png for others; the
        report draws confusion, reliability, roc_pr (not without AUROC), curves and, for models with gates, gates, as
        PNG, SVG and PDF."""
        return self.path / "figures"

    @property
    def checklist(self) -> Path:
        """CSV: the items of CLAIM and TRIPOD+AI with the answers of the run, and those that only authors can answer."""
        return self.path / "checklist.csv"

    @property
    def report(self) -> Path:
        return self.path / "report.html"
