"""One run of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .contents import read_json
from .options import Options
from .run_folder import RunFolder

AGAIN = "delete it, and repeat the command to test that run again"
METRICS = {
    "scores": {"macro": {"precision": float, "recall": float, "f1": float}},
    "model": {"parameters": int},
    "seconds": float,
}


@dataclass(frozen=True)
class Run:
    """A model with a seed, or with a fold of a cross-validation, in its own folder; `seed` is that of both."""

    label: str
    seed: int
    folder: RunFolder
    options: Options

    @property
    def finished(self) -> bool:
        return self.folder.metrics.exists() and self.folder.report.exists()  # a run writes these files last

    @property
    def metrics(self) -> dict[str, Any]:
        return read_json(self.folder.metrics, METRICS, AGAIN)

    @property
    def name(self) -> str:
        """Such as "vit, seed 3"."""
        return f"{self.label}, {'fold' if self.options.folds else 'seed'} {self.seed}"

    @property
    def data(self) -> dict[str, Any]:
        """The content of data.json; empty where there is none."""
        return read_json(self.folder.data, {}, AGAIN) if self.folder.data.exists() else {}

    @property
    def checksums(self) -> dict[str, str]:
        """The checksums of the run's images and of its split.csv; empty for runs of earlier versions."""
        checksums: dict[str, str] = self.data.get("checksums", {})
        return checksums
