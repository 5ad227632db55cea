"""The script of docs/images.md, on made-up DICOM files."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="pip install pydicom")
SCRIPT = Path(__file__).parents[1] / "docs" / "dicom_to_png.py"


def scan(path: Path, patient: str, **tags: Any) -> None:
    """Columns from -1024 to 976 Hounsfield units, 20 apart."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    made = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=128 * b"\0")
    made.Rows, made.Columns, made.SamplesPerPixel, made.PixelRepresentation = 4, 101, 1, 0
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.RescaleSlope, made.RescaleIntercept, made.PatientID = 15, 2, -1024, patient
    made.PhotometricInterpretation = "MONOCHROME2"
    for name, value in tags.items():
        setattr(made, name, value)
    made.PixelData = np.tile(np.arange(0, 1010, 10, dtype="<u2"), (4, 1)).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)


def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *window: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path / "dicom"), str(tmp_path / "png"), *window])
    runpy.run_path(str(SCRIPT))
    found = sorted((tmp_path / "png").rglob("*.png"))
    return {file.relative_to(tmp_path / "png").as_posix(): np.asarray(Image.open(file))[0] for file in found}


def test_values_in_the_window_become_gray_and_patients_become_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(tmp_path / "dicom" / "no" / "I1", "17", WindowCenter=[40, 400], WindowWidth=[400, 1500])
    scan(tmp_path / "dicom" / "yes" / "a.dcm", "4", PhotometricInterpretation="MONOCHROME1")
    (tmp_path / "dicom" / "notes.txt").write_text("no scan")
    images = converted(tmp_path, monkeypatch)
    units, every = np.arange(-1024, 977, 20), 255 * np.arange(101) / 100
    near = {"rtol": 0, "atol": 0.5}  # rounded to whole grays
    np.testing.assert_allclose(images["no/I1.png"], 255 * ((units + 160) / 400).clip(0, 1), **near)
    np.testing.assert_allclose(images["yes/a.dcm.png"], 255 - every, **near)
    assert (tmp_path / "png" / "patients.csv").read_text().split() == ["file,group", "no/I1.png,17", "yes/a.dcm.png,4"]
    whole = converted(tmp_path, monkeypatch, "-1024", "976")
    np.testing.assert_allclose(whole["no/I1.png"], every, **near)


def test_a_window_can_be_empty_and_images_without_a_patient_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scan(tmp_path / "dicom" / "no" / "I1", "", WindowCenter=None, WindowWidth=None)
    scan(tmp_path / "dicom" / "yes" / "I2", "4")
    first, second = converted(tmp_path, monkeypatch).values()
    np.testing.assert_array_equal(first, second)
    assert capsys.readouterr().out == (
        "images: 2, patients: 1\n"
        f"images without PatientID: 1; give them groups in {tmp_path / 'png' / 'patients.csv'}\n"
    )


def test_missing_arguments_are_answered_with_the_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ([], ["dicom"], ["dicom", "png", "-160"]):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        with pytest.raises(SystemExit, match=r"python dicom_to_png\.py SOURCE TARGET"):
            runpy.run_path(str(SCRIPT))
