"""Short descriptions of attention calls, and the largest error that a kernel may have.

The oracle is the reference in float64 on the inputs that the kernel sees, which are already rounded to its dtype. The
budget for outputs and gradients is twice the error of eager PyTorch in the same dtype, for the mean and for the worst
element. Added to it are, relative to the largest result, one rounding of the dtype, because eager PyTorch is exact at
some sizes, and eight of float32, because the kernels compute P as exp2(score - total) and the rounding error of that
argument is relative to its size, which is up to eight here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rsattn import reference
from rsattn.backends.base import Backend
from rsattn.call import Call, Forward, Gradients
from rsattn.contract import ResidualAttention


@dataclass(frozen=True)
class Case:
    """The description of a call."""

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

    def call(self, device: torch.device, seed: int = 0) -> Call:
        """The call on random tensors with this layout, and with its mask expanded."""
        generator = torch.Generator().manual_seed(seed)
        keys = self.queries if self.keys is None else self.keys

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, self.dtype)

        b, h, n, e = self.batch, self.heads, self.queries, self.width
        if self.layout == "packed" and keys == n:
            inputs = random(b, n, 3, h, e).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.layout == "transposed":
            inputs = tuple(random(b, h, e, m).transpose(2, 3) for m in (n, keys, keys))
        else:
            inputs = tuple(random(b, h, m, e) for m in (n, keys, keys))
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
        mask = None if mask is None else mask.to(device).expand(b, h, n, keys)
        # More than 32 bits, so that both halves of the dropout's key matter.
        dropout_seed = torch.tensor([0x1234_5678_9ABC_DEF], device=device) if self.dropout else None
        return Call(inputs, mask, dropout_seed, self.dropout, None, self.norm, self.scope)


def in_dtype(call: Call, dtype: torch.dtype) -> Call:
    """The same call on leaves of that dtype: float64 for the oracle, the call's own for eager PyTorch."""
    same = call.on(*[tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in call.inputs])
    if call.attn_mask is not None and call.attn_mask.dtype != torch.bool:
        same.attn_mask = call.attn_mask.to(torch.promote_types(dtype, torch.float32))
    return same


def packed(call: Call) -> Call:
    """The same call on one tensor that holds query, key and value."""
    return call.on(torch.stack([tensor.transpose(1, 2) for tensor in call.inputs], dim=2))


def upstream(call: Call, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Gradients as autograd passes them: joined heads, and the residual's as the first channels of a wider tensor."""
    batch, heads, queries, width = call.query.shape
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(batch, queries, heads, width, generator=generator).to(call.query).transpose(1, 2)
    return grad, torch.randn(batch, queries, 2 * width, generator=generator).to(call.query)[..., :width]


def run(kernels: Backend, call: Call) -> tuple[Forward, Gradients]:
    """Forward, and backward with a residual."""
    result = kernels.forward(call)
    return result, kernels.backward(call, result, *upstream(call))


def autograd(
    call: Call, dtype: torch.dtype, best_head: Tensor, grad: Tensor, grad_best: Tensor | None
) -> tuple[ResidualAttention, tuple[Tensor, ...]]:
    """The reference in that dtype, and its dQ, dK and dV; the residual's gradient joins at `best_head`."""
    same = in_dtype(call, dtype)
    attention = reference.attention(same)
    total = grad.to(dtype, copy=True)
    if grad_best is not None:
        total[torch.arange(len(total)), best_head] += grad_best.to(dtype)
    return attention, torch.autograd.grad(attention.output, same.inputs, total)


def assert_within_budget(name: str, got: Tensor, eager: Tensor, oracle: Tensor) -> None:
    assert got.isfinite().all(), f"{name} is not finite everywhere"
    got_error, eager_error = (got.double() - oracle).abs(), (eager.double() - oracle).abs()
    rounding = (torch.finfo(got.dtype).eps + 8 * torch.finfo(torch.float32).eps) * oracle.abs().max()
    for measure in (torch.max, torch.mean):
        found, allowed = measure(got_error), 2.0 * measure(eager_error) + rounding
        assert found <= allowed, f"{name}: {measure.__name__} error {found:.2e}, eager PyTorch allows {allowed:.2e}"


def for_every_backend(
    cases: list[Case], gpu: list[Case], cpu: list[Case], most: dict[int, int] | None = None
) -> list[Any]:
    """(kernels, case): `cases` for all kernels, `gpu` if there is a GPU, `cpu` for the compiled CPU kernels.

    `most`: for the CUDA kernels, head_dim -> the most queries and keys up to that head_dim; None for any number.

    Without a GPU, the models of sm_80 and of sm_90 take the cases of the CUDA kernels.
    """
    gpu_there = torch.cuda.is_available()
    on_gpu = gpu if gpu_there else []
    cuda = ["cuda"] if gpu_there else ["cuda-sm80", "cuda-sm90"]
    pairs = [("triton", case) for case in cases + on_gpu] + [("cpu", case) for case in cases + cpu]
    for case in dict.fromkeys(for_cuda(case) for case in cases + on_gpu + cpu):
        limit = max((n for width, n in (most or {}).items() if case.width <= width), default=0)
        longest = max(case.queries, case.keys or 0)
        if case.width % 8 == 0 and case.width <= 128 and (most is None or longest <= limit):
            pairs += [(name, case) for name in cuda]
    return [pytest.param(name, case, id=f"{name}-{case.id}") for name, case in pairs]


def for_cuda(case: Case) -> Case:
    """float32 becomes bfloat16: the CUDA kernels compute in 16 bits. In their slow models large cases have one head."""
    scores = case.batch * case.heads * case.queries * (case.keys or case.queries)
    if scores > 200_000 and not torch.cuda.is_available():
        case = replace(case, batch=1, heads=1)
    return replace(case, dtype=torch.bfloat16) if case.dtype == torch.float32 else case


def norm_error_bound(call: Call, kernels: str = "") -> float:
    """The relative error of a float32 norm: one rounding for each term of a score and of a sum, and a few for exp.

    The CUDA kernels sum columns of probabilities that are stored as float16.
    """
    _, _, queries, width = call.query.shape
    kept = torch.finfo(torch.float16).eps / 2 if kernels == "cuda" and call.norm == "induced" else 0.0
    return torch.finfo(torch.float32).eps * (width + max(call.key.shape[2], queries) + 16) + kept


def assert_norms_match(call: Call, got: Tensor, oracle: Tensor, kernels: str = "") -> None:
    torch.testing.assert_close(got.double(), oracle.double(), rtol=norm_error_bound(call, kernels), atol=0.0)


def clear_winners(call: Call, oracle_norms: Tensor, kernels: str = "") -> Tensor:
    """(B,) bool: samples whose best head leads by more than the norms' error, or ties by definition."""
    norms = oracle_norms.double()
    ranked = norms.sum(0, keepdim=True) if call.scope == "batch" else norms
    ranked = ranked.expand(norms.shape[0], -1).sort(dim=1, descending=True).values
    if ranked.shape[1] == 1:
        return torch.ones(ranked.shape[0], dtype=torch.bool, device=ranked.device)
    gap = ranked[:, 0] - ranked[:, 1]
    return (gap > 2 * norm_error_bound(call, kernels) * ranked[:, 0]) | (gap == 0)
