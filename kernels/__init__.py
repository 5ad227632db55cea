"""Triton kernels of residual attention and the plain functions that launch them; see kernels/README.md.

Importing this package imports Triton. `rsattn` does so when a call first considers the Triton backend.
"""

from __future__ import annotations


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels instead of a GPU. Fixed when the kernels are first imported."""
    from triton.runtime.interpreter import InterpretedFunction

    from .select import select_best_head

    return isinstance(select_best_head, InterpretedFunction)
