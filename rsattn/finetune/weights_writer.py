"""Write model.safetensors: apart from weights_file.py, because a checkpoint is read before there is a model."""

from __future__ import annotations

from pathlib import Path

from ..cli.command import finished_file, writing
from .loading import TrainedModel
from .metadata import metadata_of


def write_weights(path: Path, loaded: TrainedModel) -> None:
    """Write the weights of a model, under their names in it; an earlier file stays until the new one is complete."""
    from safetensors.torch import save

    # Copies, because safetensors refuses tensors that share memory.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in loaded.model.state_dict().items()}
    content = save(tensors, {"format": "pt", **metadata_of(loaded)})
    with finished_file(path) as partial, writing(path):
        partial.write_bytes(content)
