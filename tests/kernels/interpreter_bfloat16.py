"""bfloat16 and fused multiply-adds in Triton's interpreter, for tests only.

The interpreter stores bfloat16 tiles as uint16 and adds, multiplies and compares these integers; its cast from float32
truncates. Here tiles are numpy arrays of ml_dtypes' bfloat16, whose arithmetic and casts round to nearest even. tl.dot
multiplies exactly and sums in float32 in the order of numpy's matmul, which is not a GPU's order. tl.fma, which the
interpreter rounds twice, is computed in float64, which holds the product of two float32 numbers exactly.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from rsattn.backends.base import Backend
from rsattn.backends.triton import TritonBackend

own_dtype, own_cast = interpreter._get_np_dtype, interpreter._convert_float


@contextmanager
def enabled() -> Iterator[None]:
    """Let the interpreter compute bfloat16 and round tl.fma once, and the backend accept bfloat16."""
    with (
        mock.patch.object(interpreter, "_get_np_dtype", numpy_dtype),
        mock.patch.object(interpreter, "_convert_float", cast),
        mock.patch.object(interpreter.InterpreterBuilder, "create_fma", fma),
        mock.patch.object(interpreter.InterpreterBuilder, "get_bf16", constant, create=True),
        mock.patch.object(TritonBackend, "refusals", Backend.refusals),
    ):
        yield


def numpy_dtype(triton_dtype: tl.dtype) -> np.dtype:
    """The numpy dtype for a Triton dtype."""
    return np.dtype(ml_dtypes.bfloat16) if triton_dtype.scalar == tl.bfloat16 else own_dtype(triton_dtype)


def constant(builder: object, value: float) -> TensorHandle:
    """A constant in a kernel that is combined with bfloat16; the interpreter handles other dtypes."""
    return TensorHandle(np.array([value], dtype=ml_dtypes.bfloat16), tl.bfloat16)


def cast(data: np.ndarray, source: tl.dtype, target: tl.dtype, rounding: object) -> np.ndarray:
    """Cast between float32 and bfloat16, unless a kernel requests a rounding mode."""
    if rounding is None and {source, target} == {tl.bfloat16, tl.float32}:
        return data.astype(numpy_dtype(target))
    return own_cast(data, source, target, rounding)


def fma(builder: object, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
    """x * y + z of float32 numbers, rounded once."""
    exact = x.data.astype(np.float64) * y.data + z.data
    return TensorHandle(exact.astype(x.data.dtype), x.dtype)
