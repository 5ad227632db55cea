"""The free memory of the GPU, or of this machine and of the container around this process."""

from __future__ import annotations

import os
from pathlib import Path

import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Free memory of the first GPU, if there is one, else of this machine, in bytes.

    The memory of the machine includes swap, and the memory limit of a container applies.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return min([_memory_of_machine(), *_left_in_cgroups()])


def _memory_of_machine() -> int:
    table = _numbers(PROC / "meminfo")
    if "MemAvailable" in table:
        return 1024 * (table["MemAvailable"] + table.get("SwapFree", 0))
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # the size is unknown, so refuse nothing
        return 2**63 - 1


def _left_in_cgroups() -> list[int]:
    """The free memory below the limit of each control group of this process, version 1 or 2."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = CGROUPS, ("memory.max", "memory.current", "file")
        elif "memory" in controllers.split(","):
            root, names = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
        else:
            continue
        # In a container, the path may be that of the host: skip groups that are not visible.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                left += _left_in(folder, *names)
    return left


def _left_in(folder: Path, limit: str, used: str, cache: str) -> list[int]:
    """The free memory of one group; it includes file pages, which the kernel frees when memory is short."""
    try:
        most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
    except (OSError, ValueError):
        return []
    if not most.isdecimal():  # "max"
        return []
    return [max(int(most) - now + _numbers(folder / "memory.stat").get(cache, 0), 0)]


def _numbers(path: Path) -> dict[str, int]:
    """The lines with a name and a number, such as `MemAvailable: 1234 kB`; empty where the file cannot be read."""
    try:
        words = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}
