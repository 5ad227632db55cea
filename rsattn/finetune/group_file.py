"""Read `--groups FILE`: a table with the columns file and group, from a text editor or a spreadsheet.

A row is used only where it is certain which image it means. Spreadsheets write semicolons, tabs, UTF-16 and the
encoding of Windows; files may be relative to DATA, to the folder of the table or to the current folder.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from ..cli.command import CommandError, shown, why
from .cells import from_cell
from .wording import counted, some

COLUMNS = ("file", "group")
DELIMITERS = (",", ";", "\t")
MOST_SHOWN = 80  # characters of a line in a message


@dataclass
class _Groups:
    """What the rows of the table say.

    Attributes:
        certain: image -> the groups of the rows that name it by its path.
        likely: image -> the groups of the rows that name only the end of its path, where no other image has this end.
        unclear: what rows name -> the images that have this end.
        unknown: what rows name that is no image.
    """

    certain: dict[str, list[str]] = field(default_factory=dict)
    likely: dict[str, list[str]] = field(default_factory=dict)
    unclear: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def of(self, file: str) -> list[str]:
        """The groups of an image, each once."""
        return list(dict.fromkeys(self.certain.get(file, []) or self.likely.get(file, [])))


def groups_from(table: Path, root: Path, files: Sequence[str]) -> list[str]:
    """The group of each image.

    Args:
        table: a text file; its first line names the columns.
        root: the folder that `files` are relative to.
        files: the images, with /.

    Raises:
        CommandError: the file cannot be read, lacks a column or an image, or gives an image several groups.
    """
    names = _Names(table, root, files)
    readings = [_read(table, text, names) for text in _texts(table)]
    groups = next((one for one in readings if all(map(one.of, files))), readings[0])
    if twice := [file for file in files if len(groups.of(file)) > 1]:
        one = twice[0]
        raise CommandError(
            f"{table} gives several groups to {counted(len(twice), 'image')}, such as {shown(one)} "
            f"({some([shown(name) for name in groups.of(one)], 3)}): give each file one group"
        )
    if lacking := [file for file in files if not groups.of(file)]:
        raise _lacking(table, lacking, len(files), groups, encoded=len(readings) == 1)
    return [groups.of(file)[0] for file in files]


def _lacking(table: Path, lacking: list[str], number: int, groups: _Groups, encoded: bool) -> CommandError:
    """The error where images lack a group; `encoded` says whether the encoding of the table is certain."""
    known = "no image" if len(lacking) == number else f"{number - len(lacking)} of {number} images"
    examples = ", ".join(map(shown, lacking[:3]))
    reason = ""
    if groups.unclear:
        word, fit = next(iter(groups.unclear.items()))
        reason = f"; the row {shown(word)} could be {' or '.join(map(shown, fit[:2]))}"
    elif groups.unknown:
        reason = f"; rows such as {shown(groups.unknown[0])} name no image"
    if not encoded:
        reason += "; if letters are wrong, save the table as CSV UTF-8"
    return CommandError(
        f"{table} gives a group to {known}: add a row with a group for {counted(len(lacking), 'image')}, with files "
        f"written like {examples}{reason}"
    )


class _Names:
    """Finds the image that a cell of the table means."""

    def __init__(self, table: Path, root: Path, files: Sequence[str]) -> None:
        self.files = set(files)
        self.root = os.path.abspath(root)
        self.bases = (self.root, os.path.abspath(table.parent), os.path.dirname(self.root), os.getcwd())
        self.ends: dict[str, list[str]] = {}
        for file in files:
            for end in (file, *_ends(file)):
                self.ends.setdefault(_spelled(end), []).append(file)

    def certain(self, cell: str) -> str | None:
        """The image at the path in a cell: absolute, or relative to DATA, the table, the folder above DATA or here."""
        if cell in self.files:
            return cell
        path = cell.strip().replace("\\", "/")
        for base in self.bases:
            place = os.path.normpath(os.path.join(base, path))
            if place.startswith(f"{self.root}{os.sep}"):
                file = place[len(self.root) + 1 :].replace(os.sep, "/")
                if file in self.files:
                    return file
        return None

    def likely(self, cell: str) -> list[str]:
        """The images whose path ends like a cell, in any case; or the image with whose path an absolute one ends."""
        path = cell.strip().replace("\\", "/").removeprefix("./")
        if found := self.ends.get(_spelled(path)):
            return found
        if not PureWindowsPath(path).is_absolute() and not path.startswith("/"):
            return []
        return next(([end] for end in _ends(path) if end in self.files), [])


def _spelled(path: str) -> str:
    """The path without upper case, and with each accent in its letter: macOS separates them, spreadsheets do not."""
    return unicodedata.normalize("NFC", path.casefold())


def _ends(path: str) -> Iterator[str]:
    """What is left of a path without its first folders, the longest first."""
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def _texts(table: Path) -> list[str]:
    """The text of the table in each encoding that it may have."""
    try:
        content = table.read_bytes()
    except OSError as error:
        raise CommandError(
            f"cannot read the groups in {table}: {why(error)}; expected patient, folder, phash, or a CSV file "
            "with the columns file and group"
        ) from None
    if content.startswith(b"PK\x03\x04"):
        raise CommandError(f"{table} is an Excel or OpenDocument file: save it as CSV, with the columns file and group")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return [content.decode("utf-16", errors="replace")]
    try:
        return [content.decode("utf-8-sig")]
    except UnicodeDecodeError:
        # surrogateescape: Python decodes file names that are no UTF-8 that way.
        return [content.decode("utf-8-sig", errors="surrogateescape"), content.decode("cp1252", errors="replace")]


def _read(table: Path, text: str, names: _Names) -> _Groups:
    groups = _Groups()
    try:
        for cell, group in _rows(table, text):
            if file := names.certain(cell):
                groups.certain.setdefault(file, []).append(group)
            elif len(found := names.likely(cell)) == 1:
                groups.likely.setdefault(found[0], []).append(group)
            elif found:
                groups.unclear[cell] = found
            else:
                groups.unknown.append(cell)
    except csv.Error as error:
        raise CommandError(f"{table} is not a CSV file with the columns file and group: {why(error)}") from None
    return groups


def _rows(table: Path, text: str) -> Iterator[tuple[str, str]]:
    """The file and the group in each row that has a group."""
    lines = io.StringIO(text, newline="")
    first = next((line for line in lines if line.strip() and not line.startswith("sep=")), "")
    heads = {delimiter: _head(first, delimiter) for delimiter in DELIMITERS}
    fit = [delimiter for delimiter, head in heads.items() if all(head.count(column) == 1 for column in COLUMNS)]
    if not fit:
        raise CommandError(_wrong_columns(table, first, max(heads.values(), key=len)))
    file, group = (heads[fit[0]].index(column) for column in COLUMNS)
    for row in csv.reader(lines, delimiter=fit[0]):
        if len(row) > max(file, group) and row[group].strip():
            yield from_cell(row[file]), from_cell(row[group].strip(" "))


def _head(line: str, delimiter: str) -> list[str]:
    """The names of the columns; upper and lower case are the same."""
    return [cell.strip().casefold() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _wrong_columns(table: Path, first: str, head: Sequence[str]) -> str:
    if not first:
        return f"{table} is empty: its first line should be file,group"
    if twice := [column for column in COLUMNS if head.count(column) > 1]:
        return f"{table} has several columns {twice[0]}: rename the others"
    line = shown(first.strip())
    line = line if len(line) <= MOST_SHOWN else f"{line[: MOST_SHOWN - 3]}..."
    missing = " and no column ".join(column for column in COLUMNS if column not in head)
    return f"{table} has no column {missing}: its first line is {line!r}; name the columns file and group there"
