"""The gradients of the gated residual: merge^T(GAMMA * GRAD), and the gradient of GAMMA in two launches."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["B"])
def gate_gradients(
    GRAD,
    ATTENDED,
    BEST,
    GAMMA,
    GRAD_BEST,
    PARTIAL,
    g_s,
    a_s,
    gamma_s,
    B,
    H,
    N,
    D,
    E: tl.constexpr,
    SLOT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_REPEATS: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """GRAD_BEST (B, N, E), contiguous, and the sum of GRAD * merge(O_h*) over each block of rows: PARTIAL (blocks, D).

    A program owns BLOCK_E of the E columns, with all their D/E repeats, and computes both results for them. With SLOT
    the repeats are heads, and a row uses only its best head. If a best head is out of range, both results are NaN.
    """
    program = tl.program_id(0).to(tl.int64)
    chunks = tl.cdiv(E, BLOCK_E)
    block = program // chunks
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    e = program % chunks * BLOCK_E + tl.arange(0, BLOCK_E)
    b = row // N
    n = row % N
    exists = row < B * N
    best = tl.load(BEST + b, mask=exists, other=0)
    known = ((best >= 0) & (best < H))[:, None]
    inside = exists[:, None] & (e[None, :] < E)
    attended = tl.load(
        ATTENDED + (b * a_s[0] + best * a_s[1] + n * a_s[2])[:, None] + e[None, :] * a_s[3],
        mask=inside & known,
        other=0.0,
    )
    attended = tl.where(known, attended.to(tl.float32), float("nan"))
    grad_row = GRAD + (b * g_s[0] + n * g_s[1])[:, None, None]
    total = tl.zeros((BLOCK_ROWS, BLOCK_REPEATS, BLOCK_E), dtype=tl.float32)
    total = tl.where(known[:, :, None], total, float("nan"))
    for first in range(0, D // E, BLOCK_REPEATS):
        # (BLOCK_REPEATS, BLOCK_E)
        repeat = (first + tl.arange(0, BLOCK_REPEATS)).to(tl.int64)
        d = repeat[:, None] * E + e[None, :]
        column = (repeat[:, None] < D // E) & (e[None, :] < E)
        gamma = tl.load(GAMMA + d * gamma_s, mask=column, other=0.0).to(tl.float32)
        # (BLOCK_ROWS, BLOCK_REPEATS, BLOCK_E)
        receives = exists[:, None, None] & column[None, :, :]
        if SLOT:
            receives = receives & ((best[:, None, None] == repeat[None, :, None]) | ~known[:, :, None])
        grad = tl.load(grad_row + d[None, :, :] * g_s[2], mask=receives, other=0.0).to(tl.float32)
        # Zeros in grad are not enough: gamma or attended may be infinite or NaN there.
        total += tl.where(receives, gamma[None, :, :] * grad, 0.0)
        product = tl.where(receives, attended[:, None, :] * grad, 0.0)
        tl.store(PARTIAL + block * D + d, tl.sum(product, 0), mask=column)
    tl.store(GRAD_BEST + row[:, None] * E + e[None, :], tl.sum(total, 1).to(GRAD_BEST.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["BLOCKS"])
def gamma_gradient(PARTIAL, OUT, BLOCKS, D, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """OUT (D,), contiguous: the sum of PARTIAL (BLOCKS, D) over its rows, always in the same order."""
    d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype=tl.float32)
    for first in range(0, BLOCKS, BLOCK_ROWS):
        block = (first + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        inside = (block[:, None] < BLOCKS) & (d[None, :] < D)
        total += tl.load(PARTIAL + block[:, None] * D + d[None, :], mask=inside, other=0.0)
    tl.store(OUT + d, tl.sum(total, 0).to(OUT.dtype.element_ty), mask=d < D)
