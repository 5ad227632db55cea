"""Attention, norms and gradients in float64, by the README's definitions, with bounds of a kernel's rounding errors.

Nothing here calls `rsattn`. The bounds are those of a float32 kernel that stores no probabilities. A score has the
rounding errors of its products and of values of its own size. The error of a probability is the exponential of that,
plus the effect of the other scores on the row's sum, and a probability is at most 1. With a 16-bit dtype, P and dS
are rounded before they are multiplied. Every result is rounded to the dtype. Each bound is a sum over the terms of a
result, so it is small where the terms are small. Every rounding counts twice, because machine epsilon is two roundings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .bounded import SINGLE, Bounded, rounding, size, sum_of

# A sum beyond this may be infinite in float32 in some order of its terms.
MOST = 1e37
# float32's exponential is 0 below this; a 16-bit value is 0 below the smallest number of its dtype.
FLUSHED = 2.0**-126


@dataclass(frozen=True)
class Problem:
    """The inputs of a call in float64.

    Attributes:
        query, key, value: (B, H, N, E), (B, H, M, E).
        mask: (B, H, N, M), bool or float64, or None.
        keep: (B, H, N, M), the factor that dropout applies to a probability; None without dropout.
        dtype: the dtype of the kernels.
        kept_in_16_bits: whether float16 P and dS may flush to zero, as on a GPU.
        mask_shape: of the caller's mask with four axes, if its gradient is wanted; otherwise None.
        mask_dtype: of that mask.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    keep: Tensor | None
    scale: float
    norm: str
    dtype: torch.dtype
    kept_in_16_bits: bool
    mask_shape: tuple[int, ...] | None = None
    mask_dtype: torch.dtype = torch.float32

    @property
    def words(self) -> float:
        """The relative rounding error of P and dS before a product."""
        return 0.0 if self.dtype == torch.float32 else torch.finfo(self.dtype).eps

    @property
    def smallest_word(self) -> float:
        """The absolute rounding error of the same."""
        return 2.0**-24 if self.kept_in_16_bits and self.dtype == torch.float16 else FLUSHED


@dataclass(frozen=True)
class Probabilities:
    """P, with its error and its special cases.

    Attributes:
        p, error: (B, H, N, M).
        hidden: (B, H, N, M), true where no gradient flows.
        overflown: (B, H, N, 1), rows with scores beyond float32.
        strange: (B, H, N, 1), rows that are NaN.
    """

    p: Tensor
    error: Tensor
    hidden: Tensor
    overflown: Tensor
    strange: Tensor


def probabilities(problem: Problem) -> Probabilities:
    query, key, mask, scale = problem.query, problem.key, problem.mask, problem.scale
    scores = (query @ key.mT) * scale
    terms = size(query) @ size(key).mT
    largest = terms * max(1.0, 1.5 * abs(scale))
    error = abs(scale) * (sum_of(query.shape[-1]) * terms + _flushed(query, key))
    absorbed = torch.zeros_like(scores, dtype=torch.bool)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        # A score that is added to a mask value this large vanishes in float32 and in float64, so the sum is exact. A
        # mask value beyond float32 counts as float32's largest, and a huge score does not vanish beside that.
        large = mask.abs().clamp(max=MOST)
        absorbed = mask.isfinite() & (large > 2.0**60 * abs(scale) * terms) & (large > 1e30)
        error = error + 8 * SINGLE.eps * size(mask)
        scores = scores + mask
    hidden = scores == -math.inf
    blind = hidden.all(-1, keepdim=True) & (mask is not None)
    top = scores.amax(-1, keepdim=True)
    exact_top = (absorbed & (scores == top)).any(-1, keepdim=True)
    error = error + 8 * SINGLE.eps * (size(scores) + size(top).masked_fill(exact_top, 0.0))
    error = error.masked_fill(absorbed | hidden, 0.0) + 8 * SINGLE.eps
    log_p = scores - top
    log_p = log_p - log_p.logsumexp(-1, keepdim=True)
    p = log_p.exp().masked_fill(blind, 0.0)
    off = error + (log_p + error).logsumexp(-1, keepdim=True)
    high = (log_p + off).clamp(max=0.0).exp()
    p_error = torch.maximum(high - p, p - (log_p - off).exp()) + FLUSHED
    p_error = torch.nan_to_num(p_error, nan=0.0).masked_fill(hidden | blind, 0.0)
    overflown = (largest > MOST).any(-1, keepdim=True)
    return Probabilities(p, p_error, hidden, overflown, p.isnan().any(-1, keepdim=True))


