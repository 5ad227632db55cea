"""Backward for any number of keys, in two launches: dQ with the queries standing still, then dK and dV with the
keys standing still. Each output tile is made by one program, in one order: no atomics.

`query_gradient` also writes delta_i = sum_e dO_ie O_ie, which `key_value_gradient` reads. As in the forward pass
a head wider than BLOCK_E is one program per chunk of its width, each with the whole head's scores.
"""

import triton
import triton.language as tl

from .tiles import (
    LOG2E,
    dropout_keep,
    head_of,
    load_gradient,
    load_rows,
    mask_scores,
    program_of,
    row_totals,
    store_rows,
)


@triton.jit
def query_gradient(
    Q,
    K,
    V,
    MASK,
    SEED,
    OUT,
    LSE,
    BEST,
    GRAD,
    GRAD_BEST,
    DELTA,
    DQ,
    q_s,
    k_s,
    v_s,
    m_s,
    o_s,
    g_s,
    r_s,
    dq_s,
    H,
    N,
    M,
    ROW_BLOCKS,
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
):
    CHUNKS: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    bh, b, h, block = program_of(H, ROW_BLOCKS * CHUNKS)
    own_chunk = block % CHUNKS
    start = block // CHUNKS * BLOCK_M
    rows = start + tl.arange(0, BLOCK_M)
    width = tl.arange(0, BLOCK_E)
    own_columns = own_chunk * BLOCK_E + width
    q_base = head_of(Q, q_s, b, h)
    k_base = head_of(K, k_s, b, h)
    v_base = head_of(V, v_s, b, h)
    out_base = head_of(OUT, o_s, b, h)
    grad_base = head_of(GRAD, g_s, b, h)
    best_base = head_of(GRAD_BEST, r_s, b, 0)
    is_best = tl.load(BEST + b) == h
    if DROPOUT:
        seed = tl.load(SEED)
    if CHUNKS == 1:
        q = load_rows(q_base, q_s, rows, N, width, E, BLOCK_E)
        grad = load_gradient(grad_base, g_s, best_base, r_s, is_best, rows, N, width, E, BLOCK_E, HAS_RESIDUAL)
    delta = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for chunk in range(CHUNKS):
        columns = chunk * BLOCK_E + width
        if CHUNKS > 1:
            grad = load_gradient(grad_base, g_s, best_base, r_s, is_best, rows, N, columns, E, BLOCK_E, HAS_RESIDUAL)
        out = load_rows(out_base, o_s, rows, N, columns, E, BLOCK_E)
        delta += tl.sum(grad.to(tl.float32) * out.to(tl.float32), axis=1)
    if own_chunk == 0:
        tl.store(DELTA + bh * N + rows, delta, mask=rows < N)
    log2_total = row_totals(LSE + bh * N, rows, N)
    # (BLOCK_M, BLOCK_E)
    dq = tl.zeros((BLOCK_M, BLOCK_E), dtype=tl.float32)
    for first_key in range(0, M, BLOCK_N):
        keys = first_key + tl.arange(0, BLOCK_N)
        # (BLOCK_M, BLOCK_N)
        scores = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        dprobs = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for chunk in range(CHUNKS):
            columns = chunk * BLOCK_E + width
            if CHUNKS > 1:
                q = load_rows(q_base, q_s, rows, N, columns, E, BLOCK_E)
                grad = load_gradient(
                    grad_base, g_s, best_base, r_s, is_best, rows, N, columns, E, BLOCK_E, HAS_RESIDUAL
                )
            k_chunk = load_rows(k_base, k_s, keys, M, columns, E, BLOCK_E)
            v = load_rows(v_base, v_s, keys, M, columns, E, BLOCK_E)
            scores = tl.dot(q, tl.trans(k_chunk), scores, input_precision=PRECISION)
            dprobs = tl.dot(grad, tl.trans(v), dprobs, input_precision=PRECISION)
        scores = mask_scores(
            scores * (scale * LOG2E),
            head_of(MASK, m_s, b, h),
            m_s,
            rows[:, None],
            keys[None, :],
            N,
            M,
            MASK_KIND,
        )
        probs = tl.exp2(scores - log2_total[:, None])
        if DROPOUT:
            keep = dropout_keep(seed, threshold, b, h, start, first_key, BLOCK_M, BLOCK_N)
            dprobs = tl.where(keep, dprobs * keep_scale, 0.0)
        dscores = (probs * (dprobs - delta[:, None])).to(Q.dtype.element_ty)
        k = load_rows(k_base, k_s, keys, M, own_columns, E, BLOCK_E)
        dq = tl.dot(dscores, k, dq, input_precision=PRECISION)
    store_rows(head_of(DQ, dq_s, b, h), dq_s, rows, N, own_columns, E, BLOCK_E, dq * scale)


