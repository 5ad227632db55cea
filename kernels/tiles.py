"""The operations on a tile that the attention kernels share: loads, scores, masks, dropout and statistics.

The index arguments `i` (queries) and `j` (keys) are int32 and broadcast over the tile, so the same code handles a tile
of queries x keys and its transpose. Addresses are 64-bit. Scores are in units of log2, because the hardware computes
exp2.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# The largest score in log2 units whose rounding error (half an ulp, up to 2^5) is small enough for exp2.
ROUNDED = tl.constexpr(2.0**30)
# A mask value is clamped to this, so that a finite value stays finite in log2 units.
HUGE = tl.constexpr(3.0e38)

# The kind of mask.
NO_MASK = tl.constexpr(0)
BOOL_MASK = tl.constexpr(1)
FLOAT_MASK = tl.constexpr(2)


# Strides are tuples in the order of the tensor's dimensions: (b, h, n, e), or (b, h, i, j) for the mask.


@triton.jit
def head_of(base, strides, b, h):
    """The address of head h of sample b."""
    return base + b * strides[0] + h * strides[1]


@triton.jit
def mask_of(base, strides, REPEAT, b, h):
    """The address of the mask of head h of sample b. The mask's batch axis has REPEAT entries, and repeats."""
    return head_of(base, strides, (b.to(tl.int32) % REPEAT).to(tl.int64), h)  # a 64-bit division is a function call


@triton.jit
def load_rows(
    base, strides, rows, limit, columns, width: tl.constexpr, block: tl.constexpr, PADDED: tl.constexpr = True
):
    """A (rows, columns) tile of one head. Rows from `limit` on and columns from `width` on are zero.

    PADDED: `rows` may reach beyond `limit`.
    """
    address = base + rows[:, None].to(tl.int64) * strides[2] + columns[None, :].to(tl.int64) * strides[3]
    if not PADDED and width % block == 0:
        return tl.load(address)
    else:
        inside = rows[:, None] < limit
        if width % block != 0:
            inside = inside & (columns[None, :] < width)
        return tl.load(address, mask=inside, other=0.0)


