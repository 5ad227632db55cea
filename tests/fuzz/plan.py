"""The description of a random call: plain numbers and strings, so that a printed plan reproduces the call."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

DTYPES = {
    name: getattr(torch, name)
    for name in ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "bool")
}


@dataclass(frozen=True)
class Plan:
    """One call of the campaign. The defaults are the simplest call.

    Attributes:
        seed: of the tensors' values, of their layouts and of dropout.
        values: the kind of values, from `values.KINDS`.
        layouts: of query, key and value (packed: the first is that of the packed tensor), then of the incoming
            gradients; from `layouts.LAYOUTS`.
        mask: the kind of mask, from `masks.KINDS`; "" for none.
        mask_full: which of (batch, heads, queries, keys) the mask has in full; it broadcasts along the others.
        mask_repeats: how often the mask's batch axis repeats, where it is full; a divisor of the batch.
        mask_learned: whether the mask gets a gradient.
        received: whether the attention received is computed, beside the output and alone.
        merge: "tile" or "slot" if the best head is added to a projected tensor; otherwise "".
        repeats: with "tile", D / E of the projected tensor.
        gamma: the dtype of the gate; "" for none.
        projected: the dtype of the projected tensor.
        linked: whether the residual's gradient is returned separately from the output's, as in the module.
        upstream: the results that get a gradient: "both", "output" or "joined".
        watched: whether the calls are intercepted, so that they go through the operators, as under torch.compile.
        threads: PyTorch's number of threads when the call is repeated.
        hostile: the name of a call in `hostile.CALLS`. If it is set, only the seed of the plan is used.
    """

    batch: int = 1
    heads: int = 1
    queries: int = 1
    keys: int = 1
    width: int = 1
    dtype: str = "float32"
    norm: str = "induced"
    scope: str = "sample"
    scale: float | None = None
    dropout: float = 0.0
    seed: int = 0
    values: str = "normal"
    packed: bool = False
    layouts: tuple[str, ...] = ("contiguous",) * 4
    mask: str = ""
    mask_dtype: str = "bool"
    mask_full: tuple[bool, ...] = (True,) * 4
    mask_layout: str = "contiguous"
    mask_repeats: int = 1
    mask_learned: bool = False
    received: bool = False
    backward: bool = False
    merge: str = ""
    repeats: int = 1
    gamma: str = ""
    projected: str = "float32"
    linked: bool = False
    upstream: str = "both"
    watched: bool = False
    threads: int = 1
    backend: str = "cpu"
    instructions: str = ""
    hostile: str = ""

    def text(self) -> str:
        """The fields that differ from the defaults, in JSON."""
        return json.dumps({k: v for k, v in asdict(self).items() if v != getattr(_PLAINEST, k)})

    @staticmethod
    def parse(text: str) -> Plan:
        """The inverse of `text`.

        Raises:
            ValueError: not JSON, or an unknown field.
        """
        given: dict[str, Any] = json.loads(text)
        if unknown := given.keys() - {field.name for field in fields(Plan)}:
            raise ValueError(f"a plan has no {', '.join(sorted(unknown))}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return Plan(**plain)

    @property
    def dim(self) -> int:
        """D of the projected tensor."""
        return self.heads * self.width if self.merge == "slot" else self.repeats * self.width


_PLAINEST = Plan()
