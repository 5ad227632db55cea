"""Inputs and independent arithmetic the tests share.

Nothing here calls `rsattn`: what the library computes is compared with explicit loops in float64, so that a
mistake in `rsattn.reference` is not repeated by its own judge. Import it as `from oracle import ...`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NORMS = ("induced", "entrywise", "confidence")
SCOPES = ("sample", "batch")
MERGES = ("tile", "slot")
MASKS = ("none", "bool", "float", "padding", "blind", "float_blind", "two_dim", "per_head")
LAYOUTS = ("contiguous", "heads_inside", "packed", "strided")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    """Standard normal numbers that depend on the seed and the shape only: drawn in float64, then rounded."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def make_inputs(
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float64,
    layout: str = "contiguous",
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    """Random (B, H, N, E), (B, H, M, E), (B, H, M, E): the same values in every layout.

    Layouts: "contiguous"; "heads_inside", a view of (B, N, H, E); "packed", views of one (B, N, 3, H, E) where
    N = M, else keys and values of one (B, M, 2, H, E); "strided", every second channel of a wider buffer whose
    other channels are NaN, so that reading a wrong one shows.
    """
    shapes = [(batch, heads, n, width) for n in (queries, keys, keys)]
    # Queries are drawn twice as wide as usual: scores of spread 2 give heads that differ.
    values = [normal(*shape, seed=3 * seed + i) for i, shape in enumerate(shapes)]
    values = [(t * (2.0 if i == 0 else 1.0)).to(dtype).to(device) for i, t in enumerate(values)]
    if layout == "contiguous":
        laid = values
    elif layout == "heads_inside":
        laid = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in values]
    elif layout == "packed":
        together = values if queries == keys else values[1:]
        views = torch.stack([t.transpose(1, 2) for t in together], dim=2).permute(2, 0, 3, 1, 4).unbind(0)
        laid = [*values[: 3 - len(views)], *views]
    elif layout == "strided":
        laid = [torch.stack([t, torch.full_like(t, math.nan)], dim=-1).flatten(-2)[..., ::2] for t in values]
    else:
        raise ValueError(layout)
    return laid[0], laid[1], laid[2]


