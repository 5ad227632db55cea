"""The modules of bench/paper, which is no installed package."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def of_the_experiment(name: str) -> ModuleType:
    """The root stays off the path: `kernels`, a package's folder, lies there too."""
    sys.path.append(str(ROOT))
    try:
        return importlib.import_module(f"bench.paper.{name}")
    finally:
        sys.path.remove(str(ROOT))
