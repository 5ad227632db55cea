"""Forward for few keys: one tile spans them all, so the softmax is exact with no rescaling.

A program owns BLOCKS_PER_PROGRAM row blocks of one head. Column sums come from summing the normalised tile
over its rows; padded rows are zeroed first.
"""

import triton
import triton.language as tl

from .select import CONFIDENCE, ENTRYWISE, INDUCED, select_best_head
from .tiles import LN2, LOG2E, dropout_keep, head_of, load_rows, mask_scores, program_of, store_rows

# Whether a head's blocks share a program or not must not change a bit of the result.
@triton.jit(do_not_specialize=["PROGRAMS", "BLOCKS_PER_PROGRAM"])
def row_forward(
    Q,
    K,
    V,
    MASK,
    SEED,
    OUT,
    LSE,
    PARTIAL,
    NORMS,
    BEST,
    COUNTER,
    q_s,
    k_s,
    v_s,
    m_s,
    o_s,
    B,
    H,
    N,
    M,
    PROGRAMS,
    BLOCKS_PER_PROGRAM,
    scale,
    threshold,
    keep_scale,
    E: tl.constexpr,
    NORM: tl.constexpr,
    BATCH_SCOPE: tl.constexpr,
    MASK_KIND: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    bh, b, h, program = program_of(H, PROGRAMS)
    CHUNKS: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    keys = tl.arange(0, BLOCK_N).to(tl.int64)
    width = tl.arange(0, BLOCK_E)
    q_base = head_of(Q, q_s, b, h)
    k_base = head_of(K, k_s, b, h)
    v_base = head_of(V, v_s, b, h)
    out_base = head_of(OUT, o_s, b, h)
    log2_scale = scale * LOG2E
    if DROPOUT:
        seed = tl.load(SEED)
    if CHUNKS == 1:
        k = load_rows(k_base, k_s, keys, M, width, E, BLOCK_E)
        v = load_rows(v_base, v_s, keys, M, width, E, BLOCK_E)
    column_sums = tl.zeros((BLOCK_N,), dtype=tl.float32)
    statistic = tl.zeros((1,), dtype=tl.float32)
    first_row = program * BLOCKS_PER_PROGRAM * BLOCK_M
    end_row = tl.minimum(first_row + BLOCKS_PER_PROGRAM * BLOCK_M, N)
    for start in range(first_row, end_row, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M).to(tl.int64)
        # (BLOCK_M, BLOCK_N)
        scores = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for chunk in tl.static_range(CHUNKS):
            columns = chunk * BLOCK_E + width
            q = load_rows(q_base, q_s, rows, N, columns, E, BLOCK_E)
            if CHUNKS > 1:
                k = load_rows(k_base, k_s, keys, M, columns, E, BLOCK_E)
            scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
        scores = mask_scores(
            scores * log2_scale,
            head_of(MASK, m_s, b, h),
            m_s,
            rows[:, None],
            keys[None, :],
            N,
            M,
            MASK_KIND,
        )
        top = tl.max(scores, axis=1)
        top = tl.where(top == float("-inf"), 0.0, top)
        probs = tl.exp2(scores - top[:, None])
        total = tl.sum(probs, axis=1)
        # Rows that see no key and rows beyond N weigh nothing; NaN stays NaN.
        blind = total == 0.0
        divisor = tl.where(blind, 1.0, total)
        weight = tl.where(blind | (rows >= N), 0.0, 1.0 / divisor)
        probs *= weight[:, None]
        lse = tl.where(blind, float("-inf"), (top + tl.log2(divisor)) * LN2)
        tl.store(LSE + bh * N + rows, lse, mask=rows < N)
        if NORM == INDUCED:
            column_sums += tl.sum(probs, axis=0)
        elif NORM == CONFIDENCE:
            statistic += tl.sum(weight, axis=0)
        if DROPOUT:
            keep = dropout_keep(seed, threshold, b, h, start, 0, BLOCK_M, BLOCK_N)
            probs = tl.where(keep, probs * keep_scale, 0.0)
        if NORM == ENTRYWISE:
            if DROPOUT:
                statistic += tl.sum(tl.sum(probs, axis=1), axis=0)
            else:
                statistic += tl.sum(tl.where(blind | (rows >= N), 0.0, 1.0), axis=0)
        mixed = probs.to(V.dtype.element_ty)
        for chunk in tl.static_range(CHUNKS):
            columns = chunk * BLOCK_E + width
            if CHUNKS > 1:
                v = load_rows(v_base, v_s, keys, M, columns, E, BLOCK_E)
            # (BLOCK_M, BLOCK_E)
            out = tl.dot(mixed, v, input_precision=PRECISION)
            store_rows(out_base, o_s, rows, N, columns, E, BLOCK_E, out)
    slice = bh * PROGRAMS + program
    arrivals = H * PROGRAMS
    if NORM == INDUCED:
        tl.store(PARTIAL + slice * M + keys, column_sums, mask=keys < M)
        select_best_head(
            PARTIAL, NORMS, BEST, COUNTER, b, B, H, arrivals, PROGRAMS, M, N, NORM, BATCH_SCOPE, BLOCK_H, BLOCK_W
        )
    else:
        tl.store(PARTIAL + slice + tl.arange(0, 1), statistic)
        select_best_head(
            PARTIAL, NORMS, BEST, COUNTER, b, B, H, arrivals, PROGRAMS, 1, N, NORM, BATCH_SCOPE, BLOCK_H, 1
        )
