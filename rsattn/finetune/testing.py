"""The probabilities of a trained model for the test split."""

from __future__ import annotations

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from ..cli.terminal import tracked
from .loading import TrainedModel
from .options import Options
from .splits import Splits


@torch.inference_mode()
def probabilities_of(loaded: TrainedModel, splits: Splits, options: Options, console: Console) -> Tensor:
    """(n, classes) float32 in the order of the test split; the batch size is that of training, for scope="batch"."""
    images = splits.dataset("test", options)
    loader = DataLoader(images, batch_size=options.batch_size, num_workers=options.workers)
    made = []
    for inputs, _, _ in tracked(loader, "testing", console):
        with torch.autocast(loaded.device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            logits = loaded.model(inputs.to(loaded.device))
        made.append(logits.float().softmax(1).cpu())
    return torch.cat(made)
