"""Backward for few keys: one program computes dQ, dK and dV of one head.

K, V, dK and dV stay on chip while the program loops over row blocks. A row block's tile spans all keys, so
delta_i = sum_j P_ij dP_ij is a row sum of the tile, and neither O nor a second pass is needed. P is recomputed from the
row statistics and the dropout mask from its seed.
"""

import triton
import triton.language as tl

from .tiles import (
    LOG2E,
    dropout_keep,
    head_of,
    load_gradient,
    load_rows,
    load_statistics,
    mask_of,
    mask_scores,
    probabilities,
    program_of,
    scale_scores,
    store_rows,
)


@triton.jit(do_not_specialize_on_alignment=["REPEAT"])
def row_backward(
    Q,
    K,
    V,
    MASK,
    SEED,
    STATISTICS,
    BEST,
    GRAD,
    GRAD_BEST,
    DQ,
    DK,
    DV,
    q_s,
    k_s,
    v_s,
    m_s,
    g_s,
    r_s,
    dq_s,
    dk_s,
    dv_s,
    H,
    N,
    M,
    REPEAT,
    scale,
    threshold,
    keep_scale,
    E: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    MASK_KIND: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    POSITIVE: tl.constexpr,
):
    bh, b, h, _ = program_of(H, 1)
    keys = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_E)
    is_best = tl.load(BEST + b) == h
    if DROPOUT:
        seed = tl.load(SEED)
    k = load_rows(head_of(K, k_s, b, h), k_s, keys, M, columns, E, BLOCK_E)
    v = load_rows(head_of(V, v_s, b, h), v_s, keys, M, columns, E, BLOCK_E)
    # (BLOCK_N, BLOCK_E)
    dk = tl.zeros((BLOCK_N, BLOCK_E), dtype=tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_E), dtype=tl.float32)
    for start in range(0, N, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        q = load_rows(head_of(Q, q_s, b, h), q_s, rows, N, columns, E, BLOCK_E)
        grad = load_gradient(
            head_of(GRAD, g_s, b, h),
            g_s,
            head_of(GRAD_BEST, r_s, b, 0),
            r_s,
            is_best,
            rows,
            N,
            columns,
            E,
            BLOCK_E,
            HAS_RESIDUAL,
        )
        # (BLOCK_M, BLOCK_N)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores, factor = scale_scores(scores, scale * LOG2E, MASK_KIND, POSITIVE)
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
        largest, log2_sum = load_statistics(STATISTICS, bh, rows, N)
        probs = probabilities(scores, factor, largest[:, None], log2_sum[:, None])
        dprobs = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        dropped = probs
        if DROPOUT:
            keep = dropout_keep(seed, threshold, b, h, start, 0, BLOCK_M, BLOCK_N)
            dropped = tl.where(keep, probs * keep_scale, 0.0)
            dprobs = tl.where(keep, dprobs * keep_scale, 0.0)
        delta = tl.sum(probs * dprobs, axis=1)
        dscores = (probs * (dprobs - delta[:, None])).to(q.dtype)
        dv = tl.dot(tl.trans(dropped.to(grad.dtype)), grad, dv, input_precision=PRECISION)
        dk = tl.dot(tl.trans(dscores), q, dk, input_precision=PRECISION)
        dq = tl.dot(dscores, k, input_precision=PRECISION) * scale
        store_rows(head_of(DQ, dq_s, b, h), dq_s, rows, N, columns, E, BLOCK_E, dq)
    store_rows(head_of(DK, dk_s, b, h), dk_s, keys, M, columns, E, BLOCK_E, dk * scale)
    store_rows(head_of(DV, dv_s, b, h), dv_s, keys, M, columns, E, BLOCK_E, dv)
