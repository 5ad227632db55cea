"""Peak memory of one call: the most it uses at once beyond what was in use before.

On a GPU, PyTorch's allocator reports it. On a CPU, Linux reports the resident pages of the process, which include the
memory of any allocator. Other systems are not measured.
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
    """Bytes, or None if they cannot be measured."""
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
    """Return freed memory to the system: memory that the allocator keeps would hide what the next call uses."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{STATUS} has no {field}")
    return int(found[1])
