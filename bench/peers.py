"""What is compared: attention with norms as rsattn and eager PyTorch compute it, and attention alone.

A peer is a function of (query, key, value) that returns the attention's output and, where it computes them, the
heads' norms. `scaled_dot_product_attention` computes no norms and chooses no head: a floor rather than an equal.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import rsattn
from rsattn import reference
from rsattn.backends.dispatch import BACKENDS
from rsattn.call import Call

from .cases import Case

Peer = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]

RSATTN, EAGER, COMPILED, FLEX = "rsattn", "eager", "compiled eager", "FlexAttention"
CUDA = 'backend="cuda"'  # where backend=None takes another; left out and named where it is wrong or not there
SDPA = "SDPA"  # the names of its kinds begin so
NORMS_ALONE = "flash-colreduce, norms alone"
# Compiling takes PyTorch longer than everything else here: only where ViTs are fine-tuned most, on a CPU in float32.
COMPILED_LENGTHS = (197, 577)


def rsattn_peer(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    result = rsattn.residual_attention(query, key, value)
    return result.output, result.norms


def cuda_peer(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    result = rsattn.residual_attention(query, key, value, backend="cuda")
    return result.output, result.norms


def eager_peer(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    result = reference.attention(Call((query, key, value)))
    return result.output, result.norms


def sdpa_peer(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    return scaled_dot_product_attention(query, key, value), None


def sdpa_of(backend: SDPBackend) -> Peer:
    def one_of_its_kernels(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value), None

    return one_of_its_kernels


def norms_alone(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """flash-colreduce's column sums and their maximum; the output is SDPA's, to be added to its time."""
    from flash_colreduce import flash_colreduce

    return value, flash_colreduce(query, key, reduction="sum").amax(-1)


def _compiled() -> Peer:
    return torch.compile(eager_peer, dynamic=False)


def _flex() -> Peer:
    from torch.nn.attention.flex_attention import flex_attention

    attention = torch.compile(flex_attention, dynamic=False)
    return lambda query, key, value: (attention(query, key, value), None)


def names(case: Case, device: torch.device) -> list[str]:
    """The peers that a device has for a case, ours first."""
    if device.type == "cuda":
        sdpa = [f"{SDPA} flash", f"{SDPA} cuDNN", f"{SDPA} efficient"]
        has_norms = importlib.util.find_spec("flash_colreduce") is not None and not case.train
        sdpa += [NORMS_ALONE] if has_norms else []
        widest = BACKENDS["cuda"].limits.max_head_dim
        sdpa += [CUDA] if widest is None or case.shape.width <= widest else []
    else:
        sdpa = [f"{SDPA} packed", f"{SDPA} contiguous"]
    worth_it = case.shape.length in COMPILED_LENGTHS and (device.type == "cuda" or case.dtype == "float32")
    compiled = [COMPILED] if worth_it else []
    if worth_it and (device.type == "cuda" or not case.train):  # on a CPU FlexAttention has no backward pass
        compiled += [FLEX]
    return [RSATTN, *sdpa, EAGER, *compiled]


def peer(name: str) -> Peer:
    """The peer of that name; compiled ones are made anew each time."""
    kinds: dict[str, Callable[[], Peer]] = {
        RSATTN: lambda: rsattn_peer,
        CUDA: lambda: cuda_peer,
        EAGER: lambda: eager_peer,
        COMPILED: _compiled,
        FLEX: _flex,
        NORMS_ALONE: lambda: norms_alone,
        f"{SDPA} flash": lambda: sdpa_of(SDPBackend.FLASH_ATTENTION),
        f"{SDPA} cuDNN": lambda: sdpa_of(SDPBackend.CUDNN_ATTENTION),
        f"{SDPA} efficient": lambda: sdpa_of(SDPBackend.EFFICIENT_ATTENTION),
    }
    return kinds.get(name, lambda: sdpa_peer)()
