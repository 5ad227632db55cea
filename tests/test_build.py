"""What is installed: the Python files, and the CUDA kernels where there is an nvcc that can compile them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rsattn

ROOT = Path(__file__).parents[1]
needs_cmake = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("g++") is None,
    reason="needs cmake and g++ (Debian, Ubuntu: apt install cmake g++)",
)
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs CUDA's nvcc on PATH")


def test_type_checkers_are_told_that_there_are_types() -> None:
    assert Path(rsattn.__file__).with_name("py.typed").is_file()


def configure(folder: Path, **environment: str) -> tuple[str, str]:
    """What CMake says, and the commands it would build with; it has to succeed whatever becomes of CUDA."""
    command = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}", "-G"]
    done = subprocess.run(
        [*command, "Unix Makefiles"], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    rules = "\n".join(path.read_text() for path in folder.rglob("build.make"))
    return done.stdout + done.stderr, rules


@needs_cmake
@needs_nvcc
def test_two_architectures_and_ptx_of_the_first(tmp_path: Path) -> None:
    _, rules = configure(tmp_path, RSATTN_CUDA_ARCHS="")
    for code in ("arch=compute_80,code=sm_80", "arch=compute_90a,code=sm_90a", "arch=compute_80,code=compute_80"):
        assert code in rules
    assert "-DRSATTN_HAS_SM90A=1" in rules


@needs_cmake
@needs_nvcc
def test_the_architectures_asked_for(tmp_path: Path) -> None:
    _, rules = configure(tmp_path, RSATTN_CUDA_ARCHS="86;89")
    for code in ("arch=compute_86,code=sm_86", "arch=compute_89,code=sm_89", "arch=compute_86,code=compute_86"):
        assert code in rules
    assert "sm_80" not in rules
    assert "-DRSATTN_HAS_SM90A=0" in rules


@needs_cmake
@needs_nvcc
def test_one_that_this_nvcc_does_not_know_costs_only_the_cuda_kernels(tmp_path: Path) -> None:
    said, rules = configure(tmp_path, RSATTN_CUDA_ARCHS="80;99999")
    assert 'backend="cuda" is left out' in said
    assert "cannot compile for" in said
    assert "kernels.cu" not in rules
    assert "variant.cpp" in rules


@needs_cmake
def test_none(tmp_path: Path) -> None:
    _, rules = configure(tmp_path, RSATTN_CUDA_ARCHS="none")
    assert "kernels.cu" not in rules
    assert "variant.cpp" in rules


@needs_cmake
def test_an_nvcc_that_is_named_and_broken(tmp_path: Path) -> None:
    said, rules = configure(tmp_path, CUDACXX="/bin/false", RSATTN_CUDA_ARCHS="80")
    assert 'backend="cuda" is left out: /bin/false cannot compile for 80' in " ".join(said.split())
    assert "variant.cpp" in rules
