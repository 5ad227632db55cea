"""Forward for few keys: one tile spans all keys, so the softmax needs no rescaling.

A program owns BLOCKS_PER_PROGRAM row blocks of one head. That number depends only on the shape of a sample, so a
sample's norms do not depend on its batch. Column sums are sums of the normalized tile over its rows, with padded rows
set to zero. Matrix instructions give a thread the rows r and r + 8 of every 16. The thread adds these two and
accumulates over the blocks; sums across threads are taken once, at the end. Where OUT is None, the column sums are the
only result, and neither V nor STATISTICS is used.
"""

import triton
import triton.language as tl

from .select import CONFIDENCE, ENTRYWISE, INDUCED, select_best_head
from .tiles import (
    LOG2E,
    NO_MASK,
    dropout_keep,
    exponentials,
    head_of,
    load_rows,
    mask_of,
    mask_scores,
    program_of,
    scale_scores,
    store_rows,
    store_statistics,
)


@triton.jit(do_not_specialize=["B", "PROGRAMS"], do_not_specialize_on_alignment=["REPEAT"])
def row_forward(
    Q,
    K,
    V,
    MASK,
    SEED,
    OUT,
    STATISTICS,
    PARTIAL,
    RECEIVED,
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
    REPEAT,
    PROGRAMS,
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
    BLOCKS_PER_PROGRAM: tl.constexpr,
    POSITIVE: tl.constexpr,
):
    bh, b, h, program = program_of(H, PROGRAMS)
    CHUNKS: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    COLUMN_SUMS: tl.constexpr = NORM == INDUCED or RECEIVED is not None
    keys = tl.arange(0, BLOCK_N)
    width = tl.arange(0, BLOCK_E)
    q_base = head_of(Q, q_s, b, h)
    k_base = head_of(K, k_s, b, h)
    if OUT is not None:
        v_base = head_of(V, v_s, b, h)
        out_base = head_of(OUT, o_s, b, h)
    log2_scale = scale * LOG2E
    if DROPOUT:
        seed = tl.load(SEED)
    if CHUNKS == 1:
        k = load_rows(k_base, k_s, keys, M, width, E, BLOCK_E)
        if OUT is not None:
            v = load_rows(v_base, v_s, keys, M, width, E, BLOCK_E)
    column_sums = tl.zeros((BLOCK_M // 16, 8, BLOCK_N), dtype=tl.float32)
    statistic = tl.zeros((BLOCK_M,), dtype=tl.float32)
    first_row = program * BLOCKS_PER_PROGRAM * BLOCK_M
    for start in range(first_row, tl.minimum(first_row + BLOCKS_PER_PROGRAM * BLOCK_M, N), BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        # (BLOCK_M, BLOCK_N)
        scores = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for chunk in range(CHUNKS):
            columns = chunk * BLOCK_E + width
            q = load_rows(q_base, q_s, rows, N, columns, E, BLOCK_E)
            if CHUNKS > 1:
                k = load_rows(k_base, k_s, keys, M, columns, E, BLOCK_E)
            scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
        scores, factor = scale_scores(scores, log2_scale, MASK_KIND, POSITIVE)
        scores = mask_scores(
            scores,
            mask_of(MASK, m_s, REPEAT, b, h),
            m_s,
            rows[:, None],
            keys[None, :],
            N,
            M,
            MASK_KIND,
        )
        largest = tl.max(scores, axis=1)
        # P without each row's weight, which is applied to the output
        probs, _, _, error = exponentials(scores, largest, factor, Q.dtype.element_ty, MASK_KIND, POSITIVE)
        total = tl.sum(probs, axis=1)
        # The mask hides all keys of a blind row. Without a mask, a sum of 0 comes from infinite inputs and gives NaN.
        blind = (total == 0.0) & (MASK_KIND != NO_MASK)
        divisor = tl.where(total == 0.0, float("nan") if MASK_KIND == NO_MASK else 1.0, total)
        weight = tl.where(blind | (rows >= N), 0.0, 1.0 / divisor)
        if STATISTICS is not None:
            log2_sum = tl.where(blind, float("inf"), tl.log2(divisor) - error)
            store_statistics(STATISTICS, bh, rows, N, tl.where(blind, 0.0, largest), log2_sum)
        if COLUMN_SUMS:
            column_sums += tl.sum(tl.reshape(probs * weight[:, None], (BLOCK_M // 16, 2, 8, BLOCK_N)), axis=1)
        if NORM == CONFIDENCE:
            statistic += tl.exp2(error) * weight
        elif NORM == ENTRYWISE and not DROPOUT:
            statistic += tl.where(blind | (rows >= N), 0.0, 1.0)
        if DROPOUT:
            keep = dropout_keep(seed, threshold, b, h, start, 0, BLOCK_M, BLOCK_N)
            probs = tl.where(keep, probs, 0.0)
            weight *= keep_scale
            if NORM == ENTRYWISE:
                statistic += tl.sum(probs, axis=1) * weight
        if OUT is not None:
            mixed = probs.to(Q.dtype.element_ty)
            for chunk in range(CHUNKS):
                columns = chunk * BLOCK_E + width
                if CHUNKS > 1:
                    v = load_rows(v_base, v_s, keys, M, columns, E, BLOCK_E)
                # (BLOCK_M, BLOCK_E)
                out = tl.dot(mixed, v, input_precision=PRECISION)
                store_rows(out_base, o_s, rows, N, columns, E, BLOCK_E, out * weight[:, None])
    # A program's partial results: M column sums, then the other norm's term.
    COLUMNS = M if COLUMN_SUMS else 0
    WIDTH = COLUMNS if NORM == INDUCED else COLUMNS + 1
    partial = PARTIAL + (bh * PROGRAMS + program) * WIDTH
    if COLUMN_SUMS:
        tl.store(partial + keys, tl.sum(tl.sum(column_sums, axis=1), axis=0), mask=keys < M)
    if NORM != INDUCED:
        tl.store(partial + COLUMNS, tl.sum(statistic, axis=0))
    select_best_head(
        PARTIAL=PARTIAL,
        RECEIVED=RECEIVED,
        NORMS=NORMS,
        BEST=BEST,
        COUNTER=COUNTER,
        b=b,
        B=B,
        H=H,
        M=M,
        arrivals=H * PROGRAMS,
        SLICES=PROGRAMS,
        WIDTH=WIDTH,
        N=N,
        NORM=NORM,
        BATCH_SCOPE=BATCH_SCOPE,
        BLOCK_H=BLOCK_H,
        BLOCK_W=BLOCK_W,
    )
