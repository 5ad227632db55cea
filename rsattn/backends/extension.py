"""The compiled extension rsattn/_C.so, loaded when a call first considers a backend that lives in it."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

import torch

NOT_BUILT = (
    "the compiled extension rsattn/_C.so is not installed: no wheel for this platform has it, or pip found no C++17 "
    "compiler, or the build failed. Install a compiler (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
    "macOS: xcode-select --install), then build rsattn from source with pip install -v --force-reinstall --no-deps "
    "--no-binary rsattn, which shows the compiler's output"
)


@cache
def load() -> str:
    """Load the extension; returns why it cannot be used, or an empty string when it is loaded.

    The environment variable RSATTN_EXTENSION is the path of another build, such as one with sanitizers
    (`.ci/sanitize`).
    """
    found = importlib.util.find_spec("rsattn._C")
    path = os.environ.get("RSATTN_EXTENSION") or (found.origin if found else None)
    if path is None:
        return NOT_BUILT
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path} cannot be loaded into PyTorch {torch.__version__}, build it again: {error.__cause__ or error}"
    return ""


def operators() -> Any:
    """The operators `rsattn_C::`, loaded on first use.

    Raises:
        RuntimeError: the extension cannot be used; the message says why.
    """
    if reason := load():
        raise RuntimeError(reason)
    return torch.ops.rsattn_C


@cache
def cuda_build() -> str | None:
    """The CUDA version and architectures of the GPU kernels, such as "13.0 80;90a"; None where there are none."""
    if load() or not hasattr(torch.ops.rsattn_C, "cuda_build"):
        return None
    return str(torch.ops.rsattn_C.cuda_build())
