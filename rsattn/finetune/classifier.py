"""The training step: cross entropy, a warm-up and a cosine; validation counts every image once."""

from __future__ import annotations

import math
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


class Classifier(LightningModule):
    """A model in training.

    Whatever is random in a step starts from the run's seed, the step's number and the process's, so a run that goes on
    from a checkpoint computes what it would have computed unbroken.

    Args:
        built: the model.
        class_weights: (classes,) of the loss, or None.
        on_features: batches are the classifier's inputs (B, D), computed beforehand.

    Attributes:
        history: a row per finished epoch, see `RunFolder.history`; kept in checkpoints.
        gates_at_start: the root mean square of every block's gate before the first step; kept in checkpoints.
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

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Seed the step: Lightning and the loaders draw numbers between steps, not equally many after a break."""
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

        Processes have equally many images, so some have an image that another has too; it is counted once.
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
        """One row of history, before the checkpoint of this epoch is written."""
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
        """The learning rate of all parameters but the gates, whatever groups there are."""
        schedule: Any = self.lr_schedulers()
        return self.options.learning_rate * float(schedule.lr_lambdas[0](schedule.last_epoch))

    def configure_optimizers(self) -> Any:
        """AdamW; all rates rise in a line and fall in a cosine."""
        optimizer = adamw(self.model, self.options, fresh_attention(self.model))
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: share_of_rate(step, steps, self.options.warm_up)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = remembered(self.options, self.classes, self.built.mean, self.built.std) | {
            "history": self.history,
            "gates_at_start": self.gates_at_start,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint[KEY]["history"])
        self.gates_at_start = dict(checkpoint[KEY].get("gates_at_start", {}))  # runs before there were gates have none


def share_of_rate(step: int, steps: int, rise: float) -> float:
    """The share of the learning rate at a step of `steps`: up in a line for `rise` of them, then down in a cosine."""
    warm_up = max(round(rise * steps), 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1.0 + math.cos(math.pi * min((step - warm_up) / max(steps - warm_up, 1), 1.0)))


def freeze(model: nn.Module, classifier: str) -> None:
    """Only the classifier learns, and attention that was put in fresh, which without learning would know nothing."""
    model.requires_grad_(False)
    model.get_submodule(classifier).requires_grad_(True)
    for module in fresh_attention(model):
        module.requires_grad_(True)


def fresh_attention(model: nn.Module) -> list[nn.Module]:
    """The modules of `rsattn.patch(num_heads=...)`."""
    from ..module import ResidualSelfAttention

    return [module for module in residual_modules(model).values() if isinstance(module, ResidualSelfAttention)]


def _rest(model: nn.Module) -> None:
    """Frozen layers neither drop anything nor count: they are what they were."""
    for module in model.modules():
        if not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


def _mixed(*numbers: int) -> int:
    import numpy as np

    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _first_of_each(indices: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct numbers in order, and where each occurs first."""
    order = torch.argsort(indices, stable=True)
    ordered = indices[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first], order[first]
