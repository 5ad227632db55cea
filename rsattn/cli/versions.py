"""Versions for `rsattn info` and the result files of benchmarks."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess


def triton_version() -> str | None:
    for distribution in ("triton", "pytorch-triton", "pytorch-triton-rocm"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def driver_version() -> str | None:
    """The driver version that nvidia-smi reports; None where that command is missing or fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return answer[0] if answer else None
