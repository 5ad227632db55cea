"""Which backend does a call: the named one or an error, the fastest that can otherwise, and why not the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..call import Call
from .base import Backend
from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend
from .triton import TritonBackend

# Fastest first: `backend=None` takes the first that can do the call.
BACKENDS: dict[str, Backend] = {b.name: b for b in (CudaBackend(), TritonBackend(), CpuBackend(), ReferenceBackend())}


class BackendError(RuntimeError):
    """No backend, or not the named one, can do the call; the message lists every reason."""


@dataclass(frozen=True)
class BackendStatus:
    """What `rsattn.backends` says of one backend.

    Attributes:
        available: whether it can run on this machine.
        reasons: why not, a sentence each; empty when it can.
        automatic: whether `backend=None` may choose it.
        dtypes: the dtypes it takes.
        max_head_dim: the widest head it takes; None for any.
        caveat: what whoever asks for it by name should know; mostly empty.
    """

    available: bool
    reasons: tuple[str, ...]
    automatic: bool
    dtypes: tuple[torch.dtype, ...]
    max_head_dim: int | None
    caveat: str = ""


def backends(device: torch.device | str | None = None) -> dict[str, BackendStatus]:
    """What can run here and, for the rest, why not.

    Args:
        device: the device asked about; default: the GPU when there is one, else the CPU.

    Returns:
        name -> `BackendStatus`, fastest first, the order in which `backend=None` tries them.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, index = torch.device(device).type, torch.device(device).index
    absent = kind == "cuda" and index is not None and index >= torch.cuda.device_count()
    found = {}
    for name, backend in BACKENDS.items():
        reasons = (f"there is no {device}",) if absent else tuple(backend.missing(kind, index))
        found[name] = BackendStatus(
            available=not reasons,
            reasons=reasons,
            automatic=not reasons and backend.automatic(kind, index),
            dtypes=backend.limits.dtypes,
            max_head_dim=backend.limits.max_head_dim,
            caveat="" if reasons else backend.caveat(kind, index),
        )
    return found


def for_backward(backend: Backend, call: Call) -> Backend:
    """The backend that does the backward pass of a call whose forward pass `backend` did."""
    return BACKENDS[backend.backward_by(call)]


def check_backend(name: str | None) -> None:
    if name is not None and name not in BACKENDS:
        raise ValueError(f"backend={name!r} is not known; use None or one of {', '.join(map(repr, BACKENDS))}")


def choose(call: Call, name: str | None) -> Backend:
    """The backend that will do the call.

    Raises:
        ValueError: `name` is not a backend.
        BackendError: the named backend cannot do the call (it never falls back), or none can.
    """
    if name is not None:
        check_backend(name)
        backend = BACKENDS[name]
        if reasons := _refusals(backend, call):
            raise BackendError(
                f"backend={name!r} cannot do this call ({call}): {'; '.join(reasons)}. "
                "backend=None takes the fastest that can"
            )
        return backend
    for backend in BACKENDS.values():
        if backend.automatic(call.device_type, call.query.device.index) and not _refusals(backend, call):
            return backend
    lines = [f"  {other.name}: {'; '.join(_refusals(other, call))}" for other in BACKENDS.values()]
    raise BackendError(f"no backend can do this call ({call}):\n" + "\n".join(lines))


def _refusals(backend: Backend, call: Call) -> list[str]:
    """Why a backend cannot do the call, its backward pass included where there will be one."""
    reasons = backend.refusals(call)
    if reasons or not call.wants_gradient():
        return reasons
    heir = backend.backward_by(call)
    if heir == backend.name:
        return reasons
    size = f"{call.query.shape[2]} queries and {call.key.shape[2]} keys"
    return [
        f"leaves the backward pass of {size} to backend={heir!r}, which {reason}"
        for reason in BACKENDS[heir].refusals(call)
    ]
