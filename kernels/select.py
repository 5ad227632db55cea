"""Norms and best head from partial results, in the launch that computes these.

The last program of a sample to arrive computes them. It reads all partial results in a fixed order, so the norms are
the same on every run, whichever program is last. The counters are integers that are zero before and after the launch
(`counter.py`).
"""

import triton
import triton.language as tl

# The norm that ranks the heads.
INDUCED = tl.constexpr(0)
ENTRYWISE = tl.constexpr(1)
CONFIDENCE = tl.constexpr(2)


@triton.jit
def select_best_head(
    PARTIAL,
    RECEIVED,
    NORMS,
    BEST,
    COUNTER,
    b,
    B,
    H,
    M,
    arrivals,
    SLICES,
    WIDTH,
    N,
    NORM: tl.constexpr,
    BATCH_SCOPE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Compute the norms and the best head of sample b when all its programs have arrived.

    PARTIAL is (B, H, SLICES, WIDTH) float32 and is first summed over SLICES. For the induced norm WIDTH holds column
    sums, and the norm is their maximum; for the other norms it holds sums over rows, and the norm is their total.
    RECEIVED is None, or (B, H, M) for the column sums; for the other norms they precede the sums over rows.
    COUNTER is (B + 1) int32 zeros, one for each sample and one for the batch. It is zero again afterwards.
    """
    # The stores of all threads must precede this program's arrival.
    tl.debug_barrier()
    if tl.atomic_add(COUNTER + b, 1, sem="acq_rel") == arrivals - 1:
        # All programs of the sample have arrived, and the next launch on the stream starts after this one ends, so
        # nothing else accesses the entry and a plain store is enough.
        tl.store(COUNTER + b, 0)
        heads = tl.arange(0, BLOCK_H)
        columns = tl.arange(0, BLOCK_W)
        head_exists = heads < H
        first = PARTIAL + (b * H + heads)[:, None] * SLICES * WIDTH
        norm = tl.zeros((BLOCK_H,), dtype=tl.float32)
        has_nan = tl.zeros((BLOCK_H,), dtype=tl.int32)
        for start in range(0, WIDTH, BLOCK_W):
            # (BLOCK_H, BLOCK_W)
            inside = head_exists[:, None] & (start + columns[None, :] < WIDTH)
            total = tl.zeros((BLOCK_H, BLOCK_W), dtype=tl.float32)
            for piece in range(0, SLICES):
                address = first + piece * WIDTH + start + columns[None, :]
                total += tl.load(address, mask=inside, other=0.0, cache_modifier=".cg")
            if RECEIVED is not None:
                received = RECEIVED + (b * H + heads)[:, None] * M + start + columns[None, :]
                is_column = start + columns[None, :] < M
                tl.store(received, total, mask=inside & is_column)
            if NORM == INDUCED:
                norm = tl.maximum(norm, tl.max(total, axis=1))
                # tl.max ignores NaN, but NaN must win, as in torch.argmax.
                has_nan = tl.maximum(has_nan, tl.max((total != total).to(tl.int32), axis=1))
            elif RECEIVED is not None:
                norm += tl.sum(tl.where(is_column, 0.0, total), axis=1)
            else:
                norm += tl.sum(total, axis=1)
        if NORM == CONFIDENCE:
            norm /= N
        norm = tl.where(has_nan != 0, float("nan"), norm)
        tl.store(NORMS + b * H + heads, norm, mask=head_exists)
        if BATCH_SCOPE:
            tl.debug_barrier()
            if tl.atomic_add(COUNTER + B, 1, sem="acq_rel") == B - 1:
                tl.store(COUNTER + B, 0)
                summed = tl.zeros((BLOCK_H,), dtype=tl.float32)
                for sample in range(0, B):
                    row = NORMS + sample * H + heads
                    summed += tl.load(row, mask=head_exists, other=0.0, cache_modifier=".cg")
                best = first_largest(summed, head_exists)
                for sample in range(0, B):
                    tl.store(BEST + sample, best)
        else:
            tl.store(BEST + b, first_largest(norm, head_exists))


@triton.jit
def first_largest(values, exists):
    """The lowest index of the largest value. NaN counts as larger than any number, as in torch.argmax."""
    ranked = tl.where(values != values, float("inf"), values)
    return tl.argmax(tl.where(exists, ranked, -1.0), axis=0, tie_break_left=True).to(tl.int64)
