"""Backward for any number of keys, in two launches: dQ first, then dK and dV.

In the first launch a program owns a block of queries and loops over keys; in the second it owns a block of keys and
loops over queries. One program computes each output tile, in a fixed order, without atomics. `query_gradient` also
writes delta_i = sum_e dO_ie O_ie, which `key_value_gradient` reads. With a head_dim above BLOCK_E, as in the forward
pass, each chunk of columns has its own program, which computes the scores of the whole head.
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
    row_exponent,
    scale_scores,
    store_rows,
)


@triton.jit(do_not_specialize_on_alignment=["REPEAT"])
def query_gradient(
    Q,
    K,
    V,
    MASK,
    SEED,
    OUT,
    STATISTICS,
    BEST,
    GRAD,
    GRAD_BEST,
    SUMMED,
    ROWS,
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
    REPEAT,
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
    POSITIVE: tl.constexpr,
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
    mask_base = mask_of(MASK, m_s, REPEAT, b, h)
    log2_scale = scale * LOG2E
    seed = tl.load(SEED) if DROPOUT else 0
    q = 0
    grad = 0
    if CHUNKS == 1:
        q = load_rows(q_base, q_s, rows, N, width, E, BLOCK_E)
        grad = load_gradient(grad_base, g_s, best_base, r_s, is_best, rows, N, width, E, BLOCK_E, HAS_RESIDUAL)
    delta = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for chunk in range(CHUNKS):
        columns = chunk * BLOCK_E + width
        part = grad
        if CHUNKS > 1:
            part = load_gradient(grad_base, g_s, best_base, r_s, is_best, rows, N, columns, E, BLOCK_E, HAS_RESIDUAL)
        out = load_rows(out_base, o_s, rows, N, columns, E, BLOCK_E)
        delta += tl.sum(part.to(tl.float32) * out.to(tl.float32), axis=1)  # type: ignore[attr-defined]
        if HAS_RESIDUAL:
            # Only the best head's rows are stored, by the program of its first chunk.
            last = tl.where(is_best & (own_chunk == 0), N, 0)
            store_rows(SUMMED + b * N * E, (0, 0, E, 1), rows, last, columns, E, BLOCK_E, part)
    largest, log2_sum = load_statistics(STATISTICS, bh, rows, N)
    if own_chunk == 0:
        rows_each = ROW_BLOCKS * BLOCK_M
        own_rows = ROWS + 3 * bh * rows_each + rows
        tl.store(own_rows, largest)
        tl.store(own_rows + rows_each, log2_sum)
        tl.store(own_rows + 2 * rows_each, delta)
    _, factor = scale_scores(0.0, log2_scale, MASK_KIND, POSITIVE)
    stretch, origin, error = row_exponent(largest, factor)
    # P is the exponential times this weight. It turns the subtraction of delta from dP into a multiply-add.
    weight = tl.exp2(-log2_sum - error)
    weighted_delta = weight * delta
    # (BLOCK_M, BLOCK_E)
    dq = tl.zeros((BLOCK_M, BLOCK_E), dtype=tl.float32)
    whole = M // BLOCK_N * BLOCK_N
    # First the blocks whose keys are all below M, then the last block, which may have padded keys to hide.
    for padded in tl.static_range(2):
        for first_key in range(whole * padded, M if padded else whole, BLOCK_N):
            keys = first_key + tl.arange(0, BLOCK_N)
            # (BLOCK_M, BLOCK_N)
            scores = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            dprobs = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            if CHUNKS == 1:
                k = load_rows(k_base, k_s, keys, M, width, E, BLOCK_E, padded)
                v = load_rows(v_base, v_s, keys, M, width, E, BLOCK_E, padded)
                scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
                dprobs = tl.dot(grad, tl.trans(v), dprobs, input_precision=PRECISION)
            else:
                for chunk in range(CHUNKS):
                    columns = chunk * BLOCK_E + width
                    q_part = load_rows(q_base, q_s, rows, N, columns, E, BLOCK_E)
                    grad_part = load_gradient(
                        grad_base, g_s, best_base, r_s, is_best, rows, N, columns, E, BLOCK_E, HAS_RESIDUAL
                    )
                    k_part = load_rows(k_base, k_s, keys, M, columns, E, BLOCK_E)
                    v = load_rows(v_base, v_s, keys, M, columns, E, BLOCK_E)
                    scores = tl.dot(q_part, tl.trans(k_part), scores, input_precision=PRECISION)
                    dprobs = tl.dot(grad_part, tl.trans(v), dprobs, input_precision=PRECISION)
                k = load_rows(k_base, k_s, keys, M, own_columns, E, BLOCK_E)
            scores, _ = scale_scores(scores, log2_scale, MASK_KIND, POSITIVE)
            scores = mask_scores(scores, mask_base, m_s, rows[:, None], keys[None, :], N, M, MASK_KIND, padded)
            exponentials = tl.exp2(tl.fma(scores, stretch[:, None], -origin[:, None]))
            if DROPOUT:
                keep = dropout_keep(seed, threshold, b, h, start, first_key, BLOCK_M, BLOCK_N)
                dprobs = tl.where(keep, dprobs * keep_scale, 0.0)
            dscores = (exponentials * (dprobs * weight[:, None] - weighted_delta[:, None])).to(k.dtype)
            dq = tl.dot(dscores, k, dq, input_precision=PRECISION)
    store_rows(head_of(DQ, dq_s, b, h), dq_s, rows, N, own_columns, E, BLOCK_E, dq * scale)


@triton.jit(do_not_specialize_on_alignment=["REPEAT"])
def key_value_gradient(
    Q,
    K,
    V,
    MASK,
    SEED,
    BEST,
    GRAD,
    SUMMED,
    ROWS,
    DK,
    DV,
    q_s,
    k_s,
    v_s,
    m_s,
    g_s,
    dk_s,
    dv_s,
    H,
    N,
    M,
    REPEAT,
    ROWS_EACH,
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
    POSITIVE: tl.constexpr,
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
    statistics = ROWS + 3 * bh * ROWS_EACH
    grad_s = g_s
    if HAS_RESIDUAL:
        is_best = tl.load(BEST + b) == h
        grad_base = tl.where(is_best, SUMMED + b * N * E, grad_base)
        grad_s = (0, 0, tl.where(is_best, E, g_s[2]), tl.where(is_best, 1, g_s[3]))
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
            grad = load_rows(grad_base, grad_s, rows, N, width, E, BLOCK_E)
        # (BLOCK_N, BLOCK_M), transposed: one row for each key
        scores = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        dprobs = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for chunk in range(CHUNKS):
            columns = chunk * BLOCK_E + width
            if CHUNKS > 1:
                k = load_rows(k_base, k_s, keys, M, columns, E, BLOCK_E)
                v = load_rows(v_base, v_s, keys, M, columns, E, BLOCK_E)
                q = load_rows(q_base, q_s, rows, N, columns, E, BLOCK_E)
                grad = load_rows(grad_base, grad_s, rows, N, columns, E, BLOCK_E)
            scores = tl.dot(k, tl.trans(q), scores, input_precision=PRECISION)
            dprobs = tl.dot(v, tl.trans(grad), dprobs, input_precision=PRECISION)
        scores, factor = scale_scores(scores, scale * LOG2E, MASK_KIND, POSITIVE)
        scores = mask_scores(
            scores,
            mask_of(MASK, m_s, REPEAT, b, h),
            m_s,
            rows[None, :],
            keys[:, None],
            N,
            M,
            MASK_KIND,
            PADDED=False,  # a padded key has a row of its own, which is not stored
        )
        largest, log2_sum = tl.load(statistics + rows), tl.load(statistics + ROWS_EACH + rows)
        probs = probabilities(scores, factor, largest[None, :], log2_sum[None, :])
        dropped = probs
        if DROPOUT:
            keep = tl.trans(dropout_keep(seed, threshold, b, h, start, first_key, BLOCK_M, BLOCK_N))
            dropped = tl.where(keep, probs * keep_scale, 0.0)
            dprobs = tl.where(keep, dprobs * keep_scale, 0.0)
        delta = tl.load(statistics + 2 * ROWS_EACH + rows)
        dscores = (probs * (dprobs - delta[None, :])).to(Q.dtype.element_ty)
        if CHUNKS > 1:
            q = load_rows(q_base, q_s, rows, N, own_columns, E, BLOCK_E)
            grad = load_rows(grad_base, grad_s, rows, N, own_columns, E, BLOCK_E)
        dv = tl.dot(dropped.to(GRAD.dtype.element_ty), grad, dv, input_precision=PRECISION)
        dk = tl.dot(dscores, q, dk, input_precision=PRECISION)
    store_rows(head_of(DK, dk_s, b, h), dk_s, keys, M, own_columns, E, BLOCK_E, dk * scale)
    store_rows(head_of(DV, dv_s, b, h), dv_s, keys, M, own_columns, E, BLOCK_E, dv)
