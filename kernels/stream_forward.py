"""Forward for any number of keys: online softmax over blocks of keys gives O and the row statistics in one pass.

A program owns one row block of one head and one chunk of its columns. With a head_dim above BLOCK_E the output does not
fit in registers, so the scores are computed once for each chunk. This kernel also computes the norms that are sums over
rows. The induced norm needs the finished statistics; `column_sums` computes it. Where OUT is None, the statistics are
the only result, and V is not read.
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


@triton.jit(do_not_specialize=["B"], do_not_specialize_on_alignment=["REPEAT"])
def stream_forward(
    Q,
    K,
    V,
    MASK,
    SEED,
    OUT,
    STATISTICS,
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
    REPEAT,
    ROW_BLOCKS,
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
    POSITIVE: tl.constexpr,
):
    CHUNKS: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    OWN_CHUNKS: tl.constexpr = 1 if OUT is None else CHUNKS
    bh, b, h, block = program_of(H, ROW_BLOCKS * OWN_CHUNKS)
    row_block = block // OWN_CHUNKS
    own_chunk = block % OWN_CHUNKS
    start = row_block * BLOCK_M
    rows = start + tl.arange(0, BLOCK_M)
    width = tl.arange(0, BLOCK_E)
    own_columns = own_chunk * BLOCK_E + width
    q_base = head_of(Q, q_s, b, h)
    k_base = head_of(K, k_s, b, h)
    if OUT is not None:
        v_base = head_of(V, v_s, b, h)
    mask_base = mask_of(MASK, m_s, REPEAT, b, h)
    log2_scale = scale * LOG2E
    seed = tl.load(SEED) if DROPOUT else 0
    q = 0
    if CHUNKS == 1:
        q = load_rows(q_base, q_s, rows, N, width, E, BLOCK_E)
    largest = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    origin = largest
    error = tl.zeros((BLOCK_M,), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    kept = tl.zeros((BLOCK_M,), dtype=tl.float32)
    # (BLOCK_M, BLOCK_E)
    out = tl.zeros((BLOCK_M, BLOCK_E), dtype=tl.float32)
    whole = M // BLOCK_N * BLOCK_N
    # First the blocks whose keys are all below M, then the last block, which may have padded keys to hide.
    for padded in tl.static_range(2):
        for first_key in range(whole * padded, M if padded else whole, BLOCK_N):
            keys = first_key + tl.arange(0, BLOCK_N)
            # (BLOCK_M, BLOCK_N)
            scores = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            for chunk in range(CHUNKS):
                columns = chunk * BLOCK_E + width
                q_part = q
                if CHUNKS > 1:
                    q_part = load_rows(q_base, q_s, rows, N, columns, E, BLOCK_E)
                k = load_rows(k_base, k_s, keys, M, columns, E, BLOCK_E, padded)
                scores = tl.dot(q_part, tl.trans(k), scores, input_precision=PRECISION)
            scores, factor = scale_scores(scores, log2_scale, MASK_KIND, POSITIVE)
            scores = mask_scores(scores, mask_base, m_s, rows[:, None], keys[None, :], N, M, MASK_KIND, padded)
            largest = tl.maximum(largest, tl.max(scores, axis=1))
            probs, new_origin, unit, error = exponentials(
                scores, largest, factor, Q.dtype.element_ty, MASK_KIND, POSITIVE
            )
            shrink = tl.exp2((origin - new_origin) * unit)
            # Until a row sees a key its sums are to be dropped, whatever its next origin is.
            origin = tl.where(largest == float("-inf"), float("-inf"), new_origin)
            total = total * shrink + tl.sum(probs, axis=1)
            if DROPOUT:
                keep = dropout_keep(seed, threshold, b, h, start, first_key, BLOCK_M, BLOCK_N)
                probs = tl.where(keep, probs, 0.0)
                if NORM == ENTRYWISE:
                    kept = kept * shrink + tl.sum(probs, axis=1)
            if OUT is not None:
                v = load_rows(v_base, v_s, keys, M, own_columns, E, BLOCK_E, padded)
                out = tl.dot(probs.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
    exists = rows < N
    # The mask hides all keys of a blind row. Without a mask, a sum of 0 comes from infinite inputs and gives NaN.
    blind = (total == 0.0) & (MASK_KIND != NO_MASK)
    divisor = tl.where(total == 0.0, float("nan") if MASK_KIND == NO_MASK else 1.0, total)
    weight = tl.where(blind, 0.0, 1.0 / divisor)
    if OUT is not None:
        out *= weight[:, None]
        if DROPOUT:
            out *= keep_scale
        store_rows(head_of(OUT, o_s, b, h), o_s, rows, N, own_columns, E, BLOCK_E, out)
    if own_chunk == 0:
        log2_sum = tl.where(blind, float("inf"), tl.log2(divisor) - error)
        store_statistics(STATISTICS, bh, rows, N, tl.where(blind, 0.0, largest), log2_sum)
        if NORM != INDUCED:
            if NORM == CONFIDENCE:
                statistic = tl.exp2(error) * weight
            elif DROPOUT:
                statistic = kept * weight * keep_scale
            else:
                statistic = tl.where(blind, 0.0, 1.0)
            statistic = tl.sum(tl.where(exists, statistic, 0.0), axis=0)
            tl.store(PARTIAL + bh * ROW_BLOCKS + row_block, statistic)
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
                arrivals=H * ROW_BLOCKS,
                SLICES=1,
                WIDTH=ROW_BLOCKS,
                N=N,
                NORM=NORM,
                BATCH_SCOPE=BATCH_SCOPE,
                BLOCK_H=BLOCK_H,
                BLOCK_W=64,
            )
