"""What a misspelled option or choice on the command line probably means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

INVALID_CHOICE = re.compile(r"invalid choice: '(?P<given>[^']*)' \(choose from (?P<choices>.*)\)")


def unrecognized(given: Iterable[str], options: Iterable[str]) -> str:
    """The message about arguments that are none of the options; closest ones are named."""
    options = list(options)
    named = [argument + similar(argument.partition("=")[0], options) for argument in given]
    return f"unrecognized arguments: {' '.join(named)}"


def with_closest_choice(message: str) -> str:
    """argparse's message; after an invalid choice the closest one is named."""
    if found := INVALID_CHOICE.search(message):
        choices = [choice.strip("'") for choice in found["choices"].split(", ")]
        return message + similar(found["given"], choices)
    return message


def similar(given: str, known: Iterable[str]) -> str:
    """The closest known word as a question in parentheses; empty where none is close."""
    closest = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {closest[0]}?)" if closest else ""