@triton.jit
def store_rows(base, strides, rows, limit, columns, width: tl.constexpr, block: tl.constexpr, tile):
    """Store a tile, the inverse of `load_rows`, in the dtype of `base`."""
    inside = rows[:, None] < limit
    if width % block != 0:
        inside = inside & (columns[None, :] < width)
    address = base + rows[:, None].to(tl.int64) * strides[2] + columns[None, :].to(tl.int64) * strides[3]
    tl.store(address, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def load_gradient(
    base,
    strides,
    best_base,
    best_strides,
    is_best,
    rows,
    limit,
    columns,
    width: tl.constexpr,
    block: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """The gradient of rows of O_h: the projection's and, if h is the best head, the residual's."""
    grad = load_rows(base, strides, rows, limit, columns, width, block)
    if HAS_RESIDUAL:
        # For other heads the limit is 0, so nothing is read.
        best_limit = tl.where(is_best, limit, 0)
        added = load_rows(best_base, best_strides, rows, best_limit, columns, width, block)
        grad = (grad.to(tl.float32) + added.to(tl.float32)).to(grad.dtype)
    return grad


@triton.jit
def scale_scores(scores, log2_scale, KIND: tl.constexpr, POSITIVE: tl.constexpr):
    """(scores, factor) whose product is in units of log2.

    A positive scale keeps the order of the scores. Without a mask it is therefore returned as the factor and applied
    later, in the multiply-add before exp2.
    """
    if POSITIVE and KIND == NO_MASK:
        return scores, log2_scale
    else:
        return scores * log2_scale, tl.full((), 1.0, dtype=tl.float32)


@triton.jit
def row_exponent(largest, factor):
    """(stretch, origin, error) of each row, for exp2(fma(score, stretch, -origin)).

    That is the score's exponential relative to the row's largest score, times 2^error, the same for a whole row. A
    fused multiply-add costs no more than a subtraction, but rounds only the origin, not score * stretch. The error is
    that rounding error, at most half an ulp of the origin. From an origin of 2^30 on, different scores differ by at
    least 2^6 in log2 units. With any stretch of at least `factor`, every exponential except the largest is then 0, and
    a stretch that is a power of two makes the product exact.
    """
    largest = tl.where(largest == float("-inf"), 0.0, largest)  # the row sees no key
    next_power = ((factor.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    stretch = tl.where(tl.abs(largest * factor) < ROUNDED, factor, next_power)
    origin = largest * stretch
    return stretch, origin, tl.fma(largest, stretch, -origin)


@triton.jit
def exponentials(scores, largest, factor, dtype: tl.constexpr, KIND: tl.constexpr, POSITIVE: tl.constexpr):
    """(exponentials, origin, unit, error) of a tile that will be rounded to `dtype`.

    The exponentials are relative to the largest score of their row, times 2^error. A value relative to an older origin
    is converted by the factor 2^((older - origin) * unit).
    """
    if dtype == tl.float16 or not (POSITIVE and KIND == NO_MASK):
        # float16 cannot hold a row scaled by 2^32; with a factor of 1 the subtraction costs no more than the fma.
        origin = tl.where(largest == float("-inf"), 0.0, largest)
        return tl.exp2((scores - origin[:, None]) * factor), origin, factor, origin * 0.0
    else:
        stretch, origin, error = row_exponent(largest, factor)
        return tl.exp2(tl.fma(scores, stretch[:, None], -origin[:, None])), origin, 1.0, error


@triton.jit
def mask_scores(scores, base, strides, i, j, N, M, KIND: tl.constexpr, PADDED: tl.constexpr = True):
    """Scores (log2 units) with the caller's mask applied and -inf for keys from M on.

    PADDED: `j` may reach beyond M, and the scores of these keys matter.
    """
    inside = (i < N) & (j < M)
    address = base + i.to(tl.int64) * strides[2] + j.to(tl.int64) * strides[3]
    if KIND == BOOL_MASK:
        allowed = tl.load(address, mask=inside, other=0)
        scores = tl.where(allowed != 0, scores, float("-inf"))
    elif KIND == FLOAT_MASK:
        added = tl.load(address, mask=inside, other=0.0)
        # The conversion must not turn a huge finite value, such as finfo.min, into -inf.
        log2 = added.to(tl.float32) * LOG2E
        scores += tl.where(tl.abs(added) < float("inf"), tl.clamp(log2, -HUGE, HUGE), log2)
    if PADDED:
        scores = tl.where(j < M, scores, float("-inf"))
    return scores


@triton.jit
def dropout_keep(seed, threshold, b, h, first_i, first_j, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A (BLOCK_M, BLOCK_N) tile: which probabilities dropout keeps. rsattn/philox.py defines the stream."""
    i = first_i + tl.arange(0, BLOCK_M)
    group = first_j // 4 + tl.arange(0, BLOCK_N // 4)
    zero = tl.zeros((BLOCK_M, BLOCK_N // 4), dtype=tl.int32)
    w0, w1, w2, w3 = tl.philox(
        seed, zero + group[None, :], zero + i[:, None], zero + h.to(tl.int32), zero + b.to(tl.int32)
    )
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(BLOCK_M, BLOCK_N)
    least = tl.full((1, 1), threshold, tl.int32).to(tl.uint32, bitcast=True)
    return words >= least


@triton.jit
def program_of(H, BLOCKS):
    """(b * H + h, b, h, block) of this program; block is int32, the others int64. A head's blocks are neighbors."""
    program = tl.program_id(0).to(tl.int64)
    bh = program // BLOCKS
    return bh, bh // H, bh % H, (program % BLOCKS).to(tl.int32)


@triton.jit
def store_statistics(STATISTICS, bh, rows, N, largest, log2_sum):
    """Store the statistics of a head's rows, from which the backward pass recomputes P; STATISTICS is (B, H, 2, N).

    They are the largest score and log2 of the sum of exponentials relative to it, or 0 and +inf (hence probability 0)
    if the row sees no key. Their sum alone is too inexact: at 2^20, half an ulp is 4 % of a probability.
    """
    own = STATISTICS + 2 * bh * N + rows
    tl.store(own, largest, mask=rows < N)
    tl.store(own + N, log2_sum, mask=rows < N)


@triton.jit
def load_statistics(STATISTICS, bh, rows, N):
    """(largest, log2_sum) as stored; rows from N on are like rows that see no key."""
    own = STATISTICS + 2 * bh * N + rows
    return tl.load(own, mask=rows < N, other=0.0), tl.load(own + N, mask=rows < N, other=float("inf"))


@triton.jit
def probabilities(scores, factor, largest, log2_sum):
    """P of a tile from statistics that broadcast over it; as exact as `row_exponent`, for one more addition each."""
    return tl.exp2((scores - largest) * factor - log2_sum)
