"""Plain functions on tensors that allocate the outputs, pick a row of the table and launch the kernels.

They check nothing: `rsattn.contract` has. Every output is a view of a buffer laid out (B, N, H, E).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from rsattn import philox
from rsattn.contract import heads_buffer

from . import best_head as best_head_kernels
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

# A head's row blocks share a program once there are this many heads per multiprocessor: then K and V are read
# once per head, and the GPU is full without splitting.
HEADS_PER_MULTIPROCESSOR = 2

# A wide head's chunks are shared among this many programs of the square backward: each makes the scores anew,
# two fifths of the work, and 4 heads in a batch of 16 would leave half of a large GPU idle otherwise.
SHARES_OF_A_HEAD = 3


@functools.cache
def architecture(device: torch.device) -> str:
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return 1 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count


def _config(kernel: str, query: Tensor, keys: int, dropout: bool) -> Config | None:
    arch = architecture(query.device)
    return find(kernel, arch, query.element_size(), query.shape[3], keys, dropout)


def _needed(kernel: str, query: Tensor, dropout: bool) -> Config:
    config = _config(kernel, query, 0, dropout)
    assert config is not None, f"configs.json has no row for {kernel}, {query.dtype}, head_dim {query.shape[3]}"
    return config


def _tiles(config: Config, width: int, keys: int) -> dict[str, int]:
    """The launch options that a row of the table decides."""
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n or max(16, power_of_two(keys)),
        "BLOCK_E": config.chunk(width),
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def _precision(dtype: torch.dtype) -> str:
    """tf32 only where the caller allowed it through PyTorch's own switch; low precision has one way only."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def _mask_arguments(query: Tensor, attn_mask: Tensor | None) -> tuple[Tensor, tuple[int, ...], int]:
    """(pointer, strides, kind); without a mask any pointer will do, since the kernel never reads it."""
    if attn_mask is None:
        return query, (0, 0, 0, 0), NO_MASK.value
    if attn_mask.dtype == torch.bool:
        return attn_mask.view(torch.uint8), attn_mask.stride(), BOOL_MASK.value
    return attn_mask, attn_mask.stride(), FLOAT_MASK.value


def _dropout_arguments(seed: Tensor | None, query: Tensor, dropout_p: float) -> tuple[Tensor, int, float]:
    """(seed, threshold as int32 bits, scale of what is kept)."""
    if seed is None:
        return query, 0, 1.0
    word = philox.threshold(dropout_p)
    return seed, word - 2**32 if word >= 2**31 else word, philox.keep_scale(dropout_p)


P = ParamSpec("P")
R = TypeVar("R")


