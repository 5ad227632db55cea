"""Resume from a checkpoint whose folder has moved since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint


class MovableCheckpoint(ModelCheckpoint):
    """Finds the files that it kept in its folder, also where the folder had another path when it kept them.

    `ModelCheckpoint` forgets its best score where the path differs (Lightning 2.6). The next epoch would then replace
    the best one. The path differs after the folder of the run was moved, and after --lr auto.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None
        folder = Path(self.dirpath)

        def here(path: str) -> str:
            return path and str(folder / Path(path).name)

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        kept = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": kept, "dirpath": self.dirpath})
