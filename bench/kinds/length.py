"""Time and memory against the number of tokens, all else fixed: the O(n^2 d) claim, and what ranking adds to it."""

from __future__ import annotations

import torch
from torch import Tensor

import rsattn
from rsattn.module import ResidualOptions, attend_and_join

from .. import peers
from ..cases import Case, Setup
from ..clock import Variant
from ..inputs import Inputs, checker
from ..shapes import Shape

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
WITH_RESIDUAL, NO_RANKING = "rsattn with the residual", "rsattn without norms"
OPTIONS = ResidualOptions("induced", "sample", "tile", None)


def cases(device: torch.device) -> list[Case]:
    batch, heads, dtype = (4, 12, "bfloat16") if device.type == "cuda" else (1, 2, "float32")
    return [
        Case("length", Shape(batch, heads, length, 64), dtype, train) for train in (False, True) for length in LENGTHS
    ]


def names(case: Case, device: torch.device) -> list[str]:
    ours = [WITH_RESIDUAL, NO_RANKING] if not case.train else [peers.RSATTN]
    sdpa = [name for name in peers.names(device, case.shape.length, case.train) if name.startswith(peers.SDPA)]
    return [*ours, *sdpa, peers.EAGER]


def without_norms(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """The same kernel with a norm that costs nothing: entrywise without dropout counts rows."""
    return rsattn.residual_attention(query, key, value, norm="entrywise").output, None


def setup(case: Case, device: torch.device) -> Setup:
    inputs, shape = Inputs.random(case, device), case.shape
    projected = [torch.randn(shape.batch, shape.length, shape.dim, device=device, dtype=case.torch_dtype)]
    projected += [projected[0].clone() for _ in inputs.sets[1:]]

    def with_residual(index: int) -> Tensor:
        """As a patched block runs it after its projection, which is not timed: added in place."""
        with torch.no_grad():
            return attend_and_join(*inputs.sets[index], None, 0.0, lambda joined: projected[index], OPTIONS, None)

    variants = {}
    for name in names(case, device):
        given = inputs.contiguous() if name.endswith("contiguous") else inputs
        if name == WITH_RESIDUAL:
            variants[name] = Variant(with_residual)
        else:
            variants[name] = Variant(given.step(without_norms if name == NO_RANKING else peers.peer(name)))
    check = checker(inputs.oracle(), case.train)
    first = projected[0].clone()

    def check_attention_or_sum(name: str, result: tuple[Tensor, ...]) -> None:
        if name == WITH_RESIDUAL:
            attention = rsattn.residual_attention(*inputs.sets[0])
            torch.testing.assert_close(projected[0], rsattn.add_best_head(first, attention))
            check(name, (attention.output, attention.norms))
        else:
            check(name, result)

    return Setup(variants, len(inputs.sets), check_attention_or_sum, tuple(variants))
