"""Read JSON files, check their content against an expected shape, name the first mismatch; write JSON and CSV files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..cli.command import CommandError, finished_file, why, writing

Shape = Any
"""`str`, `int`, `float` or `bool`; `[shape]` for a list; `{str: shape}` for an object with any names; or
`{"name": shape, ...}` for an object with at least these names. An int is also a float; a bool is no number."""

WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def fault(value: object, shape: Shape, name: str = "it") -> str | None:
    """The first mismatch of `value` and `shape`, such as "seconds is 'x', expected a number"; None where there is none.

    Args:
        name: the name of the value in this text.
    """
    if isinstance(shape, list):
        if not isinstance(value, list | tuple):
            return f"{name} is {_short(value)}, expected a list"
        return _first(fault(one, shape[0], f"{name}[{index}]") for index, one in enumerate(value))
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            return f"{name} is {_short(value)}, expected an object"
        if str in shape:
            return _first(fault(one, shape[str], _below(name, str(key))) for key, one in value.items())
        if lacking := [key for key in shape if key not in value]:
            return f"{name} lacks {', '.join(lacking)}"
        return _first(fault(value[key], shape[key], _below(name, key)) for key in shape)
    wanted = (int, float) if shape is float else shape
    if not isinstance(value, wanted) or (shape is not bool and isinstance(value, bool)):
        return f"{name} is {_short(value)}, expected {WORDS[shape]}"
    return None


def read_json(path: Path, shape: dict[Any, Shape], to_do: str) -> dict[str, Any]:
    """The content of a JSON file.

    Args:
        shape: the expected shape of the content.
        to_do: what the user can do about a damaged file, for the message.

    Raises:
        CommandError: the file cannot be read, is no JSON, or has another shape.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{path} is damaged: it cannot be read ({why(error)}); {to_do}") from None
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path} is damaged: it is not JSON ({why(error)}); {to_do}") from None
    if clause := fault(content, shape):
        raise CommandError(f"{path} is damaged: {clause}; {to_do}")
    return content


def write_json(path: Path, content: object) -> None:
    """Write the file; an earlier one stays as it was until the new one is complete."""
    with finished_file(path) as partial, writing(path):
        partial.write_text(json.dumps(content, indent=1) + "\n")


@contextmanager
def csv_file(path: Path) -> Iterator[TextIO]:
    """A file for `csv.writer`, which takes names in any encoding; an earlier one stays until the new one is complete.

    Raises:
        CommandError: the file cannot be written.
    """
    with (
        finished_file(path) as partial,
        writing(path),
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        yield file


def _first(faults: Any) -> str | None:
    return next(filter(None, faults), None)


def _below(name: str, key: str) -> str:
    return key if name == "it" else f"{name}.{key}"


def _short(value: object) -> str:
    """A short description of a value of any size."""
    if isinstance(value, str | int | float | bool | None):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:37]}..."
    return f"a {type(value).__name__}"
