"""A faster interpreter of Triton, for tests only; the arithmetic stays the same.

Triton's own looks through all names of `triton.language` in each call of a device function, for functions to replace,
although the launch has replaced them already. For each tile it makes a dictionary of dtypes, the name of the tile's
type and a tuple of constants, which are the same for all tiles of one kind. In each operation it
compares the sizes of the two operands, with an object for each comparison, and makes a tile of a number. Here all this
is done once, and operands of one type are left as they are. Its check of overflow, whose result it uses only to debug,
is left out.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


class _Nothing:
    """What remains to be restored after a device function."""

    def restore(self) -> None:
        pass


class _PatchOnce:
    """`_patch_lang` for the first function of a launch that sees a module; for the others there is nothing to do."""

    def __init__(self, patch: Callable[[Any], Any]) -> None:
        self.patch = patch
        self.patched: set[frozenset[str]] = set()

    def __call__(self, function: Any) -> Any:
        modules = _modules_seen_by(function)
        if modules in self.patched:
            return _Nothing()
        self.patched.add(modules)
        return self.patch(function)


@functools.cache
def _modules_seen_by(function: Any) -> frozenset[str]:
    values = function.__globals__.values()
    return frozenset(value.__name__ for value in values if inspect.ismodule(value) and value in (tl, tl.core))


@functools.cache
def _names_of_builtins(package: Any) -> list[str]:
    return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]


def _patch_builtin(package: Any, builder: Any, scope: Any) -> None:
    for name in _names_of_builtins(package):
        member = getattr(package, name)
        if tl.core.is_builtin(member):
            interpreter._patch_attr(package, name, member, builder, scope)


def _remembered(numpy_dtype: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known: dict[str, Any] = {}

    def of(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in known:
            known[name] = numpy_dtype(dtype)
        return known[name]

    return of


def _copied_type(init: Callable[..., None]) -> Callable[..., None]:
    """The __init__ of a block type: its fields are those of an equal one."""
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def copied(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, *(getattr(size, "value", size) for size in shape)
        if key not in known:
            init(self, element_ty, shape)
            known[key] = {**self.__dict__, "sizes": key[1:]}
        self.__dict__.update(known[key], element_ty=element_ty)

    return copied


def _copied_tensor(init: Callable[..., None]) -> Callable[..., None]:
    """The __init__ of a tensor: shape and size are those of one with an equal shape."""
    known: dict[tuple[int, ...], dict[str, Any]] = {}

    def copied(self: Any, handle: Any, type: Any) -> None:
        key = tuple(type.shape) if type.is_block() else ()
        if key not in known:
            init(self, handle, type)
            known[key] = dict(self.__dict__)
        self.__dict__.update(known[key], handle=handle, type=type, dtype=type.scalar)

    return copied


def _checked(check: Callable[..., Any]) -> Callable[..., Any]:
    """`binary_op_type_checking_impl`, which leaves operands of one type as they are, and keeps the tile of a number."""
    tensor = tl.tensor
    constants: dict[tuple[Any, ...], Any] = {}

    def checked(
        self: Any,
        left: Any,
        right: Any,
        allow_lhs_ptr: bool = False,
        allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> Any:
        flags = allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod
        first, second = isinstance(left, tensor), isinstance(right, tensor)
        if first != second:
            return with_a_number(self, left, right, flags)
        if first and not div_or_mod:
            a, b = left.type.scalar, right.type.scalar
            of_one_type = a.name == b.name and not a.is_ptr()
            offset = allow_lhs_ptr and a.is_ptr() and b.is_int()
            if of_one_type or offset:
                return self.broadcast_impl_value(left, right)
        return check(self, left, right, *flags)

    def with_a_number(self: Any, left: Any, right: Any, flags: tuple[bool, ...]) -> Any:
        first = isinstance(left, tensor)
        tile, number = (left, right) if first else (right, left)
        key = first, tile.type.scalar.name, _sizes(tile.type), repr(number), *flags
        if key not in constants:
            both = check(self, left, right, *flags)
            same, constant = both if first else both[::-1]
            if same is not tile or tile.type.scalar.is_bf16():  # whose arrays have two dtypes, interpreter_bfloat16.py
                return both
            constant.handle.data.flags.writeable = False
            constants[key] = constant
        return (left, constants[key]) if first else (constants[key], right)

    return checked


def _broadcast(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    """`broadcast_impl_value`, which computes the sizes of two tiles of one rank once."""

    @functools.cache
    def of_shape(sizes: tuple[int, ...]) -> Any:
        return SimpleNamespace(shape=sizes)

    @functools.cache
    def common(a: tuple[int, ...], b: tuple[int, ...]) -> list[int] | None:
        fits = len(a) == len(b) and all(left == right or 1 in (left, right) for left, right in zip(a, b))
        return [max(sizes) for sizes in zip(a, b)] if fits else None

    def side(self: Any, value: Any, sizes: list[int]) -> Any:
        if list(value.type.sizes) == sizes:
            return value
        return self.tensor(self.builder.create_broadcast(value.handle, sizes), tl.block_type(value.type.scalar, sizes))

    def filled(self: Any, scalar: Any, like: Any) -> Any:
        handle = self.builder.create_splat(of_shape(like.type.sizes), scalar.handle)
        of_one_type = like.type.scalar is scalar.type.scalar
        return self.tensor(handle, like.type if of_one_type else like.type.with_element_ty(scalar.type.scalar))

    def faster(self: Any, left: Any, right: Any) -> Any:
        a, b = _sizes(left.type), _sizes(right.type)
        if a == b:
            return left, right
        if not a:
            return filled(self, left, right), right
        if not b:
            return left, filled(self, right, left)
        sizes = common(a, b)
        if sizes is None:  # tiles of unlike ranks, or an error
            return broadcast(self, left, right)
        return side(self, left, sizes), side(self, right, sizes)

    return faster


def _sizes(type: Any) -> tuple[int, ...]:
    return type.sizes if type.is_block() else ()


def _sanitized(sanitize: Callable[..., Any]) -> Callable[..., Any]:
    def unless_unused(self: Any, left: Any, right: Any, operation: Callable[..., Any]) -> None:
        if self.builder.options.debug:
            sanitize(self, left, right, operation)

    return unless_unused


def install() -> None:
    once, launch = _PatchOnce(interpreter._patch_lang), interpreter.GridExecutor.__call__

    def launched(executor: Any, *args: Any, **kwargs: Any) -> Any:
        once.patched.clear()
        try:
            return launch(executor, *args, **kwargs)
        finally:
            once.patched.clear()

    interpreter._patch_lang = once
    interpreter._patch_builtin = _patch_builtin
    interpreter.GridExecutor.__call__ = launched
    interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype)
    tl.block_type.__init__ = _copied_type(tl.block_type.__init__)
    tl.tensor.__init__ = _copied_tensor(tl.tensor.__init__)
    TritonSemantic.binary_op_type_checking_impl = _checked(TritonSemantic.binary_op_type_checking_impl)
    TritonSemantic.binary_op_sanitize_overflow_impl = _sanitized(TritonSemantic.binary_op_sanitize_overflow_impl)
    TritonSemantic.broadcast_impl_value = _broadcast(TritonSemantic.broadcast_impl_value)
