"""Write checkpoints so that the last one is always complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from .checkpoint import write_checkpoint


class CompleteCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, and then gives it the name of the old one.

    Lightning writes it into the folder of temporary files and moves it. From one disk to another, a move overwrites the
    old checkpoint piece by piece, so that a full disk or a killed process leaves none.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, Path(path))
