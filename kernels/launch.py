"""Plain functions on tensors that allocate the outputs, choose a row of the table and launch the kernels.

They do not check their arguments; `Call.check` does. Kernels are launched by keyword, from dictionaries of the
arguments that several kernels share. Integers that depend on the batch are in the kernels' `do_not_specialize`, so that
a smaller last batch compiles nothing.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rsattn import philox
from rsattn.call import Call, Forward, Gradients, empty_forward, empty_gradients
from rsattn.slices import walk_of

from . import counter
from .column_sums import column_sums
from .configs import Config, blocks, find, power_of_two
from .mask_gradient import mask_gradient
from .row_backward import row_backward
from .row_forward import row_forward
from .select import CONFIDENCE, ENTRYWISE, INDUCED
from .square_backward import square_backward
from .stream_backward import key_value_gradient, query_gradient
from .stream_forward import stream_forward
from .tiles import BOOL_MASK, FLOAT_MASK, NO_MASK

NORMS = {"induced": INDUCED.value, "entrywise": ENTRYWISE.value, "confidence": CONFIDENCE.value}

# Row blocks of a head in one program of the whole-row forward pass. K and V are read once for all of them, and column
# sums are added across threads once. Above WIDEST_SHARED columns K and V do not stay on chip, and there are few heads.
BLOCKS_PER_PROGRAM = 4
WIDEST_SHARED = 128

# In square_backward this many programs share the chunks of a head. Each recomputes the scores and dP, two fifths of the
# work, but with one program for each head, 4 heads in a batch of 16 would leave half of a large GPU idle.
SHARES_OF_A_HEAD = 3

# The smallest scale that can be applied in the exponential. With a smaller one, the differences of unscaled scores may
# overflow, and a scale that rounds to 0 would turn the -inf of a hidden score into NaN.
SMALLEST = 2.0**-100

_NO_GPU = nullcontext()


@functools.cache
def architecture(device: torch.device) -> str:
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def current(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which this GPU is the current one, on which Triton launches."""
    return torch.cuda.device(device.index) if device.type == "cuda" else _NO_GPU


def forward(call: Call) -> Forward:
    """See `Backend.forward`."""
    result = empty_forward(call)
    if call.query.shape[0]:
        attention = _attention(call) | dict(OUT=result.output, o_s=result.output.stride())
        _forward(call, attention, result.statistics, result.norms, result.best_head, result.received)
    return result


def received(call: Call) -> Tensor:
    """See `Backend.received`. The kernels of the forward pass run without V, the output and dropout."""
    call = Call((call.query, call.key, call.key), call.attn_mask, scale=call.scale)
    batch, heads = call.query.shape[:2]
    sums = _of_every_head(call, call.key.shape[2])
    if batch:
        best_head = torch.empty((batch,), dtype=torch.int64, device=call.query.device)
        attention = _attention(call) | dict(V=None, v_s=None, OUT=None, o_s=None)
        _forward(call, attention, None, _of_every_head(call, 1), best_head, sums)
    return sums.view(batch, heads, call.key.shape[2])


def _forward(
    call: Call,
    attention: dict[str, Any],
    statistics: Tensor | None,
    norms: Tensor,
    best_head: Tensor,
    received: Tensor | None,
) -> None:
    batch, heads, length, _ = call.query.shape
    device = call.query.device
    row = _config("row_forward", call, call.key.shape[2])
    if row is None and statistics is None:
        statistics = _of_every_head(call, 2 * length)  # read by the second streaming pass
    with current(device), counter.Zeros(device, batch + 1) as arrived:
        scores = _scores(call)
        ranking = dict(
            STATISTICS=statistics,
            NORMS=norms,
            BEST=best_head,
            COUNTER=arrived,
            B=batch,
            BATCH_SCOPE=call.scope == "batch",
            BLOCK_H=power_of_two(heads),
        )
        if row is not None:
            _row_forward(call, row, scores | attention | ranking, received)
        else:
            _stream_forward(call, scores, attention, ranking, received)


