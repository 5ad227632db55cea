"""Plain functions on tensors that allocate the outputs, choose a row of the table and launch the kernels.

They do not check their arguments; `Call.check` does. Kernels are launched by keyword, from dictionaries of the
arguments that several kernels share.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rsattn import philox
from rsattn.call import Call, Forward, Gradients, empty_forward, empty_gradients

from . import best_head as best_head_kernels
from . import counter
from . import gate as gate_kernels
from .column_norm import column_norm
from .configs import Config, find, power_of_two
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

# The epilogue is limited by memory: 32 elements for each of a program's 128 threads keep several 16-byte accesses of a
# thread in flight.
EPILOGUE_TILE = 4096
EPILOGUE_COLUMNS = 1024
GATED_TILE = 2048  # a larger tile spills on sm_90 with merge="slot" and three heads (D = 192)

# The gate's gradients: 64 elements of dY give one float32 partial sum, which is written and read again: 3 % more bytes
# each way for 16-bit inputs. Two repeats at once halve a program's waits for memory. The columns follow from a tile of
# 16 elements for each thread, whose registers let two programs fit on a multiprocessor.
GATE_ROWS = 64
GATE_REPEATS = 2
GATE_COLUMNS = 64
GATE_WARPS = 8

# The partial sums that a program adds at once, and its channels: few, so that there are enough programs.
PARTIAL_ROWS = 256
PARTIAL_COLUMNS = 16

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


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which this GPU is the current one, on which Triton launches."""
    return torch.cuda.device(device.index) if device.type == "cuda" else _NO_GPU


def forward(call: Call) -> Forward:
    """See `Backend.forward`."""
    result = empty_forward(call)
    batch, heads, _, _ = call.query.shape
    if batch == 0:
        return result
    device = call.query.device
    with _current(device), counter.Zeros(device, batch + 1) as arrived:
        scores = _scores(call)
        attention = _attention(call) | dict(OUT=result.output, o_s=result.output.stride(), NORM=NORMS[call.norm])
        ranking = dict(
            STATISTICS=result.statistics,
            NORMS=result.norms,
            BEST=result.best_head,
            COUNTER=arrived,
            B=batch,
            BATCH_SCOPE=call.scope == "batch",
            BLOCK_H=power_of_two(heads),
        )
        row = _config("row_forward", call, call.key.shape[2])
        if row is not None:
            _row_forward(call, row, scores | attention | ranking)
        else:
            _stream_forward(call, scores, attention, ranking)
    return result


