"""Names that a spreadsheet would read as formulas, in the CSV files of the commands."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
from rich.console import Console
from runs import table

from rsattn.finetune.cells import as_cell, from_cell
from rsattn.finetune.folders import Found, ImageFile
from rsattn.finetune.grouping import group
from rsattn.finetune.splitting import SplitRow, read_split, write_split
from rsattn.finetune.statistics import read_predictions

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "'=1", "''@x", "-"]
NAMES = ["plain.png", "a=b", "'quoted'", "''", "'", "", "1-2", " =1", "\udcff"]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_is_quoted_and_comes_back(name: str) -> None:
    assert as_cell(name) == f"'{name}"
    assert from_cell(as_cell(name)) == name


@pytest.mark.parametrize("name", NAMES)
def test_other_names_are_left_alone(name: str) -> None:
    assert as_cell(name) == from_cell(name) == name


def test_every_name_has_a_cell_of_its_own() -> None:
    names = ["".join(letters) for length in range(5) for letters in itertools.product("'=a", repeat=length)]
    assert len({as_cell(name) for name in names}) == len(names)
    assert [from_cell(as_cell(name)) for name in names] == names


def test_a_split_is_read_as_it_was_written(tmp_path: Path) -> None:
    labels = ["=cmd()", "'-2", "plain"]
    images = tuple(ImageFile(f"{label}/1.png", label, None) for label in labels)
    path = tmp_path / "split.csv"
    write_split(path, Found(tmp_path, tuple(labels), images, ()), ["@a", "b", "+c"], ["train", "val", "test"])
    assert [row["file"] for row in table(path)] == ["'=cmd()/1.png", "''-2/1.png", "plain/1.png"]
    assert [row["group"] for row in table(path)] == ["'@a", "b", "'+c"]
    assert read_split(path) == [
        SplitRow("=cmd()/1.png", "=cmd()", "train", "@a"),
        SplitRow("'-2/1.png", "'-2", "val", "b"),
        SplitRow("plain/1.png", "plain", "test", "+c"),
    ]


def test_groups_are_read_with_quotes_and_without(tmp_path: Path) -> None:
    images = tuple(ImageFile(file, "a", None) for file in ("=a/1.png", "=a/2.png"))
    (tmp_path / "groups.csv").write_text("file,group\n'=a/1.png,'+g\n=a/2.png,+g\n")
    found = Found(tmp_path, ("=a",), images, ())
    assert group(found, str(tmp_path / "groups.csv"), Console(file=io.StringIO()))[0] == ["+g", "+g"]


def test_predictions_are_read_as_they_were_meant(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    rows = ("file,group,label,predicted,p_=a,p_b", "'=a/1.png,'=a,'=a,'=a,0.6,0.4", "=a/2.png,=a,=a,b,0.3,0.7")
    path.write_text("\n".join(rows) + "\n")
    read = read_predictions(path)
    assert read.file.tolist() == ["=a/1.png", "=a/2.png"]
    assert read.group.tolist() == ["=a", "=a"]
    assert read.correct.tolist() == [True, False]