def make_mask(
    kind: str,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    device: str = "cpu",
) -> Tensor | None:
    """A mask of a kind of `MASKS`. Only the "blind" kinds have rows that see no key; they have one with M = 1."""
    seen = normal(batch, heads, queries, keys, seed=100 + seed) > -0.5
    seen[..., 0] = True
    if kind == "none":
        return None
    if kind == "bool":
        mask = seen
    elif kind == "float":
        mask = normal(batch, heads, queries, keys, seed=200 + seed, dtype=dtype)
        mask = mask.masked_fill(~seen, -math.inf)
    elif kind == "padding":
        mask = seen[:, :1, :1]
    elif kind == "blind":
        mask = seen.clone()
        mask[:, 0, queries // 2] = False
        mask[-1:, -1, 0] = False
    elif kind == "float_blind":
        mask = normal(1, heads, queries, keys, seed=200 + seed, dtype=dtype)
        mask[:, 0, queries // 2] = -math.inf
    elif kind == "two_dim":
        mask = seen.flatten(0, 1)[0] if batch * heads else torch.ones(queries, keys, dtype=torch.bool)
    elif kind == "per_head":
        mask = seen[:1, :, :1] if batch else torch.ones(1, heads, 1, keys, dtype=torch.bool)
    else:
        raise ValueError(kind)
    return mask.to(device)


@dataclass
class Naive:
    """What `naive_attention` computes, in float64: (B, H, N, E), (B, H, N, M), and each norm (B, H)."""

    output: Tensor
    probs: Tensor
    norms: dict[str, Tensor]

    def best(self, norm: str, scope: str) -> list[int]:
        """The best head by a scan that keeps the first of equals."""
        rows = self.norms[norm].tolist()
        if scope == "batch" and rows:
            rows = [[math.fsum(column) for column in zip(*rows)]] * len(rows)
        return [row.index(max(row)) for row in rows]


def naive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Naive:
    """Residual attention row by row in float64, from the definitions: no softmax, no matmul, no matrix norm."""
    query, key, value = (t.detach().double().cpu() for t in (query, key, value))
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    scale = 1.0 / math.sqrt(width) if scale is None else scale
    output = torch.zeros(batch, heads, queries, width, dtype=torch.float64)
    probs = torch.zeros(batch, heads, queries, keys, dtype=torch.float64)
    norms = {norm: torch.zeros(batch, heads, dtype=torch.float64) for norm in NORMS}
    if mask is not None:
        mask = mask.detach().cpu().broadcast_to(batch, heads, queries, keys)
    for b in range(batch):
        for h in range(heads):
            columns = torch.zeros(keys, dtype=torch.float64)
            mass, sighted, peaks = 0.0, 0, 0.0
            for i in range(queries):
                scores = scale * (key[b, h] * query[b, h, i]).sum(dim=1)
                if mask is not None and mask.dtype == torch.bool:
                    seen = mask[b, h, i]
                elif mask is not None:
                    scores = scores + mask[b, h, i].double()
                    seen = mask[b, h, i] > -math.inf
                else:
                    seen = torch.ones(keys, dtype=torch.bool)
                if not seen.any():
                    continue
                weights = torch.zeros(keys, dtype=torch.float64)
                weights[seen] = (scores[seen] - scores[seen].max()).exp()
                row = weights / weights.sum()
                dropped = row if keep is None else row * keep[b, h, i] / (1.0 - dropout_p)
                probs[b, h, i] = row
                output[b, h, i] = (dropped[:, None] * value[b, h]).sum(dim=0)
                columns += row
                sighted += 1
                mass += float(dropped.sum())
                peaks += float(row.max())
            norms["induced"][b, h] = columns.max()
            norms["entrywise"][b, h] = sighted if keep is None else mass
            norms["confidence"][b, h] = peaks / queries
    return Naive(output, probs, norms)


def naive_merge(projected: Tensor, output: Tensor, best: list[int], merge: str) -> Tensor:
    """Y = projected + merge(O_h*), one channel at a time, in projected's dtype."""
    result = projected.detach().clone()
    width = output.shape[-1]
    for b, head in enumerate(best):
        for channel in range(projected.shape[2]):
            if merge == "tile" or channel // width == head:
                result[b, :, channel] += output[b, head, :, channel % width].detach().to(projected.dtype)
    return result


def gap_is_clear(norms64: Tensor, bound: float) -> Tensor:
    """(B,) bool: whether the largest norm leads by more than twice `bound`, an error each norm may carry.

    Where it does not, two correct computations may rank the heads differently, and there is nothing to test.
    """
    if norms64.shape[1] == 1:
        return torch.ones(norms64.shape[0], dtype=torch.bool)
    first, second = norms64.double().topk(2, dim=1).values.unbind(1)
    return first - second > 2 * bound


def philox_words(seed: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 in plain integers, after the paper's figure (Salmon et al., SC 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed % 2**32, (seed >> 32) % 2**32
    for _ in range(10):
        high0, low0 = divmod(c0 * 0xD2511F53, 2**32)
        high1, low1 = divmod(c2 * 0xCD9E8D57, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def philox_keep(seed: int, dropout_p: float, shape: tuple[int, int, int, int]) -> Tensor:
    """The (B, H, N, M) mask of kept probabilities, one Philox evaluation per group of four keys."""
    batch, heads, queries, keys = shape
    keep = torch.zeros(shape, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                for j in range(0, keys, 4):
                    for lane, word in enumerate(philox_words(seed, (j // 4, i, h, b))[: keys - j]):
                        keep[b, h, i, j + lane] = word >= round(dropout_p * 2**32)
    return keep


def seed_after(manual_seed: int) -> int:
    """The dropout seed that the first call after `torch.manual_seed(manual_seed)` draws on the CPU."""
    state = torch.get_rng_state()
    torch.manual_seed(manual_seed)
    seed = int(torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64))
    torch.set_rng_state(state)
    return seed
