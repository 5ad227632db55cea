"""Names in CSV files that people open in a spreadsheet, which takes a cell such as =HYPERLINK(...) for a formula.

A name that begins like a formula gets a single quote in front, and so does one that begins with such quotes and then
like a formula. So every name has one spelling, and reading takes off exactly what writing put on. Files that are
written by hand, or by an earlier version, have no such quotes and are read as they are.
"""

from __future__ import annotations

import re

# What Excel, LibreOffice and Google Sheets begin a formula with, and white space that they skip before it; the wide
# forms of the signs are what East Asian keyboards type.
FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def as_cell(name: str) -> str:
    """The name as it is written into a cell."""
    return f"'{name}" if FORMULA.match(name) else name


def from_cell(cell: str) -> str:
    """The name that a cell was written for."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
