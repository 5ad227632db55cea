"""backend="cuda" without a GPU: the kernels of csrc/cuda, compiled for the CPU with a model of the GPU's instructions.

csrc/README.md describes the model. It is compiled once for all tests, into build/, and again if a source has changed.
The environment variable CXXFLAGS adds compiler flags (`.ci/sanitize`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from rsattn.backends.base import Limits
from rsattn.backends.cuda import CudaBackend

ROOT = Path(__file__).parents[2]
# Shared memory of a block (CUDA C++ programming guide, table of compute capabilities).
SHARED_MEMORY = {"sm80": 163 * 1024, "sm86": 99 * 1024, "sm90": 227 * 1024}


@cache
def library() -> Path:
    """The compiled model. Without a compiler its tests are skipped with a hint how to get one."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("the model of a GPU needs a C++17 compiler (Debian, Ubuntu: apt install g++)")
    torch_folder = Path(torch.__file__).parent
    command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra"]
    command += ["-Wno-unknown-pragmas", "-Werror", *os.environ.get("CXXFLAGS", "").split()]
    command += ["-DRSATTN_MODEL", "-DTORCH_TARGET_VERSION=0x020a000000000000ULL", f"-isystem{torch_folder}/include"]
    sources = sorted((ROOT / "csrc").rglob("*.h")) + sorted((ROOT / "csrc" / "cuda").rglob("*.cpp"))
    content = hashlib.sha256("\n".join([*command, *(path.read_text() for path in sources)]).encode()).hexdigest()
    built = ROOT / "build" / f"cuda-model-{content[:16]}.so"
    built.parent.mkdir(exist_ok=True)
    with built.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may need it at once
        if not built.exists():
            source = ROOT / "csrc" / "cuda" / "model" / "model.cpp"
            unfinished = built.with_suffix(".unfinished")
            command += [str(source), "-o", str(unfinished), f"-L{torch_folder}/lib", "-ltorch_cpu"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            unfinished.rename(built)
    return built


@cache
def operators() -> Any:
    torch.ops.load_library(library())
    return torch.ops.rsattn_cuda_model


class CudaModel(CudaBackend):
    """The backend on CPU tensors, computing as that GPU would.

    `order`: the next thread among those that are ready: 0 the last, 1 the first, others random. Even: asynchronous
    instructions take effect at once; odd: as late as allowed.
    """

    limits = Limits(**{**vars(CudaBackend.limits), "devices": ("cpu",)})

    def __init__(self, architecture: str, order: int = 3, shared_memory: int | None = None) -> None:
        self.architecture = architecture
        self.order = order
        self.shared_memory = SHARED_MEMORY[architecture] if shared_memory is None else shared_memory

    @property
    def operators(self) -> Any:
        found = operators()
        found.configure(self.architecture == "sm90", self.shared_memory, self.order)
        return found

    def missing(self, device_type: str, index: int | None = None) -> list[str]:
        return []

    def launched(self) -> list[str]:
        """The launches of the last call, one line for each kernel."""
        return operators().launched().splitlines()
