"""Residual self-attention for vision transformers (Sharma & Verma, arXiv 2306.01594), in fused kernels.

`residual_attention` is the function and `ResidualSelfAttention` the module; `patch` puts it into an existing model.
`attention_received` computes how much attention each token receives. `record` collects the norms and best heads of a
model's blocks, `plot` draws them, `finetune.load` returns the model of a run of `rsattn finetune`, and `backends` lists
what can run on this machine.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from .attention import residual_attention, residual_attention_qkvpacked
from .backends.dispatch import BackendError, BackendStatus, backends
from .contract import ResidualAttention
from .epilogue import add_best_head
from .module import ResidualOptions, ResidualSelfAttention
from .patching import Patch, patch
from .received import attention_received
from .recording import BlockRecord, Record, record

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BackendStatus",
    "BlockRecord",
    "Patch",
    "Record",
    "ResidualAttention",
    "ResidualOptions",
    "ResidualSelfAttention",
    "add_best_head",
    "attention_received",
    "backends",
    "patch",
    "record",
    "residual_attention",
    "residual_attention_qkvpacked",
]


if not TYPE_CHECKING:  # a type checker would take every missing name for a module

    def __getattr__(name: str) -> ModuleType:
        """Import `rsattn.plot` and `rsattn.finetune` on first use, which keeps `import rsattn` fast."""
        if name in ("plot", "finetune"):
            return importlib.import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
