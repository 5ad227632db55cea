"""The console that commands print to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from .command import shown


class Terminal(Console):
    """Rich's console, which escapes control characters, such as those in file names, instead of obeying them."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True)

    def render_str(self, text: str, **how: Any) -> Text:
        """Escape the text before its width is measured."""
        return super().render_str(_lines(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(_lines(segment.text), segment.style)


def _lines(text: str) -> str:
    return "\n".join(map(shown, text.split("\n")))
