"""The same attention with the residual and without norms: what ranking the heads adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rsattn
from rsattn.module import ResidualOptions, attend_and_join

from ..cases import Case
from ..clock import Variant
from ..inputs import Inputs

WITH_RESIDUAL, NO_RANKING = "rsattn with the residual", "rsattn without norms"
OPTIONS = ResidualOptions("induced", "sample", "tile", None)

Check = Callable[[str, Any], None]


def without_norms(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """The same kernel with a norm that costs nothing: entrywise without dropout counts rows."""
    return rsattn.residual_attention(query, key, value, norm="entrywise").output, None


def variants(case: Case, inputs: Inputs, check: Check) -> tuple[dict[str, Variant], Check]:
    """Both, and a check that knows them beside those that `check` knows."""
    shape, like = case.shape, inputs.sets[0][0]
    first = torch.randn(shape.batch, shape.length, shape.dim, device=like.device, dtype=like.dtype)
    projected = [first.clone() for _ in inputs.sets]

    def with_residual(index: int) -> Tensor:
        """As a patched block runs it after its projection, which is not timed: added in place."""
        with torch.no_grad():
            return attend_and_join(*inputs.sets[index], None, 0.0, lambda joined: projected[index], OPTIONS, None)

    def check_these_too(name: str, result: Any) -> None:
        if name == WITH_RESIDUAL:  # its first call: later ones add to the sum
            attention = rsattn.residual_attention(*inputs.sets[0])
            torch.testing.assert_close(result, rsattn.add_best_head(first, attention), rtol=0, atol=0)
            check(name, (attention.output, attention.norms))
        else:
            check(name, result)

    return {WITH_RESIDUAL: Variant(with_residual), NO_RANKING: Variant(inputs.step(without_norms))}, check_these_too
