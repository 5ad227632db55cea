"""A float64 value with the largest error that a kernel may have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SINGLE = torch.finfo(torch.float32)


@dataclass(frozen=True)
class Bounded:
    """The expected result.

    Attributes:
        value: float64; not finite where the result is undefined.
        error: float64, at least 0: the largest rounding error.
        judged: bool; false where terms exceed float32's range, or where rounding decides between NaN and infinity.
        may_be_strange: bool; true where a non-finite result is also correct, because one of its inputs is not finite.
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
        """The same after rounding to that dtype."""
        return Bounded(self.value, self.error + rounding(self.value, dtype), self.judged, self.may_be_strange)


def rounding(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Twice the largest error of one rounding to the dtype: one unit in the last place.

    AVX-512's conversion to bfloat16 turns subnormal numbers into 0.
    """
    kind = torch.finfo(dtype)
    return kind.eps * size(value) + kind.tiny * (1.0 if dtype == torch.bfloat16 else kind.eps)


def size(tensor: Tensor) -> Tensor:
    """|x|, or 0 where x is not finite, so that bounds stay finite."""
    return torch.nan_to_num(tensor.abs(), nan=0.0, posinf=0.0)


def sum_of(terms: int) -> float:
    """Twice the relative error of a float32 sum of `terms` products in any order, plus a few more roundings."""
    return SINGLE.eps * (terms + 8)
