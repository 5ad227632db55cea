"""The format of `rsattn COMMAND --help`."""

from __future__ import annotations

import argparse
import textwrap


class Help(argparse.RawDescriptionHelpFormatter):
    """Lines break at spaces only, so that the names of options and files stay whole."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)
