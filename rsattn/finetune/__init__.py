"""Fine-tuning: `rsattn finetune`, `compare` and `predict`, and `load` for Python.

Needs `pip install 'rsattn[finetune]'`.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .loading import TrainedModel

__all__ = ["load"]


def load(run: str | PathLike[str], device: str | torch.device | None = None) -> TrainedModel:
    """The model of a finished run of `rsattn finetune`.

    Residual attention is part of it: `rsattn.record` shows its heads, and its weights can be trained further.

    Args:
        run: the folder of the run, for the weights that the run tested; or a .ckpt or .safetensors file in it.
        device: where to put the model; None for the first GPU, or the CPU without one.

    Returns:
        TrainedModel: the model in evaluation mode, the transform that makes its inputs, and the names of the classes.

    Raises:
        ValueError: there is no checkpoint, or it is damaged; or a package of the model is not installed.

    Example:
        >>> import rsattn.finetune
        >>> trained = rsattn.finetune.load("rsattn-runs/digits-resvit-0")  # of `rsattn finetune`
        >>> image = trained.transform("three.png")
        >>> image.shape, image.dtype
        (torch.Size([3, 32, 32]), torch.float32)
        >>> trained.model(image[None].to(trained.device)).shape
        torch.Size([1, 10])
        >>> trained.classes
        ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
    """
    from ..cli.command import CommandError, require

    try:
        require("function rsattn.finetune.load", "finetune", "PIL", "rich")
        from .loading import load as load_checkpoint

        return load_checkpoint(Path(run), device=device)
    except CommandError as error:
        raise ValueError(str(error)) from None
