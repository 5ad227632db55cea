"""A random call in a few words: plain numbers and strings, so that a printed plan is a reproduction."""

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
    """What one call of the campaign does; the defaults are the plainest call.

    Attributes:
        seed: of every number of the tensors, of their layouts, and of dropout.
        values: what the numbers are like, of `values.KINDS`.
        layouts: of query, key and value (packed: the first one is that of the packed tensor), then of the gradients
            that come in; of `layouts.LAYOUTS`.
        mask: what its numbers are like, of `masks.KINDS`; "" for none.
        mask_full: which of (batch, heads, queries, keys) the mask has in full; it broadcasts along the others.
        merge: "tile" or "slot" where the best head is added to a projected tensor; "" where it is not.
        repeats: with "tile", how many times as wide the projected tensor is as a head.
        gamma: the dtype of the gate; "" for none.
        projected: the dtype of the projected tensor.
        linked: whether the residual's gradient comes back beside the output's, as in the module.
        upstream: which results get a gradient: "both", "output" or "joined".
        watched: whether the calls are intercepted, as under torch.compile: they go through the operators.
        threads: PyTorch's number of threads when the call is repeated.
        hostile: the name of a call of `hostile.CALLS`; the rest of the plan but for the seed is unused then.
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
        """JSON of what differs from the defaults."""
        return json.dumps({k: v for k, v in asdict(self).items() if v != getattr(_PLAINEST, k)})

    @staticmethod
    def parse(text: str) -> Plan:
        """The inverse of `text`.

        Raises:
            ValueError: not JSON, or a name that a plan does not have.
        """
        given: dict[str, Any] = json.loads(text)
        if unknown := given.keys() - {field.name for field in fields(Plan)}:
            raise ValueError(f"a plan has no {', '.join(sorted(unknown))}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return Plan(**plain)

    @property
    def dim(self) -> int:
        """Channels of the projected tensor."""
        return self.heads * self.width if self.merge == "slot" else self.repeats * self.width


_PLAINEST = Plan()
