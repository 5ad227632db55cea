"""Numbers, nouns and lists of names in sentences."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..cli.command import shown


def some(names: Collection[str], most: int = 8) -> str:
    """The names, or the first ones and the number of the others."""
    first = ", ".join(list(names)[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"


def in_words(names: Sequence[str], last: str) -> str:
    """The names in a sentence, such as a, b and c; `last` is the word before the last one."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(number: int, thing: str) -> str:
    """A number and a noun: 1 image, 2 images."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def examples(files: Sequence[str]) -> str:
    """The first three names, safe for a terminal."""
    return ", ".join(shown(file) for file in files[:3])