def _on_its_device(launcher: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Triton launches on the current GPU; make it the first tensor's."""

    @functools.wraps(launcher)
    def on_its_device(tensor: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.cuda.device_of(tensor):
            return launcher(tensor, *args, **kwargs)

    return on_its_device


@_on_its_device
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    scale: float,
    norm: str,
    scope: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(output, norms, best_head, logsumexp) as `rsattn.backend.Forward` describes them."""
    batch, heads, length, width = query.shape
    keys = key.shape[2]
    output = heads_buffer(query)
    norms = query.new_empty((batch, heads), dtype=torch.float32)
    best_head = query.new_empty((batch,), dtype=torch.int64)
    logsumexp = query.new_empty((batch, heads, length), dtype=torch.float32)
    if batch == 0:
        return output, norms, best_head, logsumexp
    counter = torch.zeros(batch + 1, dtype=torch.int32, device=query.device)
    mask, mask_strides, mask_kind = _mask_arguments(query, attn_mask)
    seed_pointer, threshold, keep_scale = _dropout_arguments(seed, query, dropout_p)
    strides = (query.stride(), key.stride(), value.stride(), mask_strides, output.stride())
    common: dict[str, Any] = {
        "E": width,
        "BATCH_SCOPE": scope == "batch",
        "MASK_KIND": mask_kind,
        "PRECISION": _precision(query.dtype),
        "BLOCK_H": power_of_two(heads),
    }
    attention = {"NORM": NORMS[norm], "DROPOUT": seed is not None}
    scalars = (scale, threshold, keep_scale)

    def partials(slices: int) -> Tensor:
        return torch.empty(batch * heads * slices, dtype=torch.float32, device=query.device)

    row = _config("row_forward", query, keys, seed is not None)
    if row is not None:
        blocks = -(-length // row.block_m)
        filled = batch * heads >= HEADS_PER_MULTIPROCESSOR * _multiprocessors(query.device)
        programs, blocks_each = (1, blocks) if filled else (blocks, 1)
        partial = partials(blocks * (keys if norm == "induced" else 1))
        row_forward[(batch * heads * programs,)](
            query,
            key,
            value,
            mask,
            seed_pointer,
            output,
            logsumexp,
            partial,
            norms,
            best_head,
            counter,
            *strides,
            batch,
            heads,
            length,
            keys,
            programs,
            blocks_each,
            *scalars,
            **common,
            **attention,
            **_tiles(row, width, keys),
            BLOCK_W=max(16, min(256, 4096 // power_of_two(heads))) if norm == "induced" else 1,
        )
        return output, norms, best_head, logsumexp

    stream = _needed("stream_forward", query, seed is not None)
    row_blocks = -(-length // stream.block_m)
    chunks = -(-width // stream.chunk(width))
    partial = partials(row_blocks)
    stream_forward[(batch * heads * row_blocks * chunks,)](
        query,
        key,
        value,
        mask,
        seed_pointer,
        output,
        logsumexp,
        partial,
        norms,
        best_head,
        counter,
        *strides,
        batch,
        heads,
        length,
        keys,
        row_blocks,
        *scalars,
        **common,
        **attention,
        **_tiles(stream, width, keys),
    )
    if norm == "induced":
        columns = _needed("column_norm", query, False)
        key_blocks = -(-keys // columns.block_n)
        partial = partials(key_blocks)
        column_norm[(batch * heads * key_blocks,)](
            query,
            key,
            mask,
            logsumexp,
            partial,
            norms,
            best_head,
            counter,
            query.stride(),
            key.stride(),
            mask_strides,
            batch,
            heads,
            length,
            keys,
            key_blocks,
            scale,
            **common,
            **_tiles(columns, width, keys),
        )
    return output, norms, best_head, logsumexp


@_on_its_device
def backward(
    grad_output: Tensor,
    grad_best: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    seed: Tensor | None,
    output: Tensor,
    best_head: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dQ, dK, dV); `grad_best` (B, N, E) joins `grad_output` (B, H, N, E) at the best head."""
    batch, heads, length, width = query.shape
    keys = key.shape[2]
    dq, dk, dv = heads_buffer(query), heads_buffer(key), heads_buffer(value)
    if batch == 0:
        return dq, dk, dv
    mask, mask_strides, mask_kind = _mask_arguments(query, attn_mask)
    seed_pointer, threshold, keep_scale = _dropout_arguments(seed, query, dropout_p)
    best_gradient, best_strides = grad_output, (0, 0, 0, 0)
    if grad_best is not None:
        best_gradient = grad_best
        best_strides = (grad_best.stride(0), 0, grad_best.stride(1), grad_best.stride(2))
    inputs = (query, key, value, mask, seed_pointer)
    input_strides = (query.stride(), key.stride(), value.stride(), mask_strides)
    gradients = (grad_output, best_gradient)
    gradient_strides = (grad_output.stride(), best_strides)
    sizes = (heads, length, keys)
    scalars = (scale, threshold, keep_scale)
    common: dict[str, Any] = {
        "E": width,
        "HAS_RESIDUAL": grad_best is not None,
        "MASK_KIND": mask_kind,
        "DROPOUT": seed is not None,
        "PRECISION": _precision(query.dtype),
    }

    row = _config("row_backward", query, keys, seed is not None)
    if row is not None:
        row_backward[(batch * heads,)](
            *inputs,
            logsumexp,
            best_head,
            *gradients,
            dq,
            dk,
            dv,
            *input_strides,
            *gradient_strides,
            dq.stride(),
            dk.stride(),
            dv.stride(),
            *sizes,
            *scalars,
            **common,
            **_tiles(row, width, keys),
        )
        return dq, dk, dv

    square = _config("square_backward", query, max(keys, length), seed is not None)
    if square is not None:
        shares = min(SHARES_OF_A_HEAD, -(-width // square.chunk(width)))
        square_backward[(batch * heads * shares,)](
            *inputs,
            logsumexp,
            best_head,
            *gradients,
            dq,
            dk,
            dv,
            *input_strides,
            *gradient_strides,
            dq.stride(),
            dk.stride(),
            dv.stride(),
            *sizes,
            shares,
            *scalars,
            **common,
            **{**_tiles(square, width, keys), "BLOCK_M": max(16, power_of_two(length))},
        )
        return dq, dk, dv

    delta = torch.empty_like(logsumexp)
    own = _needed("query_gradient", query, seed is not None)
    row_blocks = -(-length // own.block_m)
    query_gradient[(batch * heads * row_blocks * -(-width // own.chunk(width)),)](
        *inputs,
        output,
        logsumexp,
        best_head,
        *gradients,
        delta,
        dq,
        *input_strides,
        output.stride(),
        *gradient_strides,
        dq.stride(),
        *sizes,
        row_blocks,
        *scalars,
        **common,
        **_tiles(own, width, keys),
    )
    own = _needed("key_value_gradient", query, seed is not None)
    key_blocks = -(-keys // own.block_n)
    key_value_gradient[(batch * heads * key_blocks * -(-width // own.chunk(width)),)](
        *inputs,
        logsumexp,
        best_head,
        *gradients,
        delta,
        dk,
        dv,
        *input_strides,
        *gradient_strides,
        dk.stride(),
        dv.stride(),
        *sizes,
        key_blocks,
        *scalars,
        **common,
        **_tiles(own, width, keys),
    )
    return dq, dk, dv


# The epilogue moves bytes and nothing else: 32 numbers to each of a program's 128 threads, so that a thread has
# several 16-byte accesses under way.
EPILOGUE_TILE = 4096
EPILOGUE_COLUMNS = 1024


@_on_its_device
def add_best_head(projected: Tensor, output: Tensor, best_head: Tensor, merge: str, out: Tensor) -> None:
    """out = projected + merge(the best head of output); `out` may be `projected`."""
    batch, length, dim = projected.shape
    if projected.numel() == 0:
        return
    columns = min(EPILOGUE_COLUMNS, power_of_two(dim))
    rows = EPILOGUE_TILE // columns
    best_head_kernels.add_best_head[(-(-batch * length // rows),)](
        projected,
        output,
        best_head,
        out,
        projected.stride(),
        output.stride(),
        out.stride(),
        batch,
        length,
        dim,
        E=output.shape[3],
        SLOT=merge == "slot",
        BLOCK_ROWS=rows,
        BLOCK_D=columns,
    )


@_on_its_device
def best_head_gradient(grad: Tensor, best_head: Tensor, heads: int, width: int, merge: str) -> Tensor:
    """merge^T of grad (B, N, D): the gradient (B, N, E) of the best head's output."""
    batch, length, dim = grad.shape
    out = grad.new_empty((batch, length, width))
    if grad.numel() == 0:
        return out
    columns = min(EPILOGUE_COLUMNS, power_of_two(width))
    rows = EPILOGUE_TILE // columns
    best_head_kernels.best_head_gradient[(-(-batch * length // rows),)](
        grad,
        best_head,
        out,
        grad.stride(),
        batch,
        length,
        dim,
        E=width,
        SLOT=merge == "slot",
        BLOCK_ROWS=rows,
        BLOCK_E=columns,
    )
    return out
