"""The residual: gather the best head's rows and add them to the projected output; and the transpose.

With a gate, each channel is multiplied by its gamma. gate.py has the gradients of the gated residual.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["B"])
def add_best_head(
    PROJECTED,
    ATTENDED,
    BEST,
    GAMMA,
    OUT,
    p_s,
    a_s,
    gamma_s,
    o_s,
    B,
    H,
    N,
    D,
    E: tl.constexpr,
    SLOT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """OUT (B, N, D) = PROJECTED + the best head of ATTENDED (B, H, N, E), times GAMMA (D,) if there is one.

    OUT may be PROJECTED. If a sample's best head is out of range, its output is NaN: a kernel cannot raise an error
    without making the GPU unusable for the process.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    b = row // N
    n = row % N
    exists = b < B
    best = tl.load(BEST + b, mask=exists, other=0)
    known = ((best >= 0) & (best < H))[:, None]
    for first in range(0, D, BLOCK_D):
        # (BLOCK_ROWS, BLOCK_D)
        d = (first + tl.arange(0, BLOCK_D)).to(tl.int64)
        inside = exists[:, None] & (d[None, :] < D)
        projected = tl.load(
            PROJECTED + (b * p_s[0] + n * p_s[1])[:, None] + d[None, :] * p_s[2], mask=inside, other=0.0
        )
        receives = inside
        if SLOT:
            receives = inside & (best[:, None] == d[None, :] // E)
        added = tl.load(
            ATTENDED + (b * a_s[0] + best * a_s[1] + n * a_s[2])[:, None] + (d % E)[None, :] * a_s[3],
            mask=receives & known,
            other=0.0,
        )
        added = tl.where(known, added, float("nan"))
        if GAMMA is not None:
            gamma = tl.load(GAMMA + d * gamma_s, mask=d < D, other=0.0).to(tl.float32)
            # A non-finite gamma must not change channels to which nothing is added.
            added = tl.where(receives | ~known, gamma[None, :] * added.to(tl.float32), 0.0)
        total = projected.to(tl.float32) + added.to(tl.float32)
        tl.store(
            OUT + (b * o_s[0] + n * o_s[1])[:, None] + d[None, :] * o_s[2],
            total.to(OUT.dtype.element_ty),
            mask=inside,
        )


@triton.jit(do_not_specialize=["B"])
def best_head_gradient(
    GRAD,
    BEST,
    OUT,
    g_s,
    B,
    N,
    D,
    E: tl.constexpr,
    SLOT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """OUT (B, N, E), contiguous: the sum of GRAD's D/E repeats, or with SLOT the best head's channels of GRAD.

    With SLOT, OUT is NaN if the best head is out of range.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    b = row // N
    n = row % N
    exists = b < B
    grad_row = GRAD + (b * g_s[0] + n * g_s[1])[:, None]
    for first in range(0, E, BLOCK_E):
        # (BLOCK_ROWS, BLOCK_E)
        e = (first + tl.arange(0, BLOCK_E)).to(tl.int64)
        inside = exists[:, None] & (e[None, :] < E)
        if SLOT:
            best = tl.load(BEST + b, mask=exists, other=0)
            known = ((best >= 0) & (best < D // E))[:, None]
            total = tl.load(grad_row + (best[:, None] * E + e[None, :]) * g_s[2], mask=inside & known, other=0.0)
            total = tl.where(known, total, float("nan"))
        else:
            total = tl.zeros((BLOCK_ROWS, BLOCK_E), dtype=tl.float32)
            for repeat in range(0, D, E):
                total += tl.load(grad_row + (repeat + e[None, :]) * g_s[2], mask=inside, other=0.0).to(tl.float32)
        tl.store(OUT + row[:, None] * E + e[None, :], total.to(OUT.dtype.element_ty), mask=inside)
