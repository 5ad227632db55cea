"""Residual self-attention for vision transformers (Sharma & Verma, arXiv 2306.01594), fused and checked.

`residual_attention` is the functional form, `ResidualSelfAttention` the module, `patch` swaps it into a model
you already have, `record` shows which heads won, `plot` draws it, `backends` what can run here.
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
    "backends",
    "patch",
    "record",
    "residual_attention",
    "residual_attention_qkvpacked",
]


if not TYPE_CHECKING:  # to a type checker it would say that every name is in here

    def __getattr__(name: str) -> ModuleType:
        """`rsattn.plot`, imported when it is first asked for: not everybody draws."""
        if name == "plot":
            return importlib.import_module(".plot", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
