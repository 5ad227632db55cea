"""Packages that are installed but cannot be imported: named by the commands and by `rsattn info`, with what mends them.

The commands run as a user starts them, without the torchvision workaround of `tests/conftest.py`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rsattn.cli.info import EXTRAS
from rsattn.cli.packages import cause_of, faults_apart, is_installed, sentence, with_torchvision

NMS = "operator torchvision::nms does not exist"
PYTORCHS = "https://download.pytorch.org/whl"

Package = Callable[..., Path]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Install a package: its files, by name. Returns the folder that is on Python's path."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)

    def install(name: str, **files: str) -> Path:
        (site / f"{name}-1.2.dist-info").mkdir(parents=True)
        (site / f"{name}-1.2.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (site / name).mkdir()
        for file, text in {"__init__": "", **files}.items():
            (site / name / f"{file}.py").write_text(text)
        importlib.invalidate_caches()
        return site

    return install


def rsattn(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rsattn", *words],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def install_stand_ins(package: Package) -> None:
    """Nearly empty packages for `rsattn info` to import: the real ones take ten seconds. Two import torchvision."""
    for name in sorted({name for packages in EXTRAS.values() for name in packages} | {"timm"}):
        package(name, __init__="import torchvision" if name in ("lightning", "torchmetrics") else "")


def test_a_torchvision_that_does_not_fit_is_named_with_the_command_that_mends_it(
    package: Package, tmp_path: Path
) -> None:
    site = package("torchvision", __init__=f"raise RuntimeError({NMS!r})", version="__version__ = '0.19.1+cu000'\n")
    minor = int(torch.__version__.split(".")[1])
    said = (
        "lightning, torchmetrics cannot be imported: torchvision 0.19.1+cu000 is built for torch 2.4 (cu000) and does "
        f"not fit torch {torch.__version__}, which is installed ({NMS}): run `pip install --force-reinstall --no-deps "
        f"'torchvision==0.{minor + 15}.*'"
    )
    other = "or `pip uninstall torchvision`, unless you use timm, vit-pytorch or torchvision's models"
    command = rsattn(site, "finetune", "--out", str(tmp_path / "run"))
    assert command.returncode == 2
    assert command.stderr.startswith(f"rsattn finetune: {said}")
    assert other in command.stderr
    assert command.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
    install_stand_ins(package)
    info = rsattn(site, "info")
    assert (info.returncode, info.stderr) == (0, "")
    (line,) = (line for line in info.stdout.splitlines() if "torchvision" in line)
    assert line.startswith(f"rsattn finetune cannot run: {said}")
    assert other in line


def test_a_torchvision_that_fits_is_not_mentioned(package: Package) -> None:
    site = package("torchvision")
    install_stand_ins(package)
    info = rsattn(site, "info")
    assert "rsattn finetune can run: its packages are installed" in info.stdout
    assert f"({NMS})" not in info.stdout


@pytest.mark.parametrize(
    ("version", "fitting"),
    [
        ("2.13.0+cpu", f"'torchvision==0.28.*' --extra-index-url {PYTORCHS}/cpu"),
        ("2.12.1+cu130", f"'torchvision==0.27.*' --extra-index-url {PYTORCHS}/cu130"),
        ("2.10.0+rocm7.1", f"'torchvision==0.25.*' --extra-index-url {PYTORCHS}/rocm7.1"),
        ("2.13.0", "'torchvision==0.28.*'"),
        ("2.13.0a0+git1234567", "'torchvision==0.28.*'"),
        ("3.0.0", "torchvision"),
    ],
)
def test_torchvision_is_installed_for_the_pytorch_that_is_here(
    version: str, fitting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert with_torchvision("torchvision") == f"pip install {fitting}"
    assert with_torchvision("timm") == f"pip install timm {fitting}"


def test_the_package_at_fault_is_named_and_not_the_one_that_imports_it(package: Package) -> None:
    package("innermost", __init__="raise ImportError('several\\nlines: undefined symbol: x\\n')")
    package("outermost", __init__="try:\n    import innermost\nexcept ImportError as e: raise ValueError('no') from e")
    cause = imported("outermost")
    assert cause == (
        "innermost 1.2 is damaged, or does not fit another package (lines: undefined symbol: x): "
        "pip install --force-reinstall --no-deps innermost"
    )
    both = {"outermost": cause, "innermost": cause, "other": "its reason"}
    assert sentence(both) == (f"outermost, innermost cannot be imported: {cause}; other cannot be imported: its reason")


def test_a_package_without_what_it_needs_is_named(package: Package) -> None:
    package("incomplete", __init__="import no_such_package.part")
    assert imported("incomplete") == (
        "incomplete 1.2 needs no_such_package, which is not installed: pip install incomplete"
    )


def imported(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:
        return cause_of(name, error)
    pytest.fail(f"{name} can be imported")


def test_imports_that_end_python_or_print_do_not_end_info(package: Package) -> None:
    package("talks", __init__="print('hello')")
    package("raises", __init__="raise RuntimeError")
    package("exits", __init__="import os; os._exit(11)")
    package("follows", __init__="raise OSError('no such library')")
    assert faults_apart([]) == {}
    assert faults_apart(["talks", "raises", "exits", "follows"]) == {
        "raises": "raises 1.2 is damaged, or does not fit another package (RuntimeError): "
        "pip install --force-reinstall --no-deps raises",
        "exits": "its import ends Python with exit code 11: pip install --force-reinstall --no-deps exits",
        "follows": "follows 1.2 is damaged, or does not fit another package (no such library): "
        "pip install --force-reinstall --no-deps follows",
    }


def test_what_is_installed_is_found_without_an_import(package: Package) -> None:
    package("raises", __init__="raise RuntimeError")
    assert is_installed("raises")
    assert "raises" not in sys.modules
    assert not is_installed("no_such_package")
