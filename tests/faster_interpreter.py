"""Triton's interpreter in half the time, for tests only; the arithmetic stays the same.

Each call of a device function looks through all names of `triton.language` for functions to replace, although the
launch has replaced them already: a third of the time. The dtype of each tile is looked up in a dictionary that is made
for it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import triton.language as tl
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
