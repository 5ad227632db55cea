"""The implementations that are compared: rsattn and the baselines.

Each is a function of (query, key, value) that returns the attention's output and the heads' norms, or None in place of
the norms. `scaled_dot_product_attention` computes no norms and chooses no head, so it does less work than the others.
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

Baseline = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]

RSATTN, EAGER, COMPILED, FLEX = "rsattn", "eager", "compiled eager", "FlexAttention"
CUDA = 'backend="cuda"'  # not what backend=None chooses; the report names it where it is wrong or missing
SDPA = "SDPA"  # the names of its kernels start with this
NORMS_ALONE = "flash-colreduce, norms alone"
# torch.compile takes longer than all timing together: only the usual fine-tuning lengths, and on a CPU only float32.
COMPILED_LENGTHS = (197, 577)


def rsattn_default(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    result = rsattn.residual_attention(query, key, value)
    return result.output, result.norms


def rsattn_cuda(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    result = rsattn.residual_attention(query, key, value, backend="cuda")
    return result.output, result.norms


def eager(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    result = reference.attention(Call((query, key, value)))
    return result.output, result.norms


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    return scaled_dot_product_attention(query, key, value), None


def sdpa_of(backend: SDPBackend) -> Baseline:
    def attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value), None

    return attention


def norms_alone(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """The largest column sum, by flash-colreduce. It computes no output: reports add its time to SDPA's."""
    from flash_colreduce import flash_colreduce

    return value, flash_colreduce(query, key, reduction="sum").amax(-1)


def _compiled() -> Baseline:
    return torch.compile(eager, dynamic=False)


def _flex() -> Baseline:
    from torch.nn.attention.flex_attention import flex_attention

    attention = torch.compile(flex_attention, dynamic=False)
    return lambda query, key, value: (attention(query, key, value), None)


def names(case: Case, device: torch.device) -> list[str]:
    """The implementations that this device can run for a case, rsattn first."""
    if device.type == "cuda":
        sdpa = [f"{SDPA} flash", f"{SDPA} cuDNN", f"{SDPA} efficient"]
        has_norms = importlib.util.find_spec("flash_colreduce") is not None and not case.train
        sdpa += [NORMS_ALONE] if has_norms else []
        largest = BACKENDS["cuda"].limits.max_head_dim
        sdpa += [CUDA] if largest is None or case.shape.head_dim <= largest else []
    else:
        sdpa = [f"{SDPA} packed", f"{SDPA} contiguous"]
    compile_it = case.shape.length in COMPILED_LENGTHS and (device.type == "cuda" or case.dtype == "float32")
    compiled = [COMPILED] if compile_it else []
    if compile_it and (device.type == "cuda" or not case.train):  # on a CPU FlexAttention has no backward pass
        compiled += [FLEX]
    return [RSATTN, *sdpa, EAGER, *compiled]


def baseline(name: str) -> Baseline:
    """The implementation of that name. Each call compiles the compiled ones again."""
    kinds: dict[str, Callable[[], Baseline]] = {
        RSATTN: lambda: rsattn_default,
        CUDA: lambda: rsattn_cuda,
        EAGER: lambda: eager,
        COMPILED: _compiled,
        FLEX: _flex,
        NORMS_ALONE: lambda: norms_alone,
        f"{SDPA} flash": lambda: sdpa_of(SDPBackend.FLASH_ATTENTION),
        f"{SDPA} cuDNN": lambda: sdpa_of(SDPBackend.CUDNN_ATTENTION),
        f"{SDPA} efficient": lambda: sdpa_of(SDPBackend.EFFICIENT_ATTENTION),
    }
    return kinds.get(name, lambda: sdpa)()
