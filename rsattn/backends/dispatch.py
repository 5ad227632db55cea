"""Choose the backend of a call: the named one or an error, otherwise the fastest that supports the call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..call import Call
from ..contract import brief
from .base import Backend
from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend
from .triton import TritonBackend

# Fastest first: `backend=None` takes the first that supports the call.
BACKENDS: dict[str, Backend] = {b.name: b for b in (CudaBackend(), TritonBackend(), CpuBackend(), ReferenceBackend())}


class BackendError(RuntimeError):
    """The named backend, or every backend, refuses a call; the message lists the reasons.

    Example:
        >>> import torch
        >>> import rsattn
        >>> query = torch.randn(1, 2, 5, 8, dtype=torch.float64)
        >>> try:
        ...     rsattn.residual_attention(query, query, query, backend="cuda")
        ... except rsattn.BackendError as error:
        ...     print(error)  # doctest: +ELLIPSIS
        backend='cuda' cannot do this call (...): runs on cuda tensors, not cpu; takes float16, bfloat16, not float64...
    """


@dataclass(frozen=True)
class BackendStatus:
    """What `rsattn.backends` reports of one backend.

    Attributes:
        available: whether it can run on the device.
        reasons: why it cannot, one phrase each; empty when it can.
        automatic: whether `backend=None` may choose it.
        dtypes: the dtypes it supports.
        max_head_dim: the largest head dimension it supports; None for any.
        caveat: what to know before choosing it by name, such as that it is slower than another; usually empty.

    Example:
        >>> import rsattn
        >>> status = rsattn.backends("cpu")["reference"]
        >>> status.available, status.automatic, status.max_head_dim
        (True, True, None)
        >>> [str(dtype) for dtype in status.dtypes]
        ['torch.float16', 'torch.bfloat16', 'torch.float32', 'torch.float64']
    """

    available: bool
    reasons: tuple[str, ...]
    automatic: bool
    dtypes: tuple[torch.dtype, ...]
    max_head_dim: int | None
    caveat: str = ""


def backends(device: torch.device | str | None = None) -> dict[str, BackendStatus]:
    """List the backends, whether each can run on a device, and why the others cannot.

    Args:
        device: such as "cpu" or "cuda:1"; None for the current GPU, or the CPU where there is no GPU.

    Returns:
        dict: name -> `BackendStatus`, in the order in which `backend=None` tries those that are `automatic`.

    Raises:
        RuntimeError: `device` is not the name of a device (from PyTorch).

    Example:
        >>> import rsattn
        >>> status = rsattn.backends("cpu")
        >>> list(status)
        ['cuda', 'triton', 'cpu', 'reference']
        >>> status["cuda"].available, status["cuda"].reasons
        (False, ('runs on CUDA tensors, not cpu',))
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
    """The backend of the backward pass of a call whose forward pass ran on `backend`."""
    return BACKENDS[backend.backward_by(call)]


def check_backend(name: str | None) -> None:
    if name is not None and name not in tuple(BACKENDS):
        raise ValueError(f"backend={brief(name)} is not known; use None or one of {', '.join(map(repr, BACKENDS))}")


def choose(call: Call, name: str | None) -> Backend:
    """The backend that runs the call.

    Raises:
        ValueError: `name` is not a backend.
        BackendError: the named backend refuses the call (it never falls back), or every backend does.
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
    """Why a backend cannot run the call, including its backward pass where a gradient is wanted."""
    reasons = backend.refusals(call)
    if reasons or not call.wants_gradient():
        return reasons
    successor = backend.backward_by(call)
    if successor == backend.name:
        return reasons
    size = f"{call.query.shape[2]} queries and {call.key.shape[2]} keys"
    return [
        f"leaves the backward pass of {size} to backend={successor!r}, which {reason}"
        for reason in BACKENDS[successor].refusals(call)
    ]
