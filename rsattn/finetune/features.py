"""The features of a frozen model, computed once per image instead of in each epoch."""

from __future__ import annotations

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ..cli.terminal import tracked
from .dataset import Sample
from .devices import this_device
from .models import Built
from .options import Options, is_residual


def can_be_kept(options: Options) -> bool:
    """Whether the features stay the same during training, because neither the weights nor the images change."""
    return options.freeze and options.augment == "none" and not (is_residual(options) and options.full_width)


@torch.no_grad()  # in inference_mode, parameters that move to a GPU could not be trained afterwards
def features(built: Built, images: Dataset[Sample], options: Options, console: Console, what: str) -> TensorDataset:
    """(features (n, D), labels (n,), indices (n,)) of `images`, in their order."""
    device = this_device()
    training = built.model.training
    model = built.model.eval().to(device)
    classifier = model.get_submodule(built.classifier)
    model.set_submodule(built.classifier, nn.Identity())
    loader = DataLoader(images, batch_size=max(options.batch_size, 32), num_workers=options.workers)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        for inputs, labels, indices in tracked(loader, what, console):
            with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"):
                made: Tensor = model(inputs.to(device))
            columns.append((made.float().cpu(), labels, indices))
    finally:
        model.set_submodule(built.classifier, classifier)
        model.train(training)  # Lightning does not set the mode of the model
    made, labels, indices = (torch.cat(column) for column in zip(*columns))
    return TensorDataset(made, labels, indices)
