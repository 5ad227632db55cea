"""The integers that count how many programs of a launch have arrived; see `select.py`.

They are zero between launches: the last program to arrive sets its entry back to zero. A new `torch.zeros` for every
forward pass would launch a second kernel only to fill it. Launches on one stream run one after another and share a
tensor; launches on two streams may overlap, so every stream has its own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from torch import Tensor

# 4 KiB: enough for every batch below 1024, so the tensor seldom grows.
LEAST_ENTRIES = 1024

_unused: dict[tuple[torch.device, int], Tensor] = {}


class Zeros:
    """At least `entries` int32 zeros, for kernels launched inside on the device's current stream, which leave zeros.

    Inside, nobody else gets the same tensor. After an exception nobody gets it again: what it holds is not known.
    (A class and not a generator, because it is entered at every forward pass.)
    """

    __slots__ = ("_key", "_tensor")

    def __init__(self, device: torch.device, entries: int) -> None:
        self._key: tuple[torch.device, int] | None = None
        stream = 0
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                # The graph may be replayed on another stream, beside launches on this one.
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
    """Zeros that outlive the call, made in a thread of their own.

    The calling thread may take its memory from a pool that is used again afterwards, as torch.compile's does while it
    warms up its CUDA graphs; another thread does not.
    """
    stream = torch.cuda.stream(torch.cuda.current_stream(device)) if device.type == "cuda" else nullcontext()

    def make() -> Tensor:
        with stream:
            return torch.zeros(entries, dtype=torch.int32, device=device)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()
