"""Peak memory of one call: what it needs at its fullest beyond what was there before.

On a GPU PyTorch's allocator counts. On a CPU Linux does, by the resident pages of the process, so that whatever a
kernel takes from anywhere is seen; elsewhere nothing is measured.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5), clear_refs


def peak(call: Callable[[int], object], device: torch.device) -> int | None:
    """Bytes, or None where they cannot be counted."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(0)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        _give_back()
        CLEAR.write_text(RESET_PEAK)
        before = _kilobytes("VmRSS")
        call(0)
        return max(0, 1024 * (_kilobytes("VmHWM") - before))
    except OSError:
        return None


def _give_back() -> None:
    """Hand freed memory to the system: what the allocator keeps would hide what the next call takes."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{STATUS} has no {field}")
    return int(found[1])
