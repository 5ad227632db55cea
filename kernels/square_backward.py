"""Backward if all queries and keys fit in one tile, for any head_dim.

The scores and dP accumulate over chunks of the head's columns and give P and dS. Products with one chunk of K, Q and dO
then give that chunk of dQ, dK and dV. A program owns every SHARES-th chunk of a head and recomputes the head's scores
and dP.
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
def square_backward(
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
    SHARES,
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
    CHUNKS: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    bh, b, h, share = program_of(H, SHARES)
    rows = tl.arange(0, BLOCK_M)
    keys = tl.arange(0, BLOCK_N)
    width = tl.arange(0, BLOCK_E)
    q_base = head_of(Q, q_s, b, h)
    k_base = head_of(K, k_s, b, h)
    v_base = head_of(V, v_s, b, h)
    grad_base = head_of(GRAD, g_s, b, h)
    best_base = head_of(GRAD_BEST, r_s, b, 0)
    is_best = tl.load(BEST + b) == h
    # (BLOCK_M, BLOCK_N)
    scores = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    dprobs = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for chunk in range(CHUNKS):
        columns = chunk * BLOCK_E + width
        q = load_rows(q_base, q_s, rows, N, columns, E, BLOCK_E)
        k = load_rows(k_base, k_s, keys, M, columns, E, BLOCK_E)
        scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
        grad = load_gradient(grad_base, g_s, best_base, r_s, is_best, rows, N, columns, E, BLOCK_E, HAS_RESIDUAL)
        v = load_rows(v_base, v_s, keys, M, columns, E, BLOCK_E)
        dprobs = tl.dot(grad, tl.trans(v), dprobs, input_precision=PRECISION)
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
    dropped = probs
    if DROPOUT:
        keep = dropout_keep(tl.load(SEED), threshold, b, h, 0, 0, BLOCK_M, BLOCK_N)
        dropped = tl.where(keep, probs * keep_scale, 0.0)
        dprobs = tl.where(keep, dprobs * keep_scale, 0.0)
    delta = tl.sum(probs * dprobs, axis=1)
    dscores = (probs * (dprobs - delta[:, None])).to(Q.dtype.element_ty)
    dscores_t = tl.trans(dscores)
    dropped_t = tl.trans(dropped.to(GRAD.dtype.element_ty))
    for chunk in range(share, CHUNKS, SHARES):
        columns = chunk * BLOCK_E + width
        k = load_rows(k_base, k_s, keys, M, columns, E, BLOCK_E)
        # (BLOCK_M, BLOCK_E), then twice (BLOCK_N, BLOCK_E)
        dq = tl.dot(dscores, k, input_precision=PRECISION) * scale
        store_rows(head_of(DQ, dq_s, b, h), dq_s, rows, N, columns, E, BLOCK_E, dq)
        q = load_rows(q_base, q_s, rows, N, columns, E, BLOCK_E)
        dk = tl.dot(dscores_t, q, input_precision=PRECISION) * scale
        store_rows(head_of(DK, dk_s, b, h), dk_s, keys, M, columns, E, BLOCK_E, dk)
        grad = load_gradient(grad_base, g_s, best_base, r_s, is_best, rows, N, columns, E, BLOCK_E, HAS_RESIDUAL)
        dv = tl.dot(dropped_t, grad, input_precision=PRECISION)
        store_rows(head_of(DV, dv_s, b, h), dv_s, keys, M, columns, E, BLOCK_E, dv)