def _row_forward(call: Call, row: Config, arguments: dict[str, Any]) -> None:
    batch, heads, length, width = call.query.shape
    induced = call.norm == "induced"
    blocks_each = BLOCKS_PER_PROGRAM if width <= WIDEST_SHARED else 1
    programs = _blocks(length, row.block_m * blocks_each)
    row_forward[(batch * heads * programs,)](
        **arguments,
        **_tiles(row, call),
        PARTIAL=_partials(call, programs * (call.key.shape[2] if induced else 1)),
        PROGRAMS=programs,
        BLOCKS_PER_PROGRAM=blocks_each,
        BLOCK_W=max(16, min(256, 4096 // power_of_two(heads))) if induced else 1,
    )


def _stream_forward(call: Call, scores: dict[str, Any], attention: dict[str, Any], ranking: dict[str, Any]) -> None:
    batch, heads, length, width = call.query.shape
    own = _needed("stream_forward", call)
    row_blocks = _blocks(length, own.block_m)
    stream_forward[(batch * heads * row_blocks * _blocks(width, own.chunk(width)),)](
        **scores,
        **attention,
        **ranking,
        **_tiles(own, call),
        PARTIAL=_partials(call, row_blocks),
        ROW_BLOCKS=row_blocks,
    )
    if call.norm == "induced":
        own = _needed("column_norm", call, dropout=False)
        key_blocks = _blocks(call.key.shape[2], own.block_n)
        column_norm[(batch * heads * key_blocks,)](
            **scores,
            **ranking,
            **_tiles(own, call),
            PARTIAL=_partials(call, key_blocks),
            KEY_BLOCKS=key_blocks,
        )


def backward(call: Call, forward: Forward, grad_output: Tensor, grad_best: Tensor | None) -> Gradients:
    """See `Backend.backward`; `grad_best` (B, N, E) is added to `grad_output` (B, H, N, E) at the best head."""
    result = empty_gradients(call)
    batch, heads, length, width = call.query.shape
    keys = call.key.shape[2]
    if batch == 0:
        return result
    with _current(call.query.device):
        arguments = _scores(call) | _attention(call) | _upstream(forward, grad_output, grad_best)
        query = dict(DQ=result.query, dq_s=result.query.stride())
        key_value = dict(DK=result.key, dk_s=result.key.stride(), DV=result.value, dv_s=result.value.stride())
        row = _config("row_backward", call, keys)
        square = _config("square_backward", call, max(keys, length))
        if row is not None:
            row_backward[(batch * heads,)](**arguments, **query, **key_value, **_tiles(row, call))
        elif square is not None:
            shares = min(SHARES_OF_A_HEAD, _blocks(width, square.chunk(width)))
            square_backward[(batch * heads * shares,)](
                **arguments, **query, **key_value, **_tiles(square, call), SHARES=shares
            )
        else:
            _stream_backward(call, forward.output, arguments, query, key_value)
    return result


def _stream_backward(
    call: Call, output: Tensor, arguments: dict[str, Any], query: dict[str, Any], key_value: dict[str, Any]
) -> None:
    batch, heads, length, width = call.query.shape
    device = call.query.device
    own, other = _needed("query_gradient", call), _needed("key_value_gradient", call)
    row_blocks = _blocks(length, own.block_m)
    assert own.block_m % other.block_m == 0, "configs.json: a row block of the first must hold whole ones of the second"
    # Statistics and delta of every row, padded to whole blocks, so that the second kernel loads them without a mask.
    rows_each = row_blocks * own.block_m
    rows = torch.empty((batch, heads, 3, rows_each), dtype=torch.float32, device=device)
    # (B, N, E): the best heads' gradients with the residual's added
    grad = arguments["GRAD"]
    summed = grad.new_empty((batch, length, width)) if arguments["HAS_RESIDUAL"] else grad
    shared = dict(SUMMED=summed, ROWS=rows)
    query_gradient[(batch * heads * row_blocks * _blocks(width, own.chunk(width)),)](
        **arguments,
        **shared,
        **query,
        **_tiles(own, call),
        OUT=output,
        o_s=output.stride(),
        ROW_BLOCKS=row_blocks,
    )
    key_blocks = _blocks(call.key.shape[2], other.block_n)
    only_first = ("STATISTICS", "GRAD_BEST", "r_s")
    key_value_gradient[(batch * heads * key_blocks * _blocks(width, other.chunk(width)),)](
        **{name: value for name, value in arguments.items() if name not in only_first},
        **shared,
        **key_value,
        **_tiles(other, call),
        ROWS_EACH=rows_each,
        KEY_BLOCKS=key_blocks,
    )


def add_best_head(
    projected: Tensor, output: Tensor, best_head: Tensor, merge: str, out: Tensor, gamma: Tensor | None = None
) -> None:
    """out = projected + gamma * merge(best head of output), or without gamma (D,); `out` may be `projected`."""
    batch, length, dim = projected.shape
    if projected.numel() == 0:
        return
    columns = min(EPILOGUE_COLUMNS, power_of_two(dim))
    rows = (EPILOGUE_TILE if gamma is None else GATED_TILE) // columns
    with _current(projected.device):
        best_head_kernels.add_best_head[(_blocks(batch * length, rows),)](
            PROJECTED=projected,
            ATTENDED=output,
            BEST=best_head,
            GAMMA=gamma,
            OUT=out,
            p_s=projected.stride(),
            a_s=output.stride(),
            gamma_s=None if gamma is None else gamma.stride(0),
            o_s=out.stride(),
            B=batch,
            H=output.shape[1],
            N=length,
            D=dim,
            E=output.shape[3],
            SLOT=merge == "slot",
            BLOCK_ROWS=rows,
            BLOCK_D=columns,
        )


def best_head_gradient(grad: Tensor, best_head: Tensor, width: int, merge: str) -> Tensor:
    """merge^T of grad (B, N, D): the gradient (B, N, E) of the best head's output."""
    batch, length, dim = grad.shape
    out = grad.new_empty((batch, length, width))
    if grad.numel() == 0:
        return out
    columns = min(EPILOGUE_COLUMNS, power_of_two(width))
    rows = EPILOGUE_TILE // columns
    with _current(grad.device):
        best_head_kernels.best_head_gradient[(_blocks(batch * length, rows),)](
            GRAD=grad,
            BEST=best_head,
            OUT=out,
            g_s=grad.stride(),
            B=batch,
            N=length,
            D=dim,
            E=width,
            SLOT=merge == "slot",
            BLOCK_ROWS=rows,
            BLOCK_E=columns,
        )
    return out


def gate_gradients(grad: Tensor, output: Tensor, best_head: Tensor, gamma: Tensor, merge: str) -> tuple[Tensor, Tensor]:
    """merge^T of gamma * grad (B, N, D): (B, N, E), in output's dtype; and the sum of grad * merge(O_h*): (D,)."""
    batch, length, dim = grad.shape
    width = output.shape[3]
    grad_best = output.new_empty((batch, length, width))
    if grad.numel() == 0:
        return grad_best, gamma.new_zeros(dim)
    grad_gamma = gamma.new_empty(dim)
    repeats = min(GATE_REPEATS, power_of_two(dim // width))
    columns = min(GATE_COLUMNS // repeats, power_of_two(width))
    blocks = _blocks(batch * length, GATE_ROWS)
    partials = torch.empty((blocks, dim), dtype=torch.float32, device=grad.device)
    with _current(grad.device):
        gate_kernels.gate_gradients[(blocks * _blocks(width, columns),)](
            GRAD=grad,
            ATTENDED=output,
            BEST=best_head,
            GAMMA=gamma,
            GRAD_BEST=grad_best,
            PARTIAL=partials,
            g_s=grad.stride(),
            a_s=output.stride(),
            gamma_s=gamma.stride(0),
            B=batch,
            H=output.shape[1],
            N=length,
            D=dim,
            E=width,
            SLOT=merge == "slot",
            BLOCK_ROWS=GATE_ROWS,
            BLOCK_REPEATS=repeats,
            BLOCK_E=columns,
            num_warps=GATE_WARPS,
        )
        gate_kernels.gamma_gradient[(_blocks(dim, PARTIAL_COLUMNS),)](
            PARTIAL=partials,
            OUT=grad_gamma,
            BLOCKS=blocks,
            D=dim,
            BLOCK_ROWS=PARTIAL_ROWS,
            BLOCK_D=PARTIAL_COLUMNS,
            num_warps=GATE_WARPS,
        )
    return grad_best, grad_gamma


def _scores(call: Call) -> dict[str, Any]:
    """The arguments from which every attention kernel computes its scores."""
    query, key, mask = call.query, call.key, call.attn_mask
    _, heads, length, width = query.shape
    strides: tuple[int, ...] = (0, 0, 0, 0)
    if mask is None:
        # No kernel reads it, so any pointer works. Constant strides avoid a recompilation.
        mask, kind = query, NO_MASK
    elif mask.dtype == torch.bool:
        mask, strides, kind = mask.view(torch.uint8), mask.stride(), BOOL_MASK
    else:
        strides, kind = mask.stride(), FLOAT_MASK
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


def _partials(call: Call, each: int) -> Tensor:
    """Memory for `each` partial results of every head."""
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


def _blocks(length: int, size: int) -> int:
    """The number of blocks of a size that cover a length."""
    return -(-length // size)


def _precision(dtype: torch.dtype) -> str:
    """tf32 only if PyTorch's setting allows it for float32; 16-bit types ignore the precision."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"
