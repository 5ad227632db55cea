"""Names in CSV cells, protected from spreadsheets, which read a cell such as =HYPERLINK(...) as a formula.

A name that begins like a formula gets a single quote in front. So does a name that begins with single quotes and then
like a formula; so reading removes exactly what writing added. Names in files without these quotes, such as those
written by hand, are read as they are.
"""

from __future__ import annotations

import re

# The characters that begin a formula in Excel, LibreOffice and Google Sheets, white space that they skip, and the
# full-width forms of the signs, from East Asian keyboards.
FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def as_cell(name: str) -> str:
    """The cell to write for a name."""
    return f"'{name}" if FORMULA.match(name) else name


def from_cell(cell: str) -> str:
    """The name in a cell."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
