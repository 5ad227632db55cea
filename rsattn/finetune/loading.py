"""Load a trained model from a checkpoint, with everything needed to classify images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..cli.command import CommandError, why
from ..cli.images import as_rgb, load_image
from .checkpoint import damaged, read_checkpoint, refuse_misfit
from .dataset import Normalize, squared
from .models import build
from .options import Options, is_residual
from .run_folder import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """A trained model.

    Attributes:
        model: (B, 3, S, S) -> logits (B, classes), in evaluation mode, on `device`.
        classes: the class names in the order of the logits.
        image_size: S.
        transform: the path of an image file, or an image of Pillow's -> (3, S, S) float32 on the CPU, resized and
            normalized as in training; stack such tensors for `model`.
        residual: whether it has residual attention, which `record` needs.
        label: the name of the model with the settings of its residual attention.
        options: the options of its run.
        normalize: (3, S, S) from 0 to 1 -> normalized; a part of `transform`.
        device: of `model`.
        classifier: the name in `model` of its last linear layer.
        gates_at_start: the root mean square of every block's gate before it was trained.
        skipped: name of attention without residual, in a model that has it elsewhere -> reason.
        temperature: the factor by which the probabilities are softer than the softmax of the logits, fitted on the
            validation split; 1 where none was fitted.
    """

    model: nn.Module
    classes: tuple[str, ...]
    image_size: int
    transform: Callable[[str | Path | Image], Tensor]
    residual: bool
    label: str
    options: Options
    normalize: Normalize
    device: torch.device
    classifier: str
    gates_at_start: dict[str, float] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    temperature: float = 1.0

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, classes) of any floating-point dtype -> calibrated probabilities (B, classes) float32."""
        return (logits.float() / self.temperature).softmax(1)

    def __repr__(self) -> str:
        side = f"{self.image_size} x {self.image_size} pixels"
        return f"<TrainedModel {self.label}: {len(self.classes)} classes, {side}, on {self.device}>"


def load(
    checkpoint: Path,
    adjust: Callable[[nn.Module], object] | None = None,
    device: str | torch.device | None = None,
) -> TrainedModel:
    """Load a model from a checkpoint or a model.safetensors of `rsattn finetune`, or from a run's folder.

    Args:
        checkpoint: the file; or the folder, for its tested checkpoint, and without checkpoints its model.safetensors.
        adjust: a change to apply to the built model; checkpoints hold only weights and options.
        device: of the model; None for the first GPU, or the CPU without one.

    Raises:
        CommandError: there is no checkpoint, or it does not fit.
    """
    path = RunFolder(checkpoint).tested if checkpoint.is_dir() else checkpoint
    if not path.exists():
        what = f"{checkpoint} has no {path.relative_to(checkpoint)}" if checkpoint.is_dir() else f"there is no {path}"
        raise CommandError(
            f"{what}: expected the folder of a finished `rsattn finetune`, or a .ckpt or .safetensors file in it"
        )
    kept = read_checkpoint(path)
    options = kept.options
    try:
        built = build(options, len(kept.classes), with_weights=False)
    except (RuntimeError, MemoryError) as error:  # of damaged options
        raise damaged(path, f"its model cannot be built ({why(error)})") from None
    if adjust is not None:
        adjust(built.model)
    refuse_misfit(kept, built.model)
    built.model.load_state_dict(kept.weights)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    normalize = Normalize(kept.mean, kept.std)

    def transform(image: str | Path | Image) -> Tensor:
        from PIL.Image import Image

        if not isinstance(image, str | Path | Image):
            raise TypeError(
                f"expected the path of an image or an image of Pillow's, not {type(image).__name__}: "
                "PIL.Image.fromarray makes one of a NumPy array"
            )
        pixels = (
            as_rgb(image, options.window) if isinstance(image, Image) else load_image(Path(image), options.window)[0]
        )
        return normalize(squared(pixels, options.image_size, options.resize).float() / 255.0)

    return TrainedModel(
        built.model.eval().to(place),
        kept.classes,
        options.image_size,
        transform,
        is_residual(options),
        label(options, kept.gates_at_start),
        options,
        normalize,
        place,
        built.classifier,
        kept.gates_at_start,
        built.skipped,
        kept.temperature,
    )


def label(options: Options, gates_at_start: Mapping[str, float]) -> str:
    """A short description of the model, such as "resvit (induced, sample, tile, gate 0)".

    Args:
        gates_at_start: as in `TrainedModel`. The initial gate is left out where the gates came from a file.
    """
    if not is_residual(options):
        return options.model
    wide = ", full width" if options.full_width else ""
    start = options.init_values
    from_options = start is not None and all(_in_float32(start, size) for size in gates_at_start.values())
    gate = f", gate {start:g}" if from_options else ""
    return f"{options.model} ({options.norm}, {options.scope}, {options.merge}{wide}{gate})"


def _in_float32(start: float, size: float) -> bool:
    """Whether gates with this root mean square can all be `start`, rounded to float32."""
    return math.isclose(abs(start), size, rel_tol=1e-6, abs_tol=1e-45)