def _row_forward(call: Call, row: Config, arguments: dict[str, Any], received: Tensor | None) -> None:
    batch, heads, length, width = call.query.shape
    induced = call.norm == "induced"
    blocks_each = BLOCKS_PER_PROGRAM if width <= WIDEST_SHARED else 1
    programs = blocks(length, row.block_m * blocks_each)
    columns = call.key.shape[2] if induced or received is not None else 0
    if induced and received is not None and programs == 1:
        partial, received = received, None  # a head's only partial sums are its sums
    else:
        partial = _of_every_head(call, programs * (columns if induced else columns + 1))
    row_forward[(batch * heads * programs,)](
        **arguments,
        **_tiles(row, call),
        PARTIAL=partial,
        RECEIVED=received,
        NORM=NORMS[call.norm],
        PROGRAMS=programs,
        BLOCKS_PER_PROGRAM=blocks_each,
        BLOCK_W=max(16, min(256, 4096 // power_of_two(heads))) if columns else 1,
    )


def _stream_forward(
    call: Call,
    scores: dict[str, Any],
    attention: dict[str, Any],
    ranking: dict[str, Any],
    received: Tensor | None,
) -> None:
    batch, heads, length, width = call.query.shape
    own = _needed("stream_forward", call)
    row_blocks = blocks(length, own.block_m)
    chunks = 1 if attention["OUT"] is None else blocks(width, own.chunk(width))
    stream_forward[(batch * heads * row_blocks * chunks,)](
        **scores,
        **attention,
        **ranking,
        **_tiles(own, call),
        PARTIAL=_of_every_head(call, row_blocks),
        NORM=NORMS[call.norm],
        ROW_BLOCKS=row_blocks,
    )
    if call.norm == "induced" or received is not None:
        own = _needed("column_sums", call, dropout=False)
        key_blocks = blocks(call.key.shape[2], own.block_n)
        if call.norm != "induced":
            ranking = ranking | dict(NORMS=None, BEST=None, COUNTER=None)
        column_sums[(batch * heads * key_blocks,)](
            **scores,
            **ranking,
            **_tiles(own, call),
            PARTIAL=_of_every_head(call, key_blocks),
            RECEIVED=received,
            KEY_BLOCKS=key_blocks,
        )


def backward(call: Call, forward: Forward, grad_output: Tensor, grad_best: Tensor | None) -> Gradients:
    """See `Backend.backward`; `grad_best` (B, N, E) is added to `grad_output` (B, H, N, E) at the best head."""
    result = empty_gradients(call)
    batch, heads, length, width = call.query.shape
    keys = call.key.shape[2]
    if batch == 0:
        return result
    with current(call.query.device):
        arguments = _scores(call) | _attention(call) | _upstream(forward, grad_output, grad_best)
        query = dict(DQ=result.query, dq_s=result.query.stride())
        key_value = dict(DK=result.key, dk_s=result.key.stride(), DV=result.value, dv_s=result.value.stride())
        row = _config("row_backward", call, keys)
        square = _config("square_backward", call, max(keys, length))
        if row is not None:
            row_backward[(batch * heads,)](**arguments, **query, **key_value, **_tiles(row, call))
        elif square is not None:
            shares = min(SHARES_OF_A_HEAD, blocks(width, square.chunk(width)))
            square_backward[(batch * heads * shares,)](
                **arguments, **query, **key_value, **_tiles(square, call), SHARES=shares
            )
        else:
            _stream_backward(call, forward.output, arguments, query, key_value)
    if call.mask_gradient:
        return result._replace(mask=gradient_of_mask(call, forward, grad_output, grad_best))
    return result


def _stream_backward(
    call: Call, output: Tensor, arguments: dict[str, Any], query: dict[str, Any], key_value: dict[str, Any]
) -> None:
    batch, heads, length, width = call.query.shape
    device = call.query.device
    own, other = _needed("query_gradient", call), _needed("key_value_gradient", call)
    row_blocks = blocks(length, own.block_m)
    assert own.block_m % other.block_m == 0, "configs.json: a row block of the first must hold whole ones of the second"
    # Statistics and delta of every row, padded to whole blocks, so that the second kernel loads them without a mask.
    rows_each = row_blocks * own.block_m
    rows = torch.empty((batch, heads, 3, rows_each), dtype=torch.float32, device=device)
    # (B, N, E): the best heads' gradients with the residual's added
    grad = arguments["GRAD"]
    summed = grad.new_empty((batch, length, width)) if arguments["HAS_RESIDUAL"] else grad
    shared = dict(SUMMED=summed, ROWS=rows)
    query_gradient[(batch * heads * row_blocks * blocks(width, own.chunk(width)),)](
        **arguments,
        **shared,
        **query,
        **_tiles(own, call),
        OUT=output,
        o_s=output.stride(),
        ROW_BLOCKS=row_blocks,
    )
    key_blocks = blocks(call.key.shape[2], other.block_n)
    only_first = ("STATISTICS", "GRAD_BEST", "r_s")
    key_value_gradient[(batch * heads * key_blocks * blocks(width, other.chunk(width)),)](
        **{name: value for name, value in arguments.items() if name not in only_first},
        **shared,
        **key_value,
        **_tiles(other, call),
        ROWS_EACH=rows_each,
        KEY_BLOCKS=key_blocks,
    )


def gradient_of_mask(call: Call, forward: Forward, grad_output: Tensor, grad_best: Tensor | None) -> Tensor:
    """The gradient of `call.attn_mask`, float32 in its shape; see `backward`."""
    mask, query = call.attn_mask, call.query
    assert mask is not None
    _, heads, length, _ = query.shape
    _, mask_heads, mask_rows, keys = mask.shape
    own = _needed("mask_gradient", call)
    row_blocks, key_blocks = blocks(length, own.block_m), blocks(keys, own.block_n)
    walk = walk_of(call, row_blocks, key_blocks)
    partial = torch.empty((walk.slices, *mask.shape), dtype=torch.float32, device=query.device)
    with current(query.device):
        mask_gradient[(walk.slices * walk.programs,)](
            **_scores(call),
            **_attention(call),
            **_upstream(forward, grad_output, grad_best),
            **_tiles(own, call),
            OUT=forward.output,
            o_s=forward.output.stride(),
            DMASK=partial,
            MASK_H=mask_heads,
            HEADS_EACH=heads // mask_heads,
            STEPS=walk.steps,
            STEPS_EACH=walk.steps_each,
            ROW_BLOCKS=row_blocks,
            KEY_BLOCKS=key_blocks,
            ONE_ROW=mask_rows == 1,
        )
    return partial[0] if walk.slices == 1 else partial.sum(0)  # in a fixed order


def _scores(call: Call) -> dict[str, Any]:
    """The arguments from which every attention kernel computes its scores."""
    query, key, mask = call.query, call.key, call.expanded_mask()
    _, heads, length, width = query.shape
    repeat = 1
    strides: tuple[int, ...] = (0, 0, 0, 0)
    if mask is None:
        # No kernel reads it, so any pointer works. Constant strides avoid a recompilation.
        mask, kind = query, NO_MASK
    elif mask.dtype == torch.bool:
        mask, repeat, strides, kind = mask.view(torch.uint8), mask.shape[0], mask.stride(), BOOL_MASK
    else:
        repeat, strides, kind = mask.shape[0], mask.stride(), FLOAT_MASK
    return dict(
        Q=query,
        K=key,
        MASK=mask,
        q_s=query.stride(),
        k_s=key.stride(),
        m_s=strides,
        H=heads,
        N=length,
        M=key.shape[2],
        REPEAT=repeat,
        scale=call.scale,
        POSITIVE=call.scale >= SMALLEST,
        E=width,
        MASK_KIND=kind.value,
        PRECISION=_precision(query.dtype),
    )


def _attention(call: Call) -> dict[str, Any]:
    """The further arguments of the kernels that use V, with dropout."""
    word = 0 if call.seed is None else philox.threshold(call.dropout_p)
    return dict(
        V=call.value,
        v_s=call.value.stride(),
        SEED=call.query if call.seed is None else call.seed,
        threshold=word - 2**32 if word >= 2**31 else word,  # its bits as int32
        keep_scale=1.0 if call.seed is None else philox.keep_scale(call.dropout_p),
        DROPOUT=call.seed is not None,
    )


def _upstream(forward: Forward, grad_output: Tensor, grad_best: Tensor | None) -> dict[str, Any]:
    """The arguments of every backward kernel that come from the forward pass and from autograd."""
    arguments: dict[str, Any] = dict(
        STATISTICS=forward.statistics,
        BEST=forward.best_head,
        GRAD=grad_output,
        g_s=grad_output.stride(),
        HAS_RESIDUAL=grad_best is not None,
    )
    if grad_best is None:
        return arguments | dict(GRAD_BEST=grad_output, r_s=(0, 0, 0, 0))
    b, n, e = grad_best.stride()
    return arguments | dict(GRAD_BEST=grad_best, r_s=(b, 0, n, e))


def _of_every_head(call: Call, each: int) -> Tensor:
    """Memory for `each` float32 numbers of every head."""
    batch, heads = call.query.shape[:2]
    return torch.empty(batch * heads * each, dtype=torch.float32, device=call.query.device)


def _config(kernel: str, call: Call, keys: int, dropout: bool | None = None) -> Config | None:
    query = call.query
    if dropout is None:
        dropout = call.seed is not None
    return find(kernel, architecture(query.device), query.element_size(), query.shape[3], keys, dropout)


def _needed(kernel: str, call: Call, dropout: bool | None = None) -> Config:
    """The row of a kernel for any number of keys."""
    config = _config(kernel, call, call.key.shape[2], dropout)
    query = call.query
    assert config is not None, f"configs.json has no row for {kernel}, {query.dtype}, head_dim {query.shape[3]}"
    return config


def _tiles(config: Config, call: Call) -> dict[str, int]:
    """The launch options that follow from a row of the table."""
    return {
        "BLOCK_M": config.block_m or max(16, power_of_two(call.query.shape[2])),
        "BLOCK_N": config.block_n or max(16, power_of_two(call.key.shape[2])),
        "BLOCK_E": config.chunk(call.query.shape[3]),
        # Fuses the scale into exp2's multiply-add. The default up to Triton 3.9, which warns that 3.10 changes it.
        "enable_fp_fusion": True,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def _precision(dtype: torch.dtype) -> str:
    """tf32 only if PyTorch's setting allows it for float32; 16-bit types ignore the precision."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"
