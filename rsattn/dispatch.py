"""Which backend does a call: the named one or an error, the fastest that can otherwise, and why not the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .backend import Backend, KernelBackend
from .backend_cpu import CpuBackend
from .backend_cuda import CudaBackend
from .backend_reference import ReferenceBackend
from .backend_triton import TritonBackend

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
    kind = torch.device(device).type
    found = {}
    for name, backend in BACKENDS.items():
        reasons = tuple(backend.missing(kind))
        found[name] = BackendStatus(
            available=not reasons,
            reasons=reasons,
            automatic=not reasons and backend.automatic(kind),
            dtypes=backend.limits.dtypes,
            max_head_dim=backend.limits.max_head_dim,
            caveat=backend.caveat(kind),
        )
    return found


def kernels_of(name: str) -> KernelBackend:
    """The backend behind an `rsattn::` operator."""
    backend = BACKENDS[name]
    assert isinstance(backend, KernelBackend)
    return backend


def backward_kernels(name: str, query: Tensor, key: Tensor) -> KernelBackend:
    """The backend that does the backward pass of a call whose forward pass `name` did."""
    return kernels_of(BACKENDS[name].backward_by(query, key.shape[2]))


def check_backend(name: str | None) -> None:
    if name is not None and name not in BACKENDS:
        raise ValueError(f"backend={name!r} is not known; use None or one of {', '.join(map(repr, BACKENDS))}")


def choose(
    query: Tensor, attn_mask: Tensor | None, name: str | None, key: Tensor | None = None, value: Tensor | None = None
) -> str:
    """The name of the backend that will do the call; `key` and `value` are by default like `query`.

    Raises:
        ValueError: `name` is not a backend.
        BackendError: the named backend cannot do the call (it never falls back), or none can.
    """
    check_backend(name)
    key = query if key is None else key
    value = query if value is None else value
    if name is not None:
        reasons = _refusals(BACKENDS[name], query, key, value, attn_mask)
        if reasons:
            raise BackendError(
                f"backend={name!r} cannot do this call ({_describe(query, attn_mask)}): {'; '.join(reasons)}. "
                "backend=None takes the fastest that can"
            )
        return name
    for candidate, backend in BACKENDS.items():
        if backend.automatic(query.device.type) and not _refusals(backend, query, key, value, attn_mask):
            return candidate
    lines = [f"  {n}: {'; '.join(_refusals(b, query, key, value, attn_mask))}" for n, b in BACKENDS.items()]
    raise BackendError(f"no backend can do this call ({_describe(query, attn_mask)}):\n" + "\n".join(lines))


def _refusals(backend: Backend, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> list[str]:
    """Why a backend cannot do the call, its backward pass included where there will be one."""
    reasons = backend.refusals(query, attn_mask)
    trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if trains and not reasons:
        keys = key.shape[2]
        heir = backend.backward_by(query, keys)
        if heir != backend.name:
            size = f"{query.shape[2]} queries and {keys} keys"
            reasons = [
                f"leaves the backward pass of {size} to backend={heir!r}, which {reason}"
                for reason in BACKENDS[heir].refusals(query, attn_mask)
            ]
    return reasons


def _describe(query: Tensor, attn_mask: Tensor | None) -> str:
    mask = "no mask" if attn_mask is None else f"{attn_mask.dtype} mask {tuple(attn_mask.shape)}"
    return f"query {tuple(query.shape)} {query.dtype} on {query.device}, {mask}"
