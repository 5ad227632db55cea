"""The digits: complete, readable as class folders, and never partly written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from rsattn.cli.command import CommandError
from rsattn.finetune.digits import write_digits
from rsattn.finetune.folders import find_images


def test_all_digits_are_written_as_class_folders(tmp_path: Path) -> None:
    write_digits(tmp_path / "new" / "digits")
    found = find_images(tmp_path / "new" / "digits")
    digits = load_digits()
    assert found.classes == tuple("0123456789")
    assert found.notes == ()
    assert len(found.images) == len(digits.target) == 1797
    for image in found.images[::100]:
        index = int(Path(image.file).stem)
        assert image.label == str(digits.target[index])
        with Image.open(found.root / image.file) as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            # 16 levels become 255; rounding moves one by half a level of 255
            assert np.abs(np.asarray(image) - digits.images[index] * (255 / 16)).max() <= 0.5
    assert os.listdir(tmp_path / "new") == ["digits"]


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    write_digits(tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_a_file_in_the_way_is_refused_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "digits"
    file.write_text("mine")
    with pytest.raises(CommandError, match="it is a file"):
        write_digits(file)
    assert file.read_text() == "mine"


def test_what_was_begun_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = Image.Image.save, []

    def failing(self: Image.Image, path: Any) -> None:
        saved.append(path)
        if len(saved) == 5:
            raise OSError(28, "No space left on device")
        save(self, path)

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(CommandError, match=r"cannot write .*digits: No space left on device"):
        write_digits(tmp_path / "digits")
    assert len(saved) == 5
    assert os.listdir(tmp_path) == []


def test_two_writers_at_once_leave_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "digits", os.rename

    def late(source: Any, target: Any) -> None:
        folder.mkdir()
        (folder / "theirs.png").touch()
        rename(source, target)

    monkeypatch.setattr("os.rename", late)
    write_digits(folder)
    assert os.listdir(tmp_path) == ["digits"]
    assert os.listdir(folder) == ["theirs.png"]


def test_a_rename_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(source: Any, target: Any) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr("os.rename", failing)
    with pytest.raises(CommandError, match="Permission denied"):
        write_digits(tmp_path / "digits")
    assert os.listdir(tmp_path) == []