def output(problem: Problem, probs: Probabilities) -> Bounded:
    """(B, H, N, E) in the dtype."""
    p, value = _kept(problem, probs.p), problem.value
    plain = size(value)
    error = _kept(problem, probs.error) @ plain + (sum_of(p.shape[-1]) + problem.words) * (size(p) @ plain)
    # Kernels sum exponentials that are at most 1, and divide at the end.
    largest = _kept(problem, torch.ones_like(p)) @ plain
    error = error + problem.smallest_word * largest
    error = error + _flushed(_kept(problem, torch.ones_like(p)), value.mT)
    # Rounding decides whether a tiny probability is 0, and 0 times infinity is NaN.
    tiny = (~probs.hidden & (p > 0) & (p < 1e-6)) | (p.isnan() != probs.p.isnan())
    unsure = tiny.double() @ (~value.isfinite()).double() > 0
    judged = ~(probs.overflown | unsure | (largest > MOST))
    return Bounded.of(p @ value, error, judged, probs.strange).rounded(problem.dtype)


def norms(problem: Problem, probs: Probabilities) -> Bounded:
    """(B, H) in float32."""
    p, error = probs.p, probs.error
    queries, keys = p.shape[-2:]
    judged = ~probs.overflown.any(-2).squeeze(-1)
    strange = None
    if problem.norm == "induced":
        columns: Tensor = p.sum(-2)
        rounded = 2.0**-10 if problem.kept_in_16_bits else 0.0
        value, off = columns.amax(-1), (error.sum(-2) + (sum_of(queries) + rounded) * size(columns)).amax(-1)
    elif problem.norm == "confidence":
        value, off = p.amax(-1).mean(-1), error.amax(-1).mean(-1) + sum_of(queries)
    elif problem.keep is None:
        value = (p != 0).any(-1).sum(-1).double()
        off = torch.zeros_like(value)
    else:
        kept = _kept(problem, p)
        value = kept.sum((-2, -1))
        off = _kept(problem, error).sum((-2, -1)) + sum_of(queries + keys) * size(value)
        strange = probs.strange.any(-2).squeeze(-1)  # a row of NaN of which dropout keeps nothing
    return Bounded.of(value, off, judged, strange)


def received(problem: Problem, probs: Probabilities) -> Bounded:
    """(B, H, M) in float32: column sums of P before dropout."""
    queries = probs.p.shape[-2]
    rounded, smallest = (2.0**-10, 2.0**-24) if problem.kept_in_16_bits else (0.0, 0.0)
    value = probs.p.sum(-2)
    off = probs.error.sum(-2) + (sum_of(queries) + rounded) * size(value) + queries * smallest
    return Bounded.of(value, off, ~probs.overflown.any(-2))


@dataclass(frozen=True)
class Upstream:
    """The gradient (B, H, N, E) of the output, and its rounding error."""

    grad: Tensor
    error: Tensor


