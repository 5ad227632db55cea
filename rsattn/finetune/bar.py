"""The progress bar of a training."""

from __future__ import annotations

from typing import Any, Self

from lightning.pytorch import Callback, Trainer
from rich.console import Console

from ..cli.terminal import Terminal, progress


class RunBar(Callback):
    """As a context manager: one bar over all epochs, below the lines that the epochs print."""

    def __init__(self, console: Console) -> None:
        self._bar = progress(console)

    def __getstate__(self) -> dict[str, object]:
        """Nothing: a console cannot be pickled, and a process that `ddp_spawn` starts prints to its own."""
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self._bar = progress(Terminal())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            assert trainer.max_epochs is not None
            steps = _steps(trainer)
            self._bar.add_task("", total=trainer.max_epochs * steps, completed=trainer.current_epoch * steps)
            self._bar.start()

    def on_train_end(self, *_: Any) -> None:
        self._bar.stop()

    def on_train_batch_start(self, trainer: Trainer, module: object, batch: object, batch_idx: int) -> None:
        self._say(trainer, batch_idx + 1)

    def on_train_batch_end(self, *_: Any) -> None:
        self._advance()

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        self._say(trainer)

    def on_validation_batch_end(self, *_: Any) -> None:
        self._advance()

    def _say(self, trainer: Trainer, step: int | None = None) -> None:
        """Describe the current epoch; all descriptions have the same width, so that the bar stays in its place."""
        epochs, steps = str(trainer.max_epochs), str(trainer.num_training_batches)
        training = f"step {step or 0:{len(steps)}} of {steps}"
        part = "validation".ljust(len(training)) if step is None else training
        for task in self._bar.task_ids:
            self._bar.update(task, description=f"epoch {trainer.current_epoch + 1:{len(epochs)}} of {epochs}, {part}")

    def _advance(self) -> None:
        for task in self._bar.task_ids:
            self._bar.advance(task)


def _steps(trainer: Trainer) -> int:
    """The steps of an epoch, those of its validation included."""
    return int(trainer.num_training_batches) + int(sum(trainer.num_val_batches))
