"""A number known in float64, and how far from it a kernel may be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SINGLE = torch.finfo(torch.float32)


@dataclass(frozen=True)
class Bounded:
    """What a result has to be.

    Attributes:
        value: float64; not finite where the definitions give no number.
        error: float64, at least 0: what rounding may do.
        judged: bool; false where terms exceed float32's range, or where rounding decides between NaN and infinity.
        may_be_strange: bool; where a number that is not finite is right too, because one is among those it comes from.
    """

    value: Tensor
    error: Tensor
    judged: Tensor
    may_be_strange: Tensor

    @staticmethod
    def of(value: Tensor, error: Tensor, judged: Tensor | None = None, may_be_strange: Tensor | None = None) -> Bounded:
        everywhere = torch.ones_like(value, dtype=torch.bool)
        return Bounded(
            value,
            error.broadcast_to(value.shape),
            everywhere if judged is None else judged.broadcast_to(value.shape),
            ~everywhere if may_be_strange is None else may_be_strange.broadcast_to(value.shape),
        )

    def rounded(self, dtype: torch.dtype) -> Bounded:
        """The same after it was rounded to that dtype."""
        return Bounded(self.value, self.error + rounding(self.value, dtype), self.judged, self.may_be_strange)


def rounding(value: Tensor, dtype: torch.dtype) -> Tensor:
    """What one rounding to the dtype may change, twice over: a whole unit in the last place.

    The conversion to bfloat16 that AVX-512 has makes 0 of what is below the smallest normal number.
    """
    kind = torch.finfo(dtype)
    return kind.eps * size(value) + kind.tiny * (1.0 if dtype == torch.bfloat16 else kind.eps)


def size(tensor: Tensor) -> Tensor:
    """|x|; 0 where it is not finite, so that bounds stay numbers."""
    return torch.nan_to_num(tensor.abs(), nan=0.0, posinf=0.0)


def sum_of(terms: int) -> float:
    """The relative error of a float32 sum of so many products in any order, and a few roundings more, twice over."""
    return SINGLE.eps * (terms + 8)
