"""What files of a trained model say about it, as text: model.safetensors, and the files of `rsattn export`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import rsattn

if TYPE_CHECKING:
    from .loading import TrainedModel

NOTICE = "For research. Not for diagnosis."
PATHS = ("out", "data", "weights", "groups")  # options that can be paths


def metadata_of(loaded: TrainedModel) -> dict[str, str]:
    """Everything that turns the weights into predictions, in strings; lists and numbers are JSON.

    Returns:
        classes: the names in the order of the outputs.
        image_size: S, in pixels.
        resize: how an image that is not square becomes square, see `Options`.
        window: its center and width, for gray images with more than 8 bits, or null; see `Options`.
        mean, std: of the three channels, for normalization.
        temperature: the logits are divided by it before the softmax.
        model: the name with the settings of the residual attention.
        options: the options of the run, without folders.
        gates_at_start: as in `TrainedModel`.
        rsattn: the version that wrote the file.
        notice: a sentence on the use.
    """
    return {
        "classes": json.dumps(loaded.classes),
        "image_size": str(loaded.image_size),
        "resize": loaded.options.resize,
        "window": json.dumps(loaded.options.window),
        **{name: json.dumps(values) for name, values in loaded.normalize.described().items()},
        "temperature": json.dumps(loaded.temperature),
        "model": loaded.label,
        "options": json.dumps(without_folders(asdict(loaded.options))),
        "gates_at_start": json.dumps(loaded.gates_at_start),
        "rsattn": rsattn.__version__,
        "notice": NOTICE,
    }


def without_folders(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a run, with only the last part of every path: who reads the file has other folders."""
    return {name: base_name(value) if value and name in PATHS else value for name, value in options.items()}


def base_name(path: str) -> str:
    """The last part of a path; that of the working directory for "."."""
    return os.path.basename(os.path.abspath(path))
