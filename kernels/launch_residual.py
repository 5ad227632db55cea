"""Plain functions on tensors that launch the kernels of the residual: the sum, its transpose and the gate's gradients.

They do not check their arguments; the operators do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import best_head as best_head_kernels
from . import gate as gate_kernels
from .configs import blocks, power_of_two
from .launch import current

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


def add_best_head(
    projected: Tensor, output: Tensor, best_head: Tensor, merge: str, out: Tensor, gamma: Tensor | None = None
) -> None:
    """out = projected + gamma * merge(best head of output), or without gamma (D,); `out` may be `projected`."""
    batch, length, dim = projected.shape
    if projected.numel() == 0:
        return
    columns = min(EPILOGUE_COLUMNS, power_of_two(dim))
    rows = (EPILOGUE_TILE if gamma is None else GATED_TILE) // columns
    with current(projected.device):
        best_head_kernels.add_best_head[(blocks(batch * length, rows),)](
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
    with current(grad.device):
        best_head_kernels.best_head_gradient[(blocks(batch * length, rows),)](
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
    row_blocks = blocks(batch * length, GATE_ROWS)
    partials = torch.empty((row_blocks, dim), dtype=torch.float32, device=grad.device)
    with current(grad.device):
        gate_kernels.gate_gradients[(row_blocks * blocks(width, columns),)](
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
        gate_kernels.gamma_gradient[(blocks(dim, PARTIAL_COLUMNS),)](
            PARTIAL=partials,
            OUT=grad_gamma,
            BLOCKS=row_blocks,
            D=dim,
            BLOCK_ROWS=PARTIAL_ROWS,
            BLOCK_D=PARTIAL_COLUMNS,
            num_warps=GATE_WARPS,
        )
    return grad_best, grad_gamma