@triton.jit
def key_value_gradient(
    Q,
    K,
    V,
    MASK,
    SEED,
    LSE,
    BEST,
    GRAD,
    GRAD_BEST,
    DELTA,
    DK,
    DV,
    q_s,
    k_s,
    v_s,
    m_s,
    g_s,
    r_s,
    dk_s,
    dv_s,
    H,
    N,
    M,
    KEY_BLOCKS,
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
):
    CHUNKS: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    bh, b, h, block = program_of(H, KEY_BLOCKS * CHUNKS)
    own_chunk = block % CHUNKS
    first_key = block // CHUNKS * BLOCK_N
    keys = first_key + tl.arange(0, BLOCK_N)
    width = tl.arange(0, BLOCK_E)
    own_columns = own_chunk * BLOCK_E + width
    q_base = head_of(Q, q_s, b, h)
    k_base = head_of(K, k_s, b, h)
    v_base = head_of(V, v_s, b, h)
    grad_base = head_of(GRAD, g_s, b, h)
    best_base = head_of(GRAD_BEST, r_s, b, 0)
    is_best = tl.load(BEST + b) == h
    if DROPOUT:
        seed = tl.load(SEED)
    if CHUNKS == 1:
        k = load_rows(k_base, k_s, keys, M, width, E, BLOCK_E)
        v = load_rows(v_base, v_s, keys, M, width, E, BLOCK_E)
    # (BLOCK_N, BLOCK_E)
    dk = tl.zeros((BLOCK_N, BLOCK_E), dtype=tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_E), dtype=tl.float32)
    for start in range(0, N, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        if CHUNKS == 1:
            q = load_rows(q_base, q_s, rows, N, width, E, BLOCK_E)
            grad = load_gradient(grad_base, g_s, best_base, r_s, is_best, rows, N, width, E, BLOCK_E, HAS_RESIDUAL)
        # (BLOCK_N, BLOCK_M): transposed tiles, a row per key
        scores = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        dprobs = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for chunk in range(CHUNKS):
            columns = chunk * BLOCK_E + width
            if CHUNKS > 1:
                k = load_rows(k_base, k_s, keys, M, columns, E, BLOCK_E)
                v = load_rows(v_base, v_s, keys, M, columns, E, BLOCK_E)
                q = load_rows(q_base, q_s, rows, N, columns, E, BLOCK_E)
                grad = load_gradient(
                    grad_base, g_s, best_base, r_s, is_best, rows, N, columns, E, BLOCK_E, HAS_RESIDUAL
                )
            scores = tl.dot(k, tl.trans(q), scores, input_precision=PRECISION)
            dprobs = tl.dot(v, tl.trans(grad), dprobs, input_precision=PRECISION)
        scores = mask_scores(
            scores * (scale * LOG2E),
            head_of(MASK, m_s, b, h),
            m_s,
            rows[None, :],
            keys[:, None],
            N,
            M,
            MASK_KIND,
        )
        probs = tl.exp2(scores - row_totals(LSE + bh * N, rows, N)[None, :])
        dropped = probs
        if DROPOUT:
            keep = tl.trans(dropout_keep(seed, threshold, b, h, start, first_key, BLOCK_M, BLOCK_N))
            dropped = tl.where(keep, probs * keep_scale, 0.0)
            dprobs = tl.where(keep, dprobs * keep_scale, 0.0)
        delta = tl.load(DELTA + bh * N + rows, mask=rows < N, other=0.0)
        dscores = (probs * (dprobs - delta[None, :])).to(Q.dtype.element_ty)
        if CHUNKS > 1:
            q = load_rows(q_base, q_s, rows, N, own_columns, E, BLOCK_E)
            grad = load_gradient(
                grad_base, g_s, best_base, r_s, is_best, rows, N, own_columns, E, BLOCK_E, HAS_RESIDUAL
            )
        dv = tl.dot(dropped.to(GRAD.dtype.element_ty), grad, dv, input_precision=PRECISION)
        dk = tl.dot(dscores, q, dk, input_precision=PRECISION)
    store_rows(head_of(DK, dk_s, b, h), dk_s, keys, M, own_columns, E, BLOCK_E, dk * scale)
    store_rows(head_of(DV, dv_s, b, h), dv_s, keys, M, own_columns, E, BLOCK_E, dv)
