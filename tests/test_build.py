"""What is installed: the Python files, and the CUDA kernels where there is an nvcc that can compile them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
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


def test_a_wheel_without_a_compiler_has_every_python_file(tmp_path: Path) -> None:
    """And none of the benchmarks' results, tests or figures."""
    pytest.importorskip("scikit_build_core", reason="needs the build backend: pip install scikit-build-core")
    code = (
        "import sys; from scikit_build_core.build import build_wheel; "
        "build_wheel(sys.argv[1], {'wheel.cmake': 'false', 'build-dir': sys.argv[1] + '/build'})"
    )
    built = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("rsattn-*-py3-none-any.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    folders = {"rsattn": ROOT / "rsattn", "rsattn/kernels": ROOT / "kernels"}
    wanted = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in folders.items()
        for path in folder.rglob("*.py")
    }
    wanted |= {"rsattn/py.typed", "rsattn/kernels/configs.json", "rsattn/bench/command.py"}
    assert wanted <= names
    assert not any(name.startswith(("rsattn/bench/results/", "rsattn/bench/test_")) for name in names)


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
