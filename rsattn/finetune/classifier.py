"""The Lightning module: cross entropy loss, warm-up and cosine schedule, validation that counts each image once."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from ..recording import residual_modules
from .checkpoint import KEY, remembered
from .gates import sizes_of_gates
from .models import Built
from .optimizer import adamw
from .options import Options
from .schedule import Cycles


class Classifier(LightningModule):
    """A model in training.

    Each step seeds its random numbers from the run's seed, the number of the step and the rank of the process. So a
    run that resumes from a checkpoint gives the same result as one without a break.

    Args:
        built: the model.
        class_weights: the weights (classes,) of the loss, or None.
        on_features: the batches hold features (B, D), which the last linear layer takes, instead of images.

    Attributes:
        history: a row for each finished epoch, see `RunFolder.history`; checkpoints hold it.
        gates_at_start: the root mean square of each block's gate before the first step; checkpoints hold it.
    """

    def __init__(
        self,
        options: Options,
        classes: tuple[str, ...],
        built: Built,
        class_weights: Tensor | None = None,
        on_features: bool = False,
    ) -> None:
        super().__init__()
        self.options, self.classes, self.built = options, classes, built
        self.model = built.model
        self.history: list[dict[str, float]] = []
        self.gates_at_start = sizes_of_gates(self.model)
        self.on_features = on_features
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.train_loss, self.train_accuracy = MeanMetric(), MeanMetric()
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._started = time.monotonic()
        if options.freeze:
            freeze(self.model, built.classifier)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images (B, 3, S, S), or features (B, D) -> logits (B, classes) in float32."""
        part = self.model.get_submodule(self.built.classifier) if self.on_features else self.model
        logits: Tensor = part(inputs)
        return logits.float()

    def on_train_epoch_start(self) -> None:
        self._started = time.monotonic()
        if self.options.freeze:
            _rest(self.model)
        if self.current_epoch in (self.options.restarts or ()):
            self._restart()

    def _restart(self) -> None:
        """Begin a cycle of the learning rate, in a run that goes on or in one that resumes here with more epochs.

        A checkpoint holds the rates of the schedule that ended, and no moments if its run was finished.
        """
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        optimizer.optimizer.state.clear()
        for group, peak in zip(optimizer.param_groups, schedule.base_lrs):
            group["lr"] = peak * schedule.lr_lambdas[0](schedule.last_epoch)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Seed the step: between steps, Lightning and the loaders draw more or fewer random numbers after a resume."""
        torch.manual_seed(_mixed(self.options.seed, self.global_step, self.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> Tensor:
        inputs, labels = batch[:2]
        logits = self(inputs)
        weights = self.class_weights if isinstance(self.class_weights, Tensor) else None
        smoothing = self.options.label_smoothing
        loss = functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
        self.train_loss.update(loss.detach(), weight=len(labels))
        self.train_accuracy.update((logits.argmax(1) == labels).float())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> None:
        inputs, labels, indices = batch
        self._seen.append((self(inputs), labels, indices))

    def on_validation_epoch_end(self) -> None:
        """Loss, accuracy and macro F1 of the whole validation split.

        All processes get the same number of images, so two may get the same image; it is counted once.
        """
        logits, labels, indices = (self._everywhere(torch.cat(column)) for column in zip(*self._seen))
        self._seen.clear()
        indices, first = _first_of_each(indices)
        logits, labels = logits[first], labels[first]
        classes = len(self.classes)
        self.log_dict(
            {
                "val_loss": functional.cross_entropy(logits, labels),
                "val_accuracy": multiclass_accuracy(logits, labels, classes, average="micro"),
                "val_f1": multiclass_f1_score(logits, labels, classes, average="macro"),
            },
            prog_bar=True,
        )

    def _everywhere(self, values: Tensor) -> Tensor:
        gathered = self.all_gather(values)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1) if gathered.dim() > values.dim() else gathered

    def on_train_epoch_end(self) -> None:
        """Add a row to the history, before the checkpoint of this epoch is written."""
        loss, accuracy = self.train_loss.compute(), self.train_accuracy.compute()
        self.train_loss.reset()
        self.train_accuracy.reset()
        self.log_dict({"train_loss": loss, "train_accuracy": accuracy}, prog_bar=True)
        measured = self.trainer.callback_metrics
        self.history.append(
            {
                "epoch": self.current_epoch + 1,
                "train_loss": float(loss),
                "train_accuracy": float(accuracy),
                **{name: float(measured[name]) for name in ("val_loss", "val_accuracy", "val_f1")},
                "learning_rate": self._rate(),
                "seconds": time.monotonic() - self._started,
            }
        )

    def _rate(self) -> float:
        """The learning rate of the classifier, which layer decay does not reduce."""
        schedule: Any = self.lr_schedulers()
        return self.options.learning_rate * self._cycles.after(schedule.last_epoch)

    def configure_optimizers(self) -> Any:
        """AdamW; all learning rates rise linearly and fall along a cosine."""
        optimizer = adamw(self.model, self.options, fresh_attention(self.model))
        steps, epochs = int(self.trainer.estimated_stepping_batches), self.options.epochs
        ends = [epoch * steps // epochs for epoch in (*(self.options.restarts or ()), epochs)]
        cycles = Cycles(ends, self.options.warm_up)
        # A function: LambdaLR would save an object, and restore the old cycles where a run resumes with more epochs.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cycles(step))
        self._cycles = cycles
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = remembered(self.options, self.classes, self.built.mean, self.built.std) | {
            "history": self.history,
            "gates_at_start": self.gates_at_start,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint[KEY]["history"])
        self.gates_at_start = dict(checkpoint[KEY].get("gates_at_start", {}))  # models without gates


def freeze(model: nn.Module, classifier: str) -> None:
    """Train only the classifier and newly initialized attention, which has to be trained."""
    model.requires_grad_(False)
    model.get_submodule(classifier).requires_grad_(True)
    for module in fresh_attention(model):
        module.requires_grad_(True)


def fresh_attention(model: nn.Module) -> list[nn.Module]:
    """The newly initialized modules of `rsattn.patch(num_heads=...)`."""
    from ..module import ResidualSelfAttention

    return [module for module in residual_modules(model).values() if isinstance(module, ResidualSelfAttention)]


def _rest(model: nn.Module) -> None:
    """Put frozen modules in evaluation mode, so that they do not drop values or update statistics."""
    for module in model.modules():
        if not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


def _mixed(*numbers: int) -> int:
    import numpy as np

    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _first_of_each(indices: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct numbers in ascending order, and where each occurs first."""
    order = torch.argsort(indices, stable=True)
    ordered = indices[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first], order[first]