def gradients(problem: Problem, probs: Probabilities, out: Bounded, upstream: Upstream) -> dict[str, Bounded]:
    """dQ, dK and dV in the dtype, and if it is wanted the mask's gradient."""
    query, key, value, scale = problem.query, problem.key, problem.value, abs(problem.scale)
    grad, grad_off = upstream.grad, upstream.error
    queries, width = grad.shape[-2:]
    keys = key.shape[-2]
    kept_p = _kept(problem, probs.p)
    size_grad, size_key, size_query = size(grad), size(key), size(query)

    gain = _kept(problem, grad @ value.mT)
    gain_off = sum_of(width) * (size_grad @ size(value).mT) + grad_off @ size(value).mT + _flushed(grad, value)
    gain_off = _kept(problem, gain_off)
    delta = (probs.p * gain).masked_fill(kept_p == 0.0, 0.0).sum(-1, keepdim=True)
    delta_off = (size_grad * out.error + (grad_off + sum_of(width) * size_grad) * size(out.value)).sum(-1, keepdim=True)
    slope = (probs.p * (gain - delta)).masked_fill(probs.hidden, 0.0)
    off = gain_off + delta_off + 4 * SINGLE.eps * (size(gain) + size(delta))
    slope_off = exact_off = probs.error * (size(gain - delta) + off) + size(probs.p) * off
    slope_off = slope_off + problem.words * (size(slope) + slope_off)
    slope_off = slope_off.masked_fill(probs.hidden, 0.0) + problem.smallest_word

    strange = torch.stack([~t.isfinite().all(-1).all(-1) for t in (query, key, value, grad)]).any(0)
    strange = (strange | probs.strange.any(-2).squeeze(-1) | ~kept_p.isfinite().all(-1).all(-1))[..., None, None]
    # delta = dO . O is made of the output as it was rounded to the dtype, where it may be infinite.
    beyond = size(out.value) + out.error > torch.finfo(problem.dtype).max
    strange = strange | beyond.any(-1, keepdim=True).any(-2, keepdim=True)
    size_slope = size(slope)
    dq_terms, dk_terms = size_slope @ size_key, size_slope.mT @ size_query
    largest = torch.stack(
        [
            _most(_kept(problem, size_grad @ size(value).mT)),
            _most(dq_terms * max(1.0, scale)),
            _most(dk_terms * max(1.0, scale)),
            _most(size_slope + slope_off) * (MOST / 6e4 if problem.kept_in_16_bits else 1.0),
        ]
    ).amax(0)
    judged = ~(probs.overflown.any(-2, keepdim=True) | (largest > MOST) | ~_sure(out, strange))
    dq = problem.scale * (slope @ key)
    dq_off = scale * (slope_off @ size_key + sum_of(keys) * dq_terms + _flushed(slope, key.mT))
    dk = problem.scale * (slope.mT @ query)
    dk_off = scale * (slope_off.mT @ size_query + sum_of(queries) * dk_terms + _flushed(slope.mT, query.mT))
    dv = kept_p.mT @ grad
    dv_off = _kept(problem, probs.error).mT @ size_grad + size(kept_p).mT @ grad_off
    dv_off = dv_off + (sum_of(queries) + problem.words) * (size(kept_p).mT @ size_grad)
    dv_off = dv_off + problem.smallest_word * size_grad.sum(-2, keepdim=True) + _flushed(kept_p.mT, grad.mT)
    found = dict(query=(dq, dq_off), key=(dk, dk_off), value=(dv, dv_off))
    bounded = {name: Bounded.of(*pair, judged, strange).rounded(problem.dtype) for name, pair in found.items()}
    if problem.mask_shape is not None:
        bounded["mask"] = _mask_gradient(problem, slope, exact_off.masked_fill(probs.hidden, 0.0), judged, strange)
    return bounded


def _mask_gradient(problem: Problem, slope: Tensor, off: Tensor, judged: Tensor, strange: Tensor) -> Bounded:
    """dS summed to the mask's own shape, in its dtype."""
    shape = problem.mask_shape
    assert shape is not None
    terms = slope.numel() // max(1, math.prod(shape))
    total, off, plain = (_summed(t, shape) for t in (slope, off, size(slope)))
    judged, strange = (_summed(t.expand_as(slope).double(), shape) for t in (~judged, strange))
    strange = strange > 0
    off = off + sum_of(terms) * plain + terms * FLUSHED
    if shape[3] == 1:
        # A number added to all scores of a query changes nothing, so the gradient is 0, even where P is NaN.
        total, off = torch.zeros_like(total), torch.zeros_like(off)
    return Bounded.of(total, off, (judged == 0) & (plain < MOST), strange).rounded(problem.mask_dtype)


