"""What every attention kernel does with a tile: score it, mask it, drop from it.

Index arguments `i` (queries) and `j` (keys) are int32 and shaped to broadcast over the tile, so the same code
serves a tile of queries x keys and its transpose; addresses are 64-bit. Scores are kept in units of log2: exp2 is
the machine's own exponential.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# The largest score in log2 units whose rounding is small enough for exp2: up to half an ulp, 2^5.
ROUNDED = tl.constexpr(2.0**30)
# Beyond this a mask's number, in log2 units, would become infinite.
HUGE = tl.constexpr(3.0e38)

# How the mask argument is read.
NO_MASK = tl.constexpr(0)
BOOL_MASK = tl.constexpr(1)
FLOAT_MASK = tl.constexpr(2)


# Strides travel as tuples in the tensor's own order: (b, h, n, e), for the mask (b, h, i, j).


@triton.jit
def head_of(base, strides, b, h):
    """Where head h of sample b begins."""
    return base + b * strides[0] + h * strides[1]


@triton.jit
def load_rows(
    base, strides, rows, limit, columns, width: tl.constexpr, block: tl.constexpr, PADDED: tl.constexpr = True
):
    """A (rows, columns) tile of one head; rows from `limit` on and columns from `width` on read as zero.

    PADDED: rows from `limit` on may be among them.
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
    """The inverse of `load_rows`, in the dtype of what `base` points to."""
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
    """The gradient of O_h's rows: the projection's, plus the residual's where h is the best head."""
    grad = load_rows(base, strides, rows, limit, columns, width, block)
    if HAS_RESIDUAL:
        # For every other head no row is inside, and nothing is read.
        best_limit = tl.where(is_best, limit, 0)
        added = load_rows(best_base, best_strides, rows, best_limit, columns, width, block)
        grad = (grad.to(tl.float32) + added.to(tl.float32)).to(grad.dtype)
    return grad


@triton.jit
def scale_scores(scores, log2_scale, KIND: tl.constexpr, POSITIVE: tl.constexpr):
    """(scores, factor) whose product is in units of log2.

    A positive scale leaves the order of the scores, so without a mask it can wait, as the factor, for the multiply-add
    in front of exp2.
    """
    if POSITIVE and KIND == NO_MASK:
        return scores, log2_scale
    else:
        return scores * log2_scale, tl.to_tensor(1.0)


@triton.jit
def row_exponent(largest, factor):
    """(stretch, origin, error) of rows: exp2(fma(score, stretch, -origin)) is a score's exponential relative to the
    row's largest, times 2^error, the same for a whole row.

    A multiply-add rounds the origin but not score * stretch, which costs no more than the addition alone. The error is
    what that leaves, at most half an ulp of the origin. From an origin of 2^30 on, scores that differ at all differ by
    2^6 or more in log2 units. With any stretch of at least `factor`, every exponential but the largest is then 0; a
    power of two makes the product exact.
    """
    largest = tl.where(largest == float("-inf"), 0.0, largest)  # no key is seen
    next_power = ((factor.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    stretch = tl.where(tl.abs(largest * factor) < ROUNDED, factor, next_power)
    origin = largest * stretch
    return stretch, origin, tl.fma(largest, stretch, -origin)


@triton.jit
def exponentials(scores, largest, factor, dtype: tl.constexpr, KIND: tl.constexpr, POSITIVE: tl.constexpr):
    """(exponentials, origin, unit, error): of a tile, relative to its rows' largest, times 2^error; what is relative to
    another origin is made so by 2^((that - origin) * unit). The tile will be rounded to `dtype`.
    """
    if dtype == tl.float16 or not (POSITIVE and KIND == NO_MASK):
        # float16 has no room for a row that is off by 2^32, and where the factor is 1 the difference costs no more.
        origin = tl.where(largest == float("-inf"), 0.0, largest)
        return tl.exp2((scores - origin[:, None]) * factor), origin, factor, origin * 0.0
    else:
        stretch, origin, error = row_exponent(largest, factor)
        return tl.exp2(tl.fma(scores, stretch[:, None], -origin[:, None])), origin, 1.0, error


@triton.jit
def mask_scores(scores, base, strides, i, j, N, M, KIND: tl.constexpr, PADDED: tl.constexpr = True):
    """Scores (log2 units) with the caller's mask applied and keys from M on at -inf.

    PADDED: keys from M on may be among them, and what they get matters.
    """
    inside = (i < N) & (j < M)
    address = base + i.to(tl.int64) * strides[2] + j.to(tl.int64) * strides[3]
    if KIND == BOOL_MASK:
        allowed = tl.load(address, mask=inside, other=0)
        scores = tl.where(allowed != 0, scores, float("-inf"))
    elif KIND == FLOAT_MASK:
        added = tl.load(address, mask=inside, other=0.0)
        # Changing type and units must not turn a huge finite number (finfo.min, say) into -inf.
        log2 = added.to(tl.float32) * LOG2E
        scores += tl.where(tl.abs(added) < float("inf"), tl.clamp(log2, -HUGE, HUGE), log2)
    if PADDED:
        scores = tl.where(j < M, scores, float("-inf"))
    return scores


@triton.jit
def dropout_keep(seed, threshold, b, h, first_i, first_j, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The (BLOCK_M, BLOCK_N) tile of kept probabilities; rsattn/philox.py defines the stream."""
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
    """(b * H + h, b, h, block) of this program; all but the block are int64. A head's blocks run side by side."""
    program = tl.program_id(0).to(tl.int64)
    bh = program // BLOCKS
    return bh, bh // H, bh % H, (program % BLOCKS).to(tl.int32)


@triton.jit
def store_statistics(STATISTICS, bh, rows, N, largest, log2_sum):
    """What the backward pass needs of a head's rows of scores to make P again; STATISTICS is (B, H, 2, N).

    The largest, and log2 of the sum of exponentials relative to it; 0 and +inf, hence probability 0, where no key is
    seen. Not their sum alone: of 2^20, half an ulp is 4 % of a probability.
    """
    own = STATISTICS + 2 * bh * N + rows
    tl.store(own, largest, mask=rows < N)
    tl.store(own + N, log2_sum, mask=rows < N)


@triton.jit
def load_statistics(STATISTICS, bh, rows, N):
    """(largest, log2_sum) as stored; rows beyond N read as rows that see no key."""
    own = STATISTICS + 2 * bh * N + rows
    return tl.load(own, mask=rows < N, other=0.0), tl.load(own + N, mask=rows < N, other=float("inf"))


@triton.jit
def probabilities(scores, factor, largest, log2_sum):
    """P of a tile from statistics shaped to broadcast over it: as good as `row_exponent`'s, an addition more each."""
    return tl.exp2((scores - largest) * factor - log2_sum)
