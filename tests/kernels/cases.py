"""Calls of the attention, made from a few words, and how far from the oracle a kernel may be.

The oracle is the reference in float64 on the inputs as the kernel sees them (already rounded to its dtype). The
budget for outputs and gradients is relative to what rounding costs anyone: at most twice the error of eager
PyTorch in the same dtype, in the mean and in the worst element. Two roundings come on top, relative to the largest
result: one of the dtype's, for sizes at which eager PyTorch happens to be exact, and eight of float32's, because the
kernels take P from exp2(score - total), and that argument is rounded at its own size, which is up to eight here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rsattn import reference
from rsattn.contract import ResidualAttention


@dataclass(frozen=True)
class Call:
    batch: int = 2
    heads: int = 3
    queries: int = 65
    keys: int | None = None
    width: int = 64
    dtype: torch.dtype = torch.float32
    norm: str = "induced"
    scope: str = "sample"
    mask: str = "none"
    dropout: float = 0.0
    layout: str = "packed"

    @property
    def id(self) -> str:
        keys = "" if self.keys is None else f"x{self.keys}"
        words = [f"N{self.queries}{keys}", f"E{self.width}", str(self.dtype).removeprefix("torch.")]
        words += [self.norm, self.scope, self.mask + "_mask", self.layout]
        return "-".join(words + ([f"drop{self.dropout}"] if self.dropout else []))

    def tensors(self, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """query, key, value and the mask, random, in the layout asked for."""
        generator = torch.Generator().manual_seed(seed)
        keys = self.queries if self.keys is None else self.keys

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, self.dtype)

        b, h, n, e = self.batch, self.heads, self.queries, self.width
        if self.layout == "packed" and keys == n:
            query, key, value = random(b, n, 3, h, e).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.layout == "transposed":
            query, key, value = (random(b, h, e, m).transpose(2, 3) for m in (n, keys, keys))
        else:
            query, key, value = (random(b, h, m, e) for m in (n, keys, keys))
        mask = None
        if self.mask == "bool":
            mask = torch.rand(b, h, n, keys, generator=generator) > 0.3
            mask[:, :, n // 2] = False
        elif self.mask == "padding":
            mask = torch.ones(b, 1, 1, keys, dtype=torch.bool)
            mask[0, ..., keys // 2 :] = False
        elif self.mask == "float":
            mask = torch.randn(1, h, n, keys, generator=generator)
            mask[..., 0] = torch.finfo(torch.float32).min
            mask[:, :, n // 2] = -torch.inf
        return query, key, value, None if mask is None else mask.to(device)

    def seed(self, device: torch.device) -> Tensor | None:
        """The dropout seed: more than 32 bits of it, so both halves of the key count."""
        return torch.tensor([0x1234_5678_9ABC_DEF], device=device) if self.dropout else None

    @property
    def scale(self) -> float:
        return self.width**-0.5

    def reference(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> ResidualAttention:
        """The reference, in the dtype of what it is given."""
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(torch.promote_types(query.dtype, torch.float32))
        seed = self.seed(query.device)
        return reference.attention(query, key, value, mask, seed, self.dropout, self.scale, self.norm, self.scope)


def assert_within_budget(name: str, got: Tensor, eager: Tensor, oracle: Tensor) -> None:
    assert got.isfinite().all(), f"{name} is not finite everywhere"
    got_error, eager_error = (got.double() - oracle).abs(), (eager.double() - oracle).abs()
    rounding = (torch.finfo(got.dtype).eps + 8 * torch.finfo(torch.float32).eps) * oracle.abs().max()
    for measure in (torch.max, torch.mean):
        found, allowed = measure(got_error), 2.0 * measure(eager_error) + rounding
        assert found <= allowed, f"{name}: {measure.__name__} error {found:.2e}, eager PyTorch allows {allowed:.2e}"


def for_every_backend(
    calls: list[Call], gpu: list[Call], cpu: list[Call], most: dict[int, int] | None = None
) -> list[Any]:
    """(kernels, call): `calls` for all, `gpu` where there is one, `cpu` for the compiled CPU kernels.

    `most`: for the CUDA kernels, the most queries and keys of heads up to so wide; None for any number.
    """
    on_gpu = gpu if torch.cuda.is_available() else []
    pairs = [("triton", call) for call in calls + on_gpu] + [("cpu", call) for call in calls + cpu]
    names = ["cuda"] if torch.cuda.is_available() else ["cuda-sm80", "cuda-sm90"]
    for call in dict.fromkeys(for_cuda(call) for call in calls + on_gpu + cpu):
        if "cuda" not in names and call.queries > 1000 and call.dtype == torch.float16:
            continue  # seconds in the model, and once in bfloat16 already
        limit = min((n for width, n in (most or {}).items() if call.width <= width), default=None)
        longest = max(call.queries, call.keys or 0)
        if call.width % 8 == 0 and call.width <= 128 and (most is None or longest <= (limit or 0)):
            pairs += [(name, call) for name in names]
    return [pytest.param(name, call, id=f"{name}-{call.id}") for name, call in pairs]


def for_cuda(call: Call) -> Call:
    """float32 becomes bfloat16: the CUDA kernels compute in 16 bits."""
    return replace(call, dtype=torch.bfloat16) if call.dtype == torch.float32 else call


def norm_error_bound(call: Call, kernels: str = "") -> float:
    """Relative error of a float32 norm: one rounding for each term of a score and of a sum, and a few for exp.

    The CUDA kernels add up column sums from probabilities that were kept as float16.
    """
    keys = call.queries if call.keys is None else call.keys
    kept = torch.finfo(torch.float16).eps / 2 if kernels == "cuda" and call.norm == "induced" else 0.0
    return torch.finfo(torch.float32).eps * (call.width + max(keys, call.queries) + 16) + kept


def assert_norms_match(call: Call, got: Tensor, oracle: Tensor, kernels: str = "") -> None:
    torch.testing.assert_close(got.double(), oracle, rtol=norm_error_bound(call, kernels), atol=0.0)


def clear_winners(call: Call, oracle_norms: Tensor, kernels: str = "") -> Tensor:
    """(B,) bool: samples whose best head leads by more than the norms' error, or ties exactly by definition."""
    ranked = oracle_norms.sum(0, keepdim=True) if call.scope == "batch" else oracle_norms
    ranked = ranked.expand(oracle_norms.shape[0], -1).sort(dim=1, descending=True).values
    if ranked.shape[1] == 1:
        return torch.ones(ranked.shape[0], dtype=torch.bool, device=ranked.device)
    gap = ranked[:, 0] - ranked[:, 1]
    return (gap > 2 * norm_error_bound(call, kernels) * ranked[:, 0]) | (gap == 0)
