"""DICOM and NIfTI files: their gray levels follow the standards, and their slices the view of radiologists."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from rsattn.cli.command import CommandError
from rsattn.cli.images import load_image, read_image

pydicom = pytest.importorskip("pydicom", reason="pip install 'rsattn[scans]'")
nibabel = pytest.importorskip("nibabel", reason="pip install 'rsattn[scans]'")
from pydicom.dataset import Dataset  # noqa: E402
from scan_files import dicom, nifti  # noqa: E402

UNITS = np.arange(-1024, 977, 20)  # Hounsfield
STORED = np.tile((UNITS + 1024) // 2, (4, 1)).astype(np.uint16)
RESCALED = {"RescaleSlope": 2, "RescaleIntercept": -1024, "BitsStored": 12, "HighBit": 11}
EXACT = {"rtol": 0, "atol": 1}  # rounded down to whole grays


def gray(path: Path, **how: Any) -> Any:
    """The first row of an image that is gray."""
    pixels = np.asarray(read_image(path, **how)[0])
    assert np.ptp(pixels, axis=2).max() == 0
    return pixels[0, :, 0].astype(int)


def test_the_window_of_the_header_is_in_rescaled_units(tmp_path: Path) -> None:
    """DICOM PS3.3, C.11.2.1.2.1; of several windows, the first one."""
    file = dicom(tmp_path / "a.dcm", STORED, WindowCenter=[40, 400], WindowWidth=[400, 1500], **RESCALED)
    expected = (((UNITS - 39.5) / 399 + 0.5) * 255).clip(0, 255)
    np.testing.assert_allclose(gray(file), expected, **EXACT)
    assert read_image(file)[1].from_header


def test_a_window_wider_than_the_values_does_not_stretch_them(tmp_path: Path) -> None:
    file = dicom(tmp_path / "a.dcm", STORED, WindowCenter=0, WindowWidth=8000, **RESCALED)
    assert (gray(file).min(), gray(file).max()) == (94, 158)


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_functions_of_the_window(tmp_path: Path, function: str) -> None:
    """DICOM PS3.3, C.11.2.1.3."""
    file = dicom(tmp_path / "a", STORED, WindowCenter=0, WindowWidth=500, VOILUTFunction=function, **RESCALED)
    linear, sigmoid = (UNITS / 500 + 0.5).clip(0, 1), 1 / (1 + np.exp(-4 * UNITS / 500))
    np.testing.assert_allclose(gray(file), 255 * (linear if function == "LINEAR_EXACT" else sigmoid), **EXACT)


def test_a_lookup_table_comes_before_the_window(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [256, 0, 8])
    table.add_new("LUTData", "US", list(range(255, -1, -1)))
    stored = np.arange(0, 256, 8, dtype=np.uint16).reshape(1, -1)
    file = dicom(tmp_path / "a.dcm", stored, VOILUTSequence=[table], WindowCenter=0, WindowWidth=10, BitsStored=12)
    np.testing.assert_array_equal(gray(file), 255 - stored[0])


@pytest.mark.parametrize("empty", [{}, {"WindowCenter": "", "WindowWidth": ""}])
def test_without_a_window_the_whole_range_is_used(tmp_path: Path, empty: dict[str, str]) -> None:
    file = dicom(tmp_path / "a.ima", STORED, **RESCALED, **empty)
    np.testing.assert_allclose(gray(file), 255 * np.arange(101) / 100, **EXACT)
    assert not read_image(file)[1].from_header


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = dicom(tmp_path / "a.dcm", STORED, **RESCALED)
    inverted = dicom(tmp_path / "b.dcm", STORED, PhotometricInterpretation="MONOCHROME1", **RESCALED)
    np.testing.assert_array_equal(gray(inverted), 255 - gray(plain))


def test_8_bits_stay_as_they_are(tmp_path: Path) -> None:
    levels = np.array([[50, 100, 150]], dtype=np.uint8)
    file = dicom(tmp_path / "a.dcm", levels)
    assert gray(file).tolist() == [50, 100, 150]
    assert not read_image(file)[1].deep


@pytest.mark.parametrize("depth", [8, 16])
def test_colors(tmp_path: Path, depth: int) -> None:
    colors = np.array([[[255, 0, 10], [0, 20, 200]]], dtype=np.uint8)
    stored = colors if depth == 8 else colors.astype(np.uint16) * 256 + 7
    assert np.asarray(load_image(dicom(tmp_path / "a.dcm", stored))[0]).tolist() == colors.tolist()


def test_luminance_and_chrominance_become_red_green_and_blue(tmp_path: Path) -> None:
    from pydicom.pixels import convert_color_space

    colors = np.array([[[250, 0, 10], [0, 20, 200]]], dtype=np.uint8)
    stored = convert_color_space(colors, "RGB", "YBR_FULL")
    file = dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(np.asarray(load_image(file)[0], dtype=int), colors, atol=2)


def test_of_several_frames_the_middle_one_is_used_with_its_own_rescale(tmp_path: Path) -> None:
    frames = np.stack([np.tile(np.arange(0, 100, dtype=np.uint16), (3, 1)) + 1000 * n for n in range(5)])
    groups = []
    for number in range(5):
        rescale, window, group = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = 1, -1000 * number
        window.WindowCenter, window.WindowWidth = 50, 101
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [rescale], [window]
        groups.append(group)
    file = dicom(tmp_path / "a.dcm", frames, NumberOfFrames=5, PerFrameFunctionalGroupsSequence=groups)
    np.testing.assert_allclose(gray(file), 2.55 * np.arange(0, 100) + 1, atol=2)
    assert read_image(file)[1].several


def test_what_holds_no_image_is_refused(tmp_path: Path) -> None:
    report = dicom(tmp_path / "report.dcm", STORED, PixelData=None, Modality="SR")
    segmentation = dicom(tmp_path / "mask.dcm", STORED, Modality="SEG")
    words = tmp_path / "words.dcm"
    words.write_text("no image")
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(dicom(tmp_path / "a.dcm", STORED).read_bytes()[:-50])
    broken = tmp_path / "broken.nii"
    broken.write_bytes(b"no volume")
    for file, says in (
        (report, r"report.dcm is a DICOM file without pixels \(SR\)$"),
        (segmentation, "mask.dcm is a DICOM file with a segmentation"),
        (words, "words.dcm is not a DICOM file"),
        (cut, "cut.dcm is a damaged image: "),
        (broken, "broken.nii is a damaged image: "),
        (tmp_path / "gone.dcm", "cannot read the image .*gone.dcm: No such file"),
    ):
        with pytest.raises(CommandError, match=says) as caught:
            read_image(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("Unable to decompress: all plugins are missing dependencies:\n\tpylibjpeg", "pip install"),
        ("Unable to decode: all available plugins:\n pillow: broken", "it is damaged, or it needs pip install"),
    ],
)
def test_a_missing_decoder_is_named(error: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydicom.pixels, "pixel_array", mock.Mock(side_effect=RuntimeError(error)))
    file = dicom(tmp_path / "a.dcm", STORED)
    header = pydicom.dcmread(file)
    header.compress(pydicom.uid.RLELossless)
    header.save_as(file)
    with pytest.raises(CommandError) as caught:
        read_image(file)
    assert str(caught.value) == f"cannot decode {file} (RLE Lossless): {says} 'pylibjpeg[all]'"


def head(axes: str) -> Any:
    """A volume (5, 6, 7) stored with these axes: 255 at the right, 100 at the front, of the middle axial slice only."""
    canonical = np.zeros((5, 6, 7), dtype=np.int16)
    canonical[4, 2, 3], canonical[1, 5, 3] = 255, 100
    plain = nibabel.Nifti1Image(canonical, np.eye(4))
    to = nibabel.orientations.axcodes2ornt(axes)
    return np.asanyarray(plain.as_reoriented(nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], to)).dataobj)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASL", "SPR"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_shows_the_middle_axial_slice_as_radiologists_see_it(tmp_path: Path, axes: str, suffix: str) -> None:
    """The front of the patient is up, and the right of the patient is on the left."""
    image, source = read_image(nifti(tmp_path / f"a{suffix}", head(axes), axes))
    pixels = np.asarray(image)[..., 0]
    assert pixels.shape == (6, 5)
    assert np.argwhere(pixels == 255).tolist() == [[3, 0]]
    assert np.argwhere(pixels == 100).tolist() == [[0, 3]]
    assert (source.several, source.deep, source.from_header) == (True, True, False)


def test_of_a_series_of_volumes_the_first_is_used_and_a_single_slice_is_itself(tmp_path: Path) -> None:
    series = np.stack([head("RAS"), 0 * head("RAS")], axis=-1)
    first = np.asarray(read_image(nifti(tmp_path / "a.nii", series))[0])
    assert first.max() == 255
    flat = np.arange(12, dtype=np.float32).reshape(3, 4)
    image, source = read_image(nifti(tmp_path / "b.nii", flat))
    assert np.argwhere(np.asarray(image)[..., 0] == 255).tolist() == [[0, 0]]
    assert (image.size, source.several) == ((3, 4), False)
    coronal = np.zeros((3, 1, 4), dtype=np.float32)
    coronal[0, 0, 3] = 1  # left, up
    image, source = read_image(nifti(tmp_path / "c.nii", coronal))
    assert np.argwhere(np.asarray(image)[..., 0]).tolist() == [[0, 2]]
    assert (image.size, source.several) == ((3, 4), False)


def test_the_header_of_nifti_can_set_the_ends_of_the_gray_levels(tmp_path: Path) -> None:
    values = np.tile(np.arange(-50, 150, dtype=np.float32)[:, None], (1, 2))
    file = nifti(tmp_path / "a.nii", values, cal_min=0, cal_max=100)
    np.testing.assert_allclose(gray(file), (2.55 * np.arange(-50, 150)[::-1]).clip(0, 255), **EXACT)
    assert read_image(file)[1].from_header


def test_a_window_replaces_that_of_the_header(tmp_path: Path) -> None:
    """DICOM PS3.3, C.11.2.1.3.2 (LINEAR_EXACT), in rescaled units; images with 8 bits have no such values."""
    expected = (255 * ((UNITS - 40) / 400 + 0.5)).clip(0, 255)
    scan = dicom(tmp_path / "a.dcm", STORED, WindowCenter=0, WindowWidth=9, **RESCALED)
    np.testing.assert_allclose(gray(scan, window=(40, 400)), expected, **EXACT)
    assert not read_image(scan, (40, 400))[1].from_header
    inverted = dicom(tmp_path / "b.dcm", STORED, PhotometricInterpretation="MONOCHROME1", **RESCALED)
    np.testing.assert_allclose(gray(inverted, window=(40, 400)), 255 - expected, **EXACT)
    volume = nifti(tmp_path / "c.nii", np.tile(UNITS[::-1, None].astype(np.int16), (1, 2)), cal_max=9)
    np.testing.assert_allclose(gray(volume, window=(40, 400)), expected, **EXACT)
    flat = dicom(tmp_path / "d.dcm", np.array([[50, 100]], dtype=np.uint8))
    assert gray(flat, window=(0, 10)).tolist() == [50, 100]


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.uint16, "tif"), (np.float32, "tif")])
def test_a_window_for_images_that_pillow_reads(tmp_path: Path, dtype: Any, suffix: str) -> None:
    values = np.arange(0, 3000, 30).reshape(1, -1)
    Image.fromarray(values.astype(dtype)).save(tmp_path / f"a.{suffix}")
    expected = (255 * (values[0] - 500) / 1000).clip(0, 255)
    np.testing.assert_allclose(gray(tmp_path / f"a.{suffix}", window=(1000, 1000)), expected, **EXACT)


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsattn.cli.images.is_installed", lambda package: False)
    monkeypatch.setattr("rsattn.cli.scans.is_installed", lambda package: False)
    with pytest.raises(CommandError, match=r"rsattn can read: to read DICOM files: pip install 'rsattn\[scans\]'"):
        read_image(dicom(tmp_path / "a.dcm", STORED))


def test_other_images_are_read_by_pillow(tmp_path: Path) -> None:
    Image.new("L", (3, 3), 7).save(tmp_path / "I1", format="png")
    assert gray(tmp_path / "I1").tolist() == [7, 7, 7]
