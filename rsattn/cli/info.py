"""`rsattn info`: versions, devices, backends, and why a backend cannot run. It needs only torch."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator

import numpy
import torch

import rsattn

from ..backends.cpu import variants
from ..backends.cuda import VERIFIED
from ..backends.dispatch import BackendStatus, backends
from ..backends.extension import cuda_build
from ..bench.command import PACKAGES as BENCH_PACKAGES
from ..finetune.commands import EXPORT_PACKAGES
from ..finetune.commands import PACKAGES as FINETUNE_PACKAGES
from .packages import faults_apart, is_installed, sentence
from .versions import driver_version, triton_version

# Extra -> its packages. The extra finetune is that of compare, test, predict and `export --format torch` too.
EXTRAS = {
    "demo": ("matplotlib", "PIL", "pytorch_pretrained_vit", "rich", "scipy", "skimage"),
    "bench": BENCH_PACKAGES,
    "finetune": FINETUNE_PACKAGES,
    "export": (*FINETUNE_PACKAGES, *EXPORT_PACKAGES),
}
COMMANDS = {"export": "export --format onnx"}  # of an extra with another name
# Installed with models to patch; both stop working when PyTorch is replaced by another build.
OF_MODELS = ("timm", "torchvision")


def run() -> int:
    """Print everything; returns the exit code."""
    for line in lines():
        print(line)
    return 0


def lines() -> Iterator[str]:
    yield from _versions()
    yield ""
    yield from _devices()
    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        yield ""
        yield from _backends(device)
    yield ""
    yield from _commands()


def _versions() -> Iterator[str]:
    yield f"rsattn   {rsattn.__version__}"
    system = f"{platform.system()} {platform.machine()}"
    yield f"python   {platform.python_version()} on {system}, {sys.executable}"
    yield f"torch    {torch.__version__}"
    yield f"numpy    {numpy.__version__}"
    yield f"triton   {triton_version() or 'not installed'}"
    yield f"CUDA     {_cuda_versions()}"
    yield f"CUDA C++ {_cuda_kernels()}"


def _cuda_versions() -> str:
    if torch.version.hip:
        built = f"none, this torch is built for ROCm {torch.version.hip}"
    else:
        built = torch.version.cuda or "none, this torch is built for CPUs only"
    driver = driver_version()
    return f"{built}, NVIDIA driver {driver}" if driver else f"{built}, no NVIDIA driver found"


def _cuda_kernels() -> str:
    """The architectures that the kernels of backend="cuda" are compiled for, and those they are verified on."""
    build = cuda_build()
    if build is None:
        return "kernels not compiled: rsattn was installed from a wheel, or without a suitable nvcc"
    version, architectures = build.split()
    names = ", ".join(f"sm_{architecture}" for architecture in architectures.split(";"))
    verified = ", ".join(f"sm_{major}{minor}" for major, minor in sorted(VERIFIED))
    return f"kernels compiled by CUDA {version} for {names}; verified on {verified or 'no architecture yet'}"


def _devices() -> Iterator[str]:
    yield "devices"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield (
            f"  cuda:{index}   {gpu.name}, compute capability {gpu.major}.{gpu.minor}, "
            f"{gpu.total_memory / 2**30:.0f} GiB"
        )
    threads = torch.get_num_threads()
    used = "1 thread" if threads == 1 else f"{threads} threads"
    yield f"  cpu      {os.cpu_count()} logical cores, torch uses {used}{_instructions()}"


def _instructions() -> str:
    """The instruction set that the compiled kernels use, where they can run."""
    return f", compiled kernels use {variants()[0]}" if backends("cpu")["cpu"].available else ""


def _backends(device: str) -> Iterator[str]:
    yield f"backends for {device} tensors, in the order of preference"
    statuses = backends(device)
    default = next((name for name, status in statuses.items() if status.automatic), None)
    for name, status in statuses.items():
        yield f"  {name:10} {_verdict(name, status, default)}"


def _verdict(name: str, status: BackendStatus, default: str | None) -> str:
    if not status.available:
        return f"cannot run: {'; '.join(status.reasons)}"
    if name == default:
        use = "runs; backend=None uses it first"
    elif status.automatic:
        use = "runs; backend=None uses it for calls that the backends above do not support"
    else:
        use = f"runs only with backend={name!r}{'; ' + status.caveat if status.caveat else ''}"
    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in status.dtypes)
    head_dim = "any head_dim" if status.max_head_dim is None else f"head_dim up to {status.max_head_dim}"
    return f"{use} ({dtypes}; {head_dim})"


def _commands() -> Iterator[str]:
    """What each command lacks. The imports take seconds, so they are tried last."""
    every = {package for packages in EXTRAS.values() for package in packages}
    missing = {package for package in every if not is_installed(package)}
    causes = faults_apart([*sorted(every - missing), *filter(is_installed, OF_MODELS)])
    told: set[str] = set()
    for extra, packages in EXTRAS.items():
        command = COMMANDS.get(extra, extra)
        lacking = [package for package in packages if package in missing]
        broken = {package: causes[package] for package in packages if package in causes}
        if lacking:
            why = f"{', '.join(lacking)} not installed (pip install 'rsattn[{extra}]')"
            yield f"rsattn {command} cannot run: {why}"
        elif broken and set(broken.values()) <= told:
            yield f"rsattn {command} cannot run, for the same reason"
        elif broken:
            yield f"rsattn {command} cannot run: {sentence(broken)}"
            told |= set(broken.values())
        else:
            yield f"rsattn {command} can run: its packages are installed"
    if others := {name: causes[name] for name in OF_MODELS if name in causes and causes[name] not in told}:
        yield sentence(others)
