"""The gradient of a float mask: the sum of dS over the heads and samples that share the mask.

A program owns a tile of queries and keys of one entry of the mask, and walks over the heads and samples that use it. It
recomputes their scores and dP, adds dS in registers and stores the sum once. If the mask has one row for all queries,
the program owns a block of keys, walks over the row blocks of each head too, and sums its tile over its rows at the
end. If a walk is long, several programs share it. Their sums lie in different slices of DMASK, which are added
afterwards.
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
    mask_scores,
    probabilities,
    scale_scores,
)


@triton.jit(do_not_specialize=["STEPS", "STEPS_EACH"], do_not_specialize_on_alignment=["REPEAT"])
def mask_gradient(
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
    DMASK,
    q_s,
    k_s,
    v_s,
    m_s,
    o_s,
    g_s,
    r_s,
    H,
    N,
    M,
    REPEAT,
    MASK_H,
    HEADS_EACH,
    STEPS,
    STEPS_EACH,
    ROW_BLOCKS,
    KEY_BLOCKS,
    scale,
    threshold,
    keep_scale,
    E: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    MASK_KIND: tl.constexpr,
    ONE_ROW: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    POSITIVE: tl.constexpr,
):
    """DMASK is (slices, REPEAT, MASK_H, N, M) float32, or with ONE_ROW (slices, REPEAT, MASK_H, M).

    REPEAT and MASK_H are the sizes of the mask's first axes. One entry of these axes is used by HEADS_EACH heads in a
    sample. The walk over all of them, and with ONE_ROW over their row blocks, has STEPS steps, of which a program takes
    STEPS_EACH.
    """
    CHUNKS: tl.constexpr = (E + BLOCK_E - 1) // BLOCK_E
    OWN_BLOCKS = 1 if ONE_ROW else ROW_BLOCKS  # one of these row blocks belongs to the program
    program = tl.program_id(0).to(tl.int64)
    entry = program // (OWN_BLOCKS * KEY_BLOCKS)  # of the slices, REPEAT and MASK_H together
    tile = (program % (OWN_BLOCKS * KEY_BLOCKS)).to(tl.int32)
    own_block = tile // KEY_BLOCKS
    first_key = tile % KEY_BLOCKS * BLOCK_N
    keys = first_key + tl.arange(0, BLOCK_N)
    width = tl.arange(0, BLOCK_E)
    entries = REPEAT * MASK_H
    part = (entry // entries).to(tl.int32)
    first_b = entry // MASK_H % REPEAT
    first_h = entry % MASK_H
    mask_base = head_of(MASK, m_s, first_b, first_h)
    seed = tl.load(SEED) if DROPOUT else 0
    # (BLOCK_M, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(part * STEPS_EACH, tl.minimum(part * STEPS_EACH + STEPS_EACH, STEPS)):
        use = step // ROW_BLOCKS if ONE_ROW else step
        start = (step % ROW_BLOCKS if ONE_ROW else own_block) * BLOCK_M
        rows = start + tl.arange(0, BLOCK_M)
        b = first_b + use // HEADS_EACH * REPEAT
        h = first_h + use % HEADS_EACH
        q_base = head_of(Q, q_s, b, h)
        k_base = head_of(K, k_s, b, h)
        v_base = head_of(V, v_s, b, h)
        out_base = head_of(OUT, o_s, b, h)
        grad_base = head_of(GRAD, g_s, b, h)
        best_base = head_of(GRAD_BEST, r_s, b, 0)
        is_best = tl.load(BEST + b) == h
        scores = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        dprobs = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        delta = tl.zeros((BLOCK_M,), dtype=tl.float32)
        for chunk in range(CHUNKS):
            columns = chunk * BLOCK_E + width
            q = load_rows(q_base, q_s, rows, N, columns, E, BLOCK_E)
            k = load_rows(k_base, k_s, keys, M, columns, E, BLOCK_E)
            scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
            grad = load_gradient(grad_base, g_s, best_base, r_s, is_best, rows, N, columns, E, BLOCK_E, HAS_RESIDUAL)
            v = load_rows(v_base, v_s, keys, M, columns, E, BLOCK_E)
            dprobs = tl.dot(grad, tl.trans(v), dprobs, input_precision=PRECISION)
            out = load_rows(out_base, o_s, rows, N, columns, E, BLOCK_E)
            delta += tl.sum(grad.to(tl.float32) * out.to(tl.float32), axis=1)
        scores, factor = scale_scores(scores, scale * LOG2E, MASK_KIND, POSITIVE)
        scores = mask_scores(
            scores,
            mask_base,
            m_s,
            rows[:, None],
            keys[None, :],
            N,
            M,
            MASK_KIND,
            PADDED=False,  # a padded key has a column of its own, which is not stored
        )
        # Rows from N on have probability 0.
        largest, log2_sum = load_statistics(STATISTICS, b * H + h, rows, N)
        probs = probabilities(scores, factor, largest[:, None], log2_sum[:, None])
        if DROPOUT:
            keep = dropout_keep(seed, threshold, b, h, start, first_key, BLOCK_M, BLOCK_N)
            dprobs = tl.where(keep, dprobs * keep_scale, 0.0)
        total += probs * (dprobs - delta[:, None])
    if ONE_ROW:
        tl.store(DMASK + entry * M + keys, tl.sum(total, axis=0), mask=keys < M)
    else:
        rows = own_block * BLOCK_M + tl.arange(0, BLOCK_M)
        own = DMASK + entry * N * M
        inside = (rows[:, None] < N) & (keys[None, :] < M)
        tl.store(own + rows[:, None].to(tl.int64) * M + keys[None, :], total, mask=inside)
