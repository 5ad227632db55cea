"""Why an installed package cannot be imported, and the command that mends it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import torch


def is_installed(package: str) -> bool:
    """Whether the package can be found, without importing it."""
    return sys.modules.get(package) is not None or importlib.util.find_spec(package) is not None


def faults_apart(packages: Iterable[str]) -> dict[str, str]:
    """The cause for each of these packages that cannot be imported.

    The imports are tried in a process of their own, because a compiled package that does not fit can end its process.
    """
    asked = list(packages)
    if not asked:
        return {}
    tried = subprocess.run(
        [sys.executable, "-P", "-m", __name__, *asked],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        check=False,
    )
    answers = dict(line.split("\t", 1) for line in tried.stdout.splitlines() if line.split("\t")[0] in asked)
    causes = {package: cause for package, cause in answers.items() if cause}
    silent = [package for package in asked if package not in answers]
    if silent:
        causes[silent[0]] = f"its import ends Python with exit code {tried.returncode}: {_reinstall(silent[0])}"
        causes |= faults_apart(silent[1:])
    return causes


def sentence(causes: Mapping[str, str]) -> str:
    """What cannot be imported, and why; one clause for each cause."""
    groups: dict[str, list[str]] = {}
    for package, cause in causes.items():
        groups.setdefault(cause, []).append(package)
    return "; ".join(f"{', '.join(names)} cannot be imported: {cause}" for cause, names in groups.items())


def cause_of(package: str, error: BaseException) -> str:
    """Why the import of `package` raised `error`: the package at fault, the error's last line, and what to do."""
    while error.__cause__ is not None:
        error = error.__cause__
    culprit = _culprit(error) or package
    if isinstance(error, ModuleNotFoundError) and error.name and not _is_found(error.name):
        return f"{_named(culprit)} needs {error.name}, which is not installed: pip install {_distribution(culprit)}"
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    if culprit == "torchvision":
        return _misfit_of_torchvision(reason)
    return f"{_named(culprit)} is damaged, or does not fit another package ({reason}): {_reinstall(culprit)}"


def with_torchvision(package: str) -> str:
    """The command that installs torchvision, or a package that needs it, beside the PyTorch that is here.

    Without the version pip would take the newest torchvision, and with it another PyTorch.
    """
    index = _index_of_pytorch()
    names = _torchvision() if package == "torchvision" else f"{package} {_torchvision()}"
    return f"pip install {names}{f' --extra-index-url {index}' if index else ''}"


def _culprit(error: BaseException) -> str | None:
    """The innermost package whose import failed, which Python removed from `sys.modules`."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame in reversed(frames)]
    return next((name for name in names if name and name not in sys.modules), None)


def _is_found(module: str) -> bool:
    return is_installed(module.partition(".")[0])


def _misfit_of_torchvision(reason: str) -> str:
    version = _version_of_torchvision()
    number, _, build = version.partition("+")
    built = f"2.{int(number.split('.')[1]) - 15}" if re.match(r"0\.\d+\.", number) else "another version"
    index = _index_of_pytorch()
    return (
        f"torchvision {version} is built for torch {built}{f' ({build})' if build else ''} and does not fit torch "
        f"{torch.__version__}, which is installed ({reason}): run `pip install --force-reinstall --no-deps "
        f"{_torchvision()}{f' --index-url {index}' if index else ''}`; or `pip uninstall torchvision`, unless you use "
        "timm, vit-pytorch or torchvision's models (alexnet, resnet18)"
    )


def _version_of_torchvision() -> str:
    """The version with its build, such as 0.28.0+cu130, which only a file of the package has."""
    spec = importlib.util.find_spec("torchvision")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    text = file.read_text(encoding="utf-8") if file and file.exists() else ""
    found = re.search(r"^__version__ = ['\"](.+)['\"]", text, re.MULTILINE)
    return found[1] if found else _version("torchvision")


def _torchvision() -> str:
    """The torchvision for the PyTorch that is here: 0.28 for 2.13, 0.29 for 2.14 and so on."""
    major, minor = torch.__version__.split(".")[:2]
    return f"'torchvision==0.{int(minor) + 15}.*'" if major == "2" else "torchvision"


def _index_of_pytorch() -> str:
    """PyTorch's own index for the build that is here; empty for a build that does not name itself."""
    build = torch.__version__.partition("+")[2]
    return f"https://download.pytorch.org/whl/{build}" if re.fullmatch(r"cpu|xpu|cu\d+|rocm[\d.]+", build) else ""


def _named(package: str) -> str:
    return f"{_distribution(package)} {_version(package)}".strip()


def _reinstall(package: str) -> str:
    return f"pip install --force-reinstall --no-deps {_distribution(package)}"


def _distribution(package: str) -> str:
    """The name for pip of an installed package, such as scikit-image for skimage."""
    return next(iter(metadata.packages_distributions().get(package, ())), package)


def _version(package: str) -> str:
    try:
        return metadata.version(_distribution(package))
    except metadata.PackageNotFoundError:
        return ""


def _answers(packages: Iterable[str]) -> Iterator[str]:
    """A line for each package: its name, a tab, and the cause if it cannot be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # anything can be raised
            yield f"{package}\t{cause_of(package, error)}"
        else:
            yield f"{package}\t"


if __name__ == "__main__":
    for answer in _answers(sys.argv[1:]):
        print(answer, flush=True)
