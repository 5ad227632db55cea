"""Training with Lightning's Trainer, on one or more devices."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from ..cli.command import CommandError, why
from ..cli.terminal import duration, print_once
from .announcing import announce, hint
from .augmentation import described
from .bar import RunBar
from .checkpoint import AGAIN, drop_moments, read_last, refuse_misfit, refuse_other_moments
from .classifier import Classifier, fresh_attention
from .cpu_attention import use_matrix_products
from .dataset import Normalize
from .features import can_be_kept
from .gates import FROZEN_AT_0, described_gates, frozen_at_0
from .head import fit_head
from .history import how_to_go_on, is_finished, read_history, write_history
from .initial_features import FeaturesOf, InitialFeatures
from .loggers import loggers_of, tracking
from .machine import machine_of, quiet
from .memory import memory_needed
from .models import Built, build, rows_left_out
from .movable_checkpoint import MovableCheckpoint
from .optimizer import adamw, ignored
from .options import SHARDED, Options
from .run_folder import RunFolder
from .saving import CompleteCheckpoints
from .skipped import residual_is_missing_in
from .splits import Splits
from .step_time import seconds_per_batch
from .stopping import StopBetweenSteps
from .wording import counted

# RuntimeErrors that are not about a checkpoint.
OF_THE_MACHINE = torch.OutOfMemoryError, torch.AcceleratorError, torch.distributed.DistError


class Data(LightningDataModule):
    """The data loaders of a run; the order of the images depends only on the seed and the epoch.

    Args:
        made: features of the train and val splits, to use instead of images.
        drop_one: leave out the last batch of an epoch if it is one image, which has no variance to normalize with.
    """

    def __init__(
        self,
        options: Options,
        splits: Splits,
        made: tuple[TensorDataset, TensorDataset] | None,
        drop_one: bool = False,
    ) -> None:
        super().__init__()
        self.options, self.splits, self.made, self.drop_one = options, splits, made, drop_one

    def train_dataloader(self) -> DataLoader[Any]:
        """Lightning calls this in each epoch, so that the loader knows the epoch."""
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        images: Dataset[Any] = self.made[0] if self.made else self.splits.dataset("train", self.options, epoch)
        return self._loader(images, shuffle=True, epoch=epoch)

    def val_dataloader(self) -> DataLoader[Any]:
        images: Dataset[Any] = self.made[1] if self.made else self.splits.dataset("val", self.options)
        return self._loader(images, shuffle=False)

    def _loader(self, images: Dataset[Any], shuffle: bool, epoch: int = 0) -> DataLoader[Any]:
        assert self.trainer is not None
        world, rank = self.trainer.world_size, self.trainer.global_rank
        sampler: DistributedSampler[Any] = DistributedSampler(images, world, rank, shuffle, seed=self.options.seed)
        sampler.set_epoch(epoch)
        size, workers = self.options.batch_size, 0 if self.made else self.options.workers
        drop = shuffle and self.drop_one and len(sampler) > size and len(sampler) % size == 1
        return DataLoader(images, size, sampler=sampler, num_workers=workers, drop_last=drop)


def train(
    folder: RunFolder,
    options: Options,
    splits: Splits,
    console: Console,
    features_of: FeaturesOf | None = None,
    adjust: Callable[[nn.Module], object] | None = None,
    announced: bool = False,
) -> None:
    """Train from the last finished epoch to the last one.

    Args:
        features_of: the features of the initial model. Default: they are computed here.
        adjust: a change to apply to the built model.
        announced: the lines on what the training takes were printed before.

    Raises:
        KeyboardInterrupt: Ctrl-C; the message says how to continue.
    """
    built = build(options, len(splits.classes), with_weights=not folder.last.exists())
    use_matrix_products(built.model, options)
    if adjust is not None:
        adjust(built.model)
    if folder.last.exists():
        refuse_misfit(read_last(folder.last), built.model, AGAIN)
    splits.normalize = Normalize(built.mean, built.std)
    features_of = features_of or InitialFeatures(options, splits, console)
    weights = splits.class_weights() if options.class_weights else None
    kept = can_be_kept(options)
    if options.head_first and not folder.last.exists():
        try:
            fit_head(built, partial(features_of, built, for_head=True), options.class_weights, console)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(how_to_go_on(folder)) from None
    classifier = Classifier(options, splits.classes, built, weights, kept)
    whole = not options.strategy.startswith(SHARDED)  # else each process has a part of AdamW's moments
    if whole and folder.last.exists():
        refuse_other_moments(folder.last, adamw(built.model, options, fresh_attention(built.model)))
    stop, bar = StopBetweenSteps(), RunBar(console)
    with quiet():
        trainer = trainer_of(folder, options, [stop, bar])
    fresh = trainer.is_global_zero and not folder.last.exists()
    if folder.last.exists() and options.recipe is None and options.augment != "none":
        console.print("note: this run began with an earlier version of rsattn, which augmented the images differently")
    if fresh and not announced:
        for line in _about(built, options, splits, classifier, trainer.world_size):
            print_once(line, console)
    made = None
    if kept:
        if folder.last.exists():
            _load_weights(classifier, folder.last)
        made = features_of(built, "train"), features_of(built, "val")
    batch_norm = any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in built.model.modules())
    data = Data(options, splits, made, drop_one=batch_norm and not options.freeze)
    started = time.monotonic()
    resume = str(folder.last) if folder.last.exists() else None
    try:
        with stop, bar, quiet(), tracking(trainer, folder, options):
            trainer.fit(classifier, datamodule=data, ckpt_path=resume, weights_only=True)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if resume is None or stop.began or isinstance(error, OF_THE_MACHINE):
            raise
        raise CommandError(
            f"could not resume from {folder.last}: {type(error).__name__}: {why(error)}; if the file is damaged, "
            "restore it from a copy, or train again"
        ) from None
    except SystemExit:  # Lightning raises it on Ctrl-C
        raise KeyboardInterrupt(how_to_go_on(folder)) from None
    if trainer.interrupted:
        raise KeyboardInterrupt(how_to_go_on(folder))
    if not trainer.is_global_zero:
        return
    history = read_history(folder)  # another process may have trained (ddp_spawn)
    if whole and is_finished(history, options):
        drop_moments(folder.last)
    console.print(f"trained {counted(len(history), 'epoch')}, {duration(time.monotonic() - started)}")


def _about(built: Built, options: Options, splits: Splits, classifier: Classifier, devices: int) -> Iterator[str]:
    """The lines to print before a run starts."""
    if options.freeze and options.weights == "none":
        yield (
            "warning: --freeze keeps random weights (--weights none), so the classifier learns from random features: "
            "leave out --freeze, or give trained weights with --weights"
        )
    if missing := residual_is_missing_in(built.skipped):
        yield f"note: {missing}"
    patch, rest = rows_left_out(built.model, options)
    if rest:
        yield (
            f"note: the patches of {options.model} are {patch} pixels wide, so it does not see the last {rest} rows "
            f"and columns of --image-size {options.image_size}; {options.image_size - rest} and "
            f"{options.image_size - rest + patch} fit"
        )
    if frozen_at_0(described_gates(built.model, options, classifier.gates_at_start)):
        yield f"note: {options.model}: {FROZEN_AT_0}"
    without_effect = ignored(built.model, options)
    if "layer_decay" in without_effect:
        yield f"note: {options.model} does not define its layers, so --layer-decay has no effect"
    if "drop_path" in without_effect:
        yield f"note: {options.model} has no stochastic depth, so --drop-path has no effect"
    steps, validation = (
        math.ceil(len(splits.indices(split)) / (options.batch_size * devices)) for split in ("train", "val")
    )
    needed = memory_needed(options, len(splits.classes), len(splits.rows))
    if line := hint(options, needed):
        yield f"note: {line}"
    yield f"augmentation: {described(options.augment)}"
    seconds = seconds_per_batch(built, options, splits.dataset("train", options))
    yield announce(options, steps, validation, seconds, needed)


def _load_weights(classifier: Classifier, checkpoint: Path) -> None:
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    classifier.load_state_dict(state, strict=False)


def trainer_of(folder: RunFolder, options: Options, first: list[Callback]) -> Trainer:
    """Lightning's Trainer for a run."""
    # In deterministic mode, which the Trainer turns on, PyTorch fills each new tensor, which costs an extra kernel for
    # most operations.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    callbacks = [*first, LastCheckpoint(folder)]
    if options.keep == "best":
        callbacks.insert(1, best_checkpoint(folder))
    if options.patience:
        callbacks.insert(0, EarlyStopping("val_loss", patience=options.patience, check_on_train_epoch_end=True))
    return Trainer(
        **machine_of(options),
        max_epochs=options.epochs,
        gradient_clip_val=options.clip or None,
        callbacks=callbacks,
        plugins=[CompleteCheckpoints()],
        logger=loggers_of(folder, options),
        deterministic="warn",
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def best_checkpoint(folder: RunFolder) -> MovableCheckpoint:
    """Keeps the weights of the epoch with the lowest validation loss, without what only training needs."""
    return MovableCheckpoint(
        folder.checkpoints,
        filename=folder.best.stem,
        monitor="val_loss",
        save_weights_only=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


class LastCheckpoint(MovableCheckpoint):
    """Keeps the checkpoint of the last epoch, then updates history.csv and prints a line on the epoch.

    It is a separate callback, because `save_last=True` saves only an epoch that is the best so far (Lightning 2.6).
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(
            folder.checkpoints, filename=folder.last.stem, save_on_train_epoch_end=True, enable_version_counter=False
        )
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero:
            write_history(self.folder, pl_module.history)
            row = pl_module.history[-1]
            print(
                f"epoch {row['epoch']:.0f} of {trainer.max_epochs}: training loss {row['train_loss']:.3f}; validation "
                f"loss {row['val_loss']:.3f}, accuracy {row['val_accuracy']:.1%}",
                flush=True,
            )
