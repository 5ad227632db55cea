"""The attention received and the induced norm for any number of keys: column sums of P in a second pass.

A program owns one block of keys of one head and loops over the queries, whose statistics are finished. Its column sums
are complete when it ends, without atomics or partial sums in memory. It stores them where RECEIVED is not None, and
their maximum for the norm where BEST is not None.
"""

import triton
import triton.language as tl

from .select import INDUCED, select_best_head
from .tiles import (
    LOG2E,
    head_of,
    load_rows,
    load_statistics,
    mask_of,
    mask_scores,
    program_of,
    row_exponent,
    scale_scores,
)


@triton.jit(do_not_specialize=["B"], do_not_specialize_on_alignment=["REPEAT"])
def column_sums(
    Q,
    K,
    MASK,
    STATISTICS,
    PARTIAL,
    RECEIVED,
    NORMS,
    BEST,
    COUNTER,
    q_s,
    k_s,
    m_s,
    B,
    H,
    N,
    M,
    REPEAT,
    KEY_BLOCKS,
    scale,
    E: tl.constexpr,
    BATCH_SCOPE: tl.constexpr,
    MASK_KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_H: tl.constexpr,
    POSITIVE: tl.constexpr,
):
    CHUNKS: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    bh, b, h, key_block = program_of(H, KEY_BLOCKS)
    keys = key_block * BLOCK_N + tl.arange(0, BLOCK_N)
    width = tl.arange(0, BLOCK_E)
    q_base = head_of(Q, q_s, b, h)
    k_base = head_of(K, k_s, b, h)
    mask_base = mask_of(MASK, m_s, REPEAT, b, h)
    log2_scale = scale * LOG2E
    if CHUNKS == 1:
        k = load_rows(k_base, k_s, keys, M, width, E, BLOCK_E)
    # (BLOCK_M, BLOCK_N), summed over its rows once, at the end: sums across threads are expensive
    summed = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first_row in range(0, N, BLOCK_M):
        rows = first_row + tl.arange(0, BLOCK_M)
        scores = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for chunk in range(CHUNKS):
            columns = chunk * BLOCK_E + width
            if CHUNKS > 1:
                k = load_rows(k_base, k_s, keys, M, columns, E, BLOCK_E)
            q = load_rows(q_base, q_s, rows, N, columns, E, BLOCK_E)
            scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
        scores, factor = scale_scores(scores, log2_scale, MASK_KIND, POSITIVE)
        scores = mask_scores(scores, mask_base, m_s, rows[:, None], keys[None, :], N, M, MASK_KIND, PADDED=False)
        largest, log2_sum = load_statistics(STATISTICS, bh, rows, N)
        stretch, origin, error = row_exponent(largest, factor)
        weight = tl.exp2(-log2_sum - error)
        summed += tl.exp2(tl.fma(scores, stretch[:, None], -origin[:, None])) * weight[:, None]
    # A padded key has a column of its own, so its sum has affected nothing else.
    sums = tl.where(keys < M, tl.sum(summed, axis=0), 0.0)
    if RECEIVED is not None:
        tl.store(RECEIVED + bh * M + keys, sums, mask=keys < M)
    if BEST is not None:
        largest = tl.max(sums, axis=0)
        has_nan = tl.max((sums != sums).to(tl.int32), axis=0)
        tl.store(PARTIAL + bh * KEY_BLOCKS + key_block, tl.where(has_nan != 0, float("nan"), largest))
        select_best_head(
            PARTIAL=PARTIAL,
            RECEIVED=None,
            NORMS=NORMS,
            BEST=BEST,
            COUNTER=COUNTER,
            b=b,
            B=B,
            H=H,
            M=M,
            arrivals=H * KEY_BLOCKS,
            SLICES=1,
            WIDTH=KEY_BLOCKS,
            N=N,
            NORM=INDUCED,
            BATCH_SCOPE=BATCH_SCOPE,
            BLOCK_H=BLOCK_H,
            BLOCK_W=64,
        )
