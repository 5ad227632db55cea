"""Write checkpoints so that the last one is always complete."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ..cli.command import finished_file, writing


class CompleteCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, and then gives it the name of the old one.

    Lightning writes it into the folder of temporary files and moves it. From one disk to another, a move overwrites the
    old checkpoint piece by piece, so that a full disk or a killed process leaves none.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()  # of a full disk, `torch.save` to a file says only that the position is unexpected
        torch.save(checkpoint, content)
        with finished_file(Path(path)) as partial, writing(Path(path)):
            partial.write_bytes(content.getbuffer())
