"""The description of the machine and the code in a result file."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import rsattn
from rsattn.backends import cpu
from rsattn.cli.versions import driver_version, triton_version


def about(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions, threads and commit."""
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "kind": device.type,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version(),
        "rsattn": rsattn.__version__,
        "commit": _commit(),
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        facts |= {"driver": driver_version(), "cuda": torch.version.cuda, "capability": f"{major}.{minor}"}
    else:
        compiled = rsattn.backends("cpu")["cpu"].available
        facts |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
        facts |= {"instruction set": cpu.variants()[0] if compiled else "no compiled kernels"}
    return facts


def folder_name(device: str) -> str:
    """The folder name for a device."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def processor() -> str:
    """The name of the CPU, with family and model, because the name alone is vague on rented machines."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.*)$", text, re.MULTILINE))
    name = fields.get("model name", platform.machine())
    family = fields.get("cpu family")
    return f"{name}, family {family} model {fields.get('model')}" if family else name


def _commit() -> str:
    def git(*words: str) -> str:
        try:
            done = subprocess.run(
                ["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
            )
        except OSError:
            return ""
        return done.stdout.strip()

    if not git("ls-files", Path(__file__).name):
        return ""  # installed from a wheel
    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
