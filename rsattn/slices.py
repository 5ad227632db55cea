"""How a GPU's kernels for the gradient of a mask divide their sums: one rule for Triton's and CUDA's.

One number of the gradient is a sum over the heads, in all samples, that use the same entry of the mask. A program owns
a tile of queries and keys of an entry, and walks over these heads. If the mask has one row for all queries, it owns a
block of keys, and walks over the blocks of queries of each head too. Where that gives few programs, several share a
walk: each has a slice of it, and a partial sum of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from .call import Call

# A few programs for each of a large GPU's multiprocessors.
ENOUGH = 512


class Walk(NamedTuple):
    """The division of a mask's gradient. Only shapes and the inputs' dtype decide.

    Attributes:
        programs: of one slice.
        steps: of the walk over all heads that use one entry of the mask.
        steps_each: of a slice; the last may have fewer.
        slices: partial sums of each number.
    """

    programs: int
    steps: int
    steps_each: int
    slices: int


def walk_of(call: Call, row_blocks: int, key_blocks: int) -> Walk:
    """The walk for `call.attn_mask`, whose queries and keys have these numbers of blocks."""
    query, mask = call.query, call.attn_mask
    assert mask is not None
    if query.shape[0] == 0:
        return Walk(programs=0, steps=0, steps_each=1, slices=1)
    repeat, mask_heads, rows, _ = mask.shape
    programs = repeat * mask_heads * key_blocks
    steps = query.shape[0] * query.shape[1] // (repeat * mask_heads)
    if rows == 1:
        steps *= row_blocks
    else:
        programs *= row_blocks
    # More slices, more programs; but several slices take no more memory than Q.
    most = max(1, query.nbytes // (4 * mask.numel()))
    steps_each = _divided(steps, min(steps, _divided(ENOUGH, programs), most))
    return Walk(programs, steps, steps_each, _divided(steps, steps_each))


def _divided(total: int, parts: int) -> int:
    """The quotient, rounded up."""
    return -(-total // parts)
