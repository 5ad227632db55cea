"""The integers that count the programs of a launch that have arrived; see `select.py`.

They are zero between launches, because the last program to arrive sets its entry back to zero. A new `torch.zeros` for
every forward pass would launch a second kernel to fill it. Launches on one stream run one after another and share a
tensor. Launches on two streams may overlap, so each stream has its own tensor.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from torch import Tensor

# 4 KiB, enough for a batch below 1024, so the tensor rarely grows.
LEAST_ENTRIES = 1024

_unused: dict[tuple[torch.device, int], Tensor] = {}


class Zeros:
    """A context with at least `entries` int32 zeros, for kernels that are launched on the device's current stream.

    The kernels must leave zeros. While the context is open, no other caller gets the tensor. After an exception the
    tensor is discarded, because its contents are unknown. (This is a class and not a generator because every forward
    pass enters it.)
    """

    __slots__ = ("_key", "_tensor")

    def __init__(self, device: torch.device, entries: int) -> None:
        self._key: tuple[torch.device, int] | None = None
        stream = 0
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                # The graph may be replayed on another stream at the same time as launches on this one.
                self._tensor = torch.zeros(entries, dtype=torch.int32, device=device)
                return
            stream = torch._C._cuda_getCurrentRawStream(device.index)
        self._key = device, stream
        tensor = _unused.pop(self._key, None)
        if tensor is None or tensor.numel() < entries:
            tensor = _new(device, max(entries, LEAST_ENTRIES))
        self._tensor = tensor

    def __enter__(self) -> Tensor:
        return self._tensor

    def __exit__(self, failure: type[BaseException] | None, *details: object) -> None:
        if failure is None and self._key is not None:
            _unused[self._key] = self._tensor


def _new(device: torch.device, entries: int) -> Tensor:
    """Zeros that outlive the call, allocated in another thread.

    The calling thread may allocate from a pool that is reused later, as torch.compile does while it warms up CUDA
    graphs. Another thread does not use that pool.
    """
    stream = torch.cuda.stream(torch.cuda.current_stream(device)) if device.type == "cuda" else nullcontext()

    def make() -> Tensor:
        with stream:
            return torch.zeros(entries, dtype=torch.int32, device=device)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()