def _summed(terms: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, H, N, M) summed over the axes along which a mask of that shape broadcasts or repeats."""
    terms = terms.unflatten(0, (len(terms) // shape[0], shape[0])).sum(0) if shape[0] else terms
    return terms.sum_to_size(shape)


def _flushed(rows: Tensor, columns: Tensor) -> Tensor:
    """The error of rows @ columns^T if subnormal numbers count as 0, in the result and in its terms."""
    lost = size(rows).sum(-1, keepdim=True) + size(columns).sum(-1)[..., None, :] + rows.shape[-1]
    return FLUSHED * lost


def _sure(out: Bounded, strange: Tensor) -> Tensor:
    """(B, H, 1, 1): whether the output, from which the gradients are computed, is certain."""
    return (out.judged | strange).all(-1, keepdim=True).all(-2, keepdim=True)


def _most(tensor: Tensor) -> Tensor:
    return tensor.amax((-2, -1), keepdim=True)


def _kept(problem: Problem, p: Tensor) -> Tensor:
    """The values after dropout, which also hides NaN."""
    if problem.keep is None:
        return p
    return (p * problem.keep).masked_fill(problem.keep == 0.0, 0.0)


def merged(best: Tensor, head: Tensor, merge: str, dim: int) -> Tensor:
    """(B, N, D): the best head's (B, N, E) repeated, or in its own channels with zeros elsewhere."""
    if merge == "tile":
        return best.repeat(1, 1, dim // best.shape[-1])
    width = best.shape[-1]
    own = torch.arange(dim) // width == head[:, None]
    return torch.where(own[:, None], best.repeat(1, 1, dim // width), 0.0)


@dataclass(frozen=True)
class Residual:
    """Y = projected + gamma * merge(O_h*), and its gradients, in float64.

    Attributes:
        best: (B, N, E), the best head's output as the kernels rounded it.
        head: (B,) int64.
        gamma: (D,) or None.
        grad: (B, N, D), the gradient of Y, or None.
    """

    projected: Tensor
    best: Tensor
    head: Tensor
    gamma: Tensor | None
    grad: Tensor | None
    merge: str
    dtype: torch.dtype

    def joined(self) -> Bounded:
        dim = self.projected.shape[-1]
        added = merged(self.best, self.head, self.merge, dim)
        off = torch.zeros_like(added)
        own = merged(torch.ones_like(self.best), self.head, self.merge, dim) > 0
        if self.gamma is None:
            off = rounding(added, self.dtype)  # rounded before it is added
            overflown = added.abs() > torch.finfo(self.dtype).max
        else:
            added = torch.where(own, self.gamma * added, 0.0)
            overflown = added.abs() > MOST
        off = off + sum_of(1) * (size(self.projected) + size(added))
        return Bounded.of(self.projected + added, off, ~overflown).rounded(self.dtype)

    def upstream(self, heads: int, dtype: torch.dtype) -> Upstream:
        """The gradient of the output (B, H, N, E): zero in all heads except the best."""
        assert self.grad is not None
        batch, length, width = self.best.shape
        dim = self.grad.shape[-1]
        own = merged(torch.ones_like(self.best), self.head, self.merge, dim)
        passed = torch.where(own > 0, self.grad if self.gamma is None else self.grad * self.gamma, 0.0)
        terms = passed.unflatten(-1, (dim // width, width))
        total, plain = terms.sum(-2), size(terms).sum(-2)
        off = (sum_of(dim // width) + torch.finfo(self.dtype).eps) * plain + 2 * rounding(plain, dtype)
        is_best = (torch.arange(heads) == self.head[:, None])[..., None, None]
        return Upstream(torch.where(is_best, total[:, None], 0.0), torch.where(is_best, off[:, None], 0.0))

    def gamma_gradient(self, dtype: torch.dtype) -> Bounded:
        """d gamma (D,) in the dtype of gamma."""
        assert self.grad is not None
        batch, length, dim = self.grad.shape
        own = merged(torch.ones_like(self.best), self.head, self.merge, dim) > 0
        terms = torch.where(own, self.grad * merged(self.best, self.head, self.merge, dim), 0.0)
        plain = size(terms).sum((0, 1))
        off = sum_of(batch * length) * plain + batch * length * FLUSHED
        return Bounded.of(terms.sum((0, 1)), off, plain < MOST).rounded(dtype)
