"""`case`: every model of every library, from the files library_*.py beside this one.

`fresh_case`: those that take fresh heads. `gpu_case`: all of them, where there is a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest
import torch

# Library -> how it comes here.
LIBRARIES = {
    "dinov2": "pip install --no-deps dinov2==0.0.1.dev2",
    "monai": "pip install monai",
    "timm": "pip install -e '.[test]'",
    "torch": "",
    "torchvision": "pip install -e '.[test]'",
    "transformers": "pip install 'transformers>=5.18'",
    "vit_pytorch": "pip install vit-pytorch",
}


def _installed(library: str) -> bool:
    """Without importing it. The newest dinov2 on PyPI is empty."""
    spec = importlib.util.find_spec(library)
    if library != "dinov2" or spec is None:
        return spec is not None
    return any((Path(folder) / "layers").is_dir() for folder in spec.submodule_search_locations or ())


# A library that is not here is reported by its cases; its own tests could not even be collected.
collect_ignore = [f"test_{library}_attention.py" for library in LIBRARIES if not _installed(library)]
if not all(map(_installed, ("monai", "timm", "torchvision", "transformers"))):
    collect_ignore.append("test_windows.py")


def _cases() -> list[object]:
    parameters: list[object] = []
    for library, how in LIBRARIES.items():
        if not _installed(library):
            skip = pytest.mark.skip(reason=f"{library} is not installed; {how}")
            parameters.append(pytest.param(None, id=library, marks=skip))
        else:
            module = importlib.import_module(f"library_{library}")
            parameters.extend(pytest.param(case, id=case.name) for case in module.CASES)
    return parameters


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", _cases())
    if "fresh_case" in metafunc.fixturenames:
        metafunc.parametrize("fresh_case", [p for p in _cases() if p.values[0] is None or p.values[0].fresh])
    if "gpu_case" in metafunc.fixturenames:
        without = pytest.param(None, id="no-gpu", marks=pytest.mark.skip(reason="needs a CUDA GPU; run it on one"))
        metafunc.parametrize("gpu_case", _cases() if torch.cuda.is_available() else [without])
