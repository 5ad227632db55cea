"""The logits of a trained model for the images of a split."""

from __future__ import annotations

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from ..cli.terminal import tracked
from .dataset import ImageDataset
from .loading import TrainedModel
from .options import Options


@torch.inference_mode()
def logits_of(loaded: TrainedModel, images: ImageDataset, options: Options, words: str, console: Console) -> Tensor:
    """(n, classes) float32 on the CPU, in the order of `images`.

    Args:
        options: the batch size is that of training, for scope="batch"; and the precision.
        words: what the progress bar says.
    """
    loader = DataLoader(images, batch_size=options.batch_size, num_workers=options.workers)
    made = []
    for inputs, _, _ in tracked(loader, words, console):
        with torch.autocast(loaded.device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            logits = loaded.model(inputs.to(loaded.device))
        made.append(logits.float().cpu())
    return torch.cat(made)
