"""The free memory: that of the machine, and the limits of containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsattn.finetune import available_memory as module
from rsattn.finetune.available_memory import available_memory

pytestmark = pytest.mark.usefixtures("on_a_cpu")

MEMINFO = "MemTotal: 9000 kB\nMemAvailable: 5000 kB\nSwapFree: 1000 kB\n"
GROUPS: dict[str, tuple[str, dict[str, str], int]] = {
    "none": ("", {}, 6000 * 1024),
    "version 2, without a limit": (
        "0::/job",
        {"job/memory.max": "max", "job/memory.current": "7", "memory.current": "7"},
        6000 * 1024,
    ),
    "version 2, with files in memory": (
        "0::/job/step",
        {"job/memory.max": "3000000", "job/memory.current": "2500000", "job/memory.stat": "anon 5\nfile 400000\n"},
        900_000,
    ),
    "version 1, from outside": (
        "9:cpu:/\n8:memory:/host/job",
        {"memory/memory.limit_in_bytes": "2000000", "memory/memory.usage_in_bytes": "1500000"},
        500_000,
    ),
    "over its limit": ("0::/", {"memory.max": "10", "memory.current": "20"}, 0),
}


@pytest.mark.parametrize(("groups", "files", "left"), GROUPS.values(), ids=GROUPS)
def test_a_containers_limit_counts(
    groups: str, files: dict[str, str], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROC", tmp_path / "proc")
    monkeypatch.setattr(module, "CGROUPS", tmp_path / "cgroup")
    written = {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups, **{f"cgroup/{n}": t for n, t in files.items()}}
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n" if text else "")
    assert available_memory() == left


def test_there_is_some_memory_here() -> None:
    assert 2**20 < available_memory() < 2**62
