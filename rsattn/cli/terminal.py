"""The console that commands print to, and the progress bars that they share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from .command import shown

Item = TypeVar("Item")

# A number stays with its unit and with what it is the value of: 12.5 %, N = 65.
WORD = re.compile(r" *(?:\w = )?(?:[\d.,]*\d )?[^ ]+")
BAR = 24  # cells, so that the longest description of a bar fits beside it in 80 columns
SPEED_OVER = 600.0  # seconds; over less, the time left would jump where steps are slow

_printed: WeakKeyDictionary[Console, set[str]] = WeakKeyDictionary()


class Terminal(Console):
    """Rich's console, which escapes control characters, such as those in file names, instead of obeying them.

    On a terminal, long lines break between words, and words that are longer than a line, such as paths, stay whole. In
    files, lines do not break.
    """

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True)

    def render_str(self, text: str, **how: Any) -> Text:
        """Escape the text before its width is measured."""
        return super().render_str(_lines(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # A soft-wrapped text has this overflow; cells of tables and progress bars have another.
        if isinstance(renderable, Text) and options is not None and options.overflow == "ignore" and self.is_terminal:
            renderable = between_words(renderable, self.width)
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(_lines(segment.text), segment.style)


def print_once(line: str, console: Console) -> None:
    """Print a line, unless an earlier run of the same command printed it."""
    printed = _printed.setdefault(console, set())
    if line not in printed:
        printed.add(line)
        console.print(line, markup=False)


def between_words(text: Text, width: int) -> Text:
    """The text with lines of at most `width` cells, broken between words; a longer word gets its own line."""
    lines = [part for line in text.split(allow_blank=True) for part in line.divide(_breaks(line.plain, width))]
    for line in lines[:-1]:
        line.rstrip()
    return Text("\n", end=text.end).join(lines)


def _breaks(line: str, width: int) -> list[int]:
    """Where the lines after the first one start."""
    breaks, used = [], 0
    for word in WORD.finditer(line):
        used += cell_len(word[0])
        if used > width and word.start() > 0:
            alone = word[0].lstrip(" ")
            breaks.append(word.end() - len(alone))
            used = cell_len(alone)
    return breaks


def progress(console: Console) -> Progress:
    """A progress bar that fits in 80 columns and disappears when it is done; it shows nothing outside a terminal."""
    description = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = (description, BarColumn(BAR), TaskProgressColumn(), TimeLeft())
    disable = not console.is_terminal
    return Progress(*columns, console=console, transient=True, disable=disable, speed_estimate_period=SPEED_OVER)


def tracked(items: Iterable[Item], words: str, console: Console, total: int | None = None) -> Iterator[Item]:
    """The items, with a progress bar that `words` describe."""
    with progress(console) as bar:
        yield from bar.track(items, total, description=words)


class TimeLeft(ProgressColumn):
    """Text such as "3.5 min left"; empty until it can be estimated."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None or task.finished else f"{duration(left)} left", style="progress.remaining")


def duration(seconds: float) -> str:
    """A time in words, such as 45 s, 3.5 min or 2.1 days."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}" if seconds >= 10 * unit else f"{seconds / unit:.1f} {name}"
    return f"{max(seconds, 1):.0f} s"


def in_bytes(size: int) -> str:
    """A size in words, such as 45 MB or 1.37 GB."""
    for unit, name in ((10**12, "TB"), (10**9, "GB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:,.0f} {name}"
    return f"{max(size / 10**6, 1):.0f} MB"


def _lines(text: str) -> str:
    return "\n".join(map(shown, text.split("\n")))
