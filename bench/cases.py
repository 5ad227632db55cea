"""A case: one computation, and the variants of it that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch

from .clock import Variant
from .shapes import Shape

SHAPE_KEYS = ("batch", "heads", "length", "width")  # of a shape in result files; "width" is head_dim


@dataclass(frozen=True)
class Case:
    """One computation at one shape.

    Attributes:
        kind: a key of `bench.kinds.KINDS`.
        model: the model that has this shape; empty in a series of shapes.
        train: forward and backward; otherwise forward, without gradients.
        detail: distinguishes cases of the same kind, shape, dtype and pass; usually empty.
    """

    kind: str
    shape: Shape
    dtype: str
    train: bool = False
    model: str = ""
    detail: str = ""

    @property
    def torch_dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def itemsize(self) -> int:
        return self.torch_dtype.itemsize

    @property
    def title(self) -> str:
        words = f"{self.kind} {self.shape} {self.dtype} {'forward + backward' if self.train else 'forward'}"
        return ", ".join(word for word in (words, self.detail, self.model) if word)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": dict(zip(SHAPE_KEYS, astuple(self.shape)))}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Case:
        return Case(**{**content, "shape": Shape(*(content["shape"][key] for key in SHAPE_KEYS))})


@dataclass(frozen=True)
class Setup:
    """A case that is ready to run.

    Attributes:
        variants: name -> variant.
        inputs: the number of input sets that the calls accept.
        check: takes a variant's name and the result of its call; raises AssertionError if the result is wrong.
        peaks: the variants whose peak memory is measured.
    """

    variants: dict[str, Variant]
    inputs: int = 1
    check: Callable[[str, Any], None] = lambda name, result: None
    peaks: tuple[str, ...] = ()
