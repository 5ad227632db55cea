"""Read one image from a DICOM or NIfTI file, with pydicom and nibabel."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .command import CommandError, why
from .gray import Window, as_gray, ends_of
from .packages import is_installed

if TYPE_CHECKING:
    from PIL.Image import Image

READERS = {"DICOM": "pydicom", "NIfTI": "nibabel"}
MOST_SCANS = 100  # files that are opened to recognize their format
NUMBERS = re.compile(r"[.\d]*")  # the end of a name such as 1.2.840.113619.2.55
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
OF_A_FRAME = ("PixelValueTransformationSequence", "FrameVOILUTSequence")  # of an enhanced file: rescale and window


@dataclass(frozen=True)
class Scan:
    """One image of a DICOM or NIfTI file.

    Attributes:
        image: in RGB.
        deep: gray with more than 8 bits per pixel; of NIfTI, each image.
        from_header: the header says which values become black and white, and no other window was given.
        several: the file has more slices or frames; this is the one in the middle.
        patient: the PatientID of a DICOM file; empty where it has none.
    """

    image: Image
    deep: bool
    from_header: bool
    several: bool
    patient: str = ""


def scan_format(path: Path) -> str | None:
    """A key of `READERS`, from the suffix, or from the first bytes of a file without one; None for other files."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return "NIfTI"
    if name.endswith((".dcm", ".dicom", ".ima")):
        return "DICOM"
    try:
        if NUMBERS.fullmatch(path.suffix) and path.is_file():
            with path.open("rb") as file:
                return "DICOM" if file.read(132)[128:] == b"DICM" else None
    except OSError:
        pass
    return None


def is_readable_scan(path: Path) -> bool:
    """Whether the file is in a format of scanners whose package is installed."""
    kind = scan_format(path)
    return kind is not None and is_installed(READERS[kind])


def hint_at_scans(files: Sequence[Path]) -> str | None:
    """What to install where one of the first files is in a format whose package is missing; None where none is."""
    formats = {scan_format(file) for file in files[:MOST_SCANS]}
    found = [name for name, package in READERS.items() if name in formats and not is_installed(package)]
    return f"to read {' and '.join(found)} files: pip install 'rsattn[scans]'" if found else None


def read_scan(path: Path, kind: str, window: Window | None = None) -> Scan:
    """The image in a DICOM file, or the middle slice or frame of one with several; that of a NIfTI file too.

    Args:
        kind: a key of `READERS`, whose package is installed.
        window: for gray images with more than 8 bits, instead of that of the header; of DICOM, in rescaled units.

    Raises:
        CommandError: the file cannot be read, is damaged, or holds no image; the message names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values in the header that break the standard
            return _of_dicom(path, window) if kind == "DICOM" else _of_nifti(path, window)
    except CommandError:
        raise
    except OSError as error:
        raise CommandError(f"cannot read the image {path}: {why(error)}") from None
    except Exception as error:  # the packages raise errors of any type for damaged files
        raise CommandError(f"{path} is a damaged image: {' '.join(why(error).split())}") from None


def _of_dicom(path: Path, window: Window | None) -> Scan:
    import pydicom
    from pydicom.pixels import apply_color_lut, pixel_array

    try:
        header: Any = pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError:
        raise CommandError(f"{path} is not a DICOM file: DICM is missing at byte 128") from None
    modality = header.get("Modality", "")
    if not any(name in header for name in PIXELS):
        raise CommandError(f"{path} is a DICOM file without pixels{f' ({modality})' if modality else ''}")
    if modality == "SEG":
        raise CommandError(f"{path} is a DICOM file with a segmentation, not with an image")
    frames = int(header.get("NumberOfFrames") or 1)
    try:
        stored = pixel_array(header, index=frames // 2)
    except RuntimeError as error:
        syntax = header.file_meta.TransferSyntaxUID
        if not syntax.is_compressed:
            raise
        damaged = "" if "missing dependencies" in str(error) else "it is damaged, or it needs "
        raise CommandError(f"cannot decode {path} ({syntax.name}): {damaged}pip install 'pylibjpeg[all]'") from None
    patient = str(header.get("PatientID") or "").strip()
    if header.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, header)
        bits = 8 * stored.itemsize
    else:
        bits = int(header.get("BitsStored") or 8 * stored.itemsize)
    if stored.ndim == 3:
        upper = stored[..., :3] >> (bits - 8) if bits > 8 else stored[..., :3]
        return Scan(_in_rgb(upper.astype(np.uint8)), False, False, frames > 1, patient)
    _with_tags_of_frame(header, frames // 2)
    gray, from_header = _gray_of_dicom(stored, header, window if bits > 8 else None, bits)
    if header.PhotometricInterpretation == "MONOCHROME1":  # the smallest value is white
        gray = 255 - gray
    return Scan(_in_rgb(gray), bits > 8, from_header, frames > 1, patient)


def _with_tags_of_frame(header: Any, frame: int) -> None:
    """Give the header the rescale and the window of one frame, which an enhanced DICOM file has in sequences."""
    groups = [
        *header.get("SharedFunctionalGroupsSequence", [])[:1],
        *header.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1],
    ]
    for group in groups:
        for name in OF_A_FRAME:
            for item in group.get(name, [])[:1]:
                header.update(item)


def _gray_of_dicom(
    stored: NDArray[Any], header: Any, window: Window | None, bits: int
) -> tuple[NDArray[np.uint8], bool]:
    """Gray levels, before those of MONOCHROME1 are inverted; and whether they are from the header's window."""
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    values = apply_modality_lut(stored, header)
    if window is not None:
        return as_gray(values, ends_of(window)), False
    if header.get("VOILUTSequence"):
        most = 2 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
        return as_gray(apply_voi(np.rint(values).astype(np.int64), header), (0, most)), True
    if "WindowCenter" in header and header["WindowCenter"].VM and header["WindowWidth"].VM:  # they can be empty
        with np.errstate(over="ignore"):  # of a sigmoid
            low, high = apply_windowing(np.array([-1e9, 1e9]), header)
            return as_gray(apply_windowing(values, header), (low, high)), True
    return as_gray(values) if bits > 8 else as_gray(stored, (0, 2**bits - 1)), False


def _of_nifti(path: Path, window: Window | None) -> Scan:
    import nibabel

    volume: Any = nibabel.load(path)
    plane, several = _middle_slice(volume)
    header = volume.header
    low, high = (float(header[name]) if name in header else 0.0 for name in ("cal_min", "cal_max"))
    from_header = window is None and high > low
    ends = ends_of(window) if window is not None else (low, high) if from_header else None
    return Scan(_in_rgb(as_gray(plane, ends)), True, from_header, several)


def _middle_slice(volume: Any) -> tuple[NDArray[Any], bool]:
    """The middle axial slice of the first volume, or the only slice; and whether there are others.

    As radiologists look at it: anterior up, and the patient's left on the right of the image; sagittal and coronal
    slices have the head up.
    """
    from nibabel.orientations import apply_orientation, io_orientation

    # For each stored axis: 0 (to the patient's right), 1 (anterior) or 2 (up), and 1, or -1 for the opposite direction.
    oriented = io_orientation(volume.affine)
    if np.isnan(oriented).any():
        oriented = np.array([[0, 1], [1, 1], [2, 1]])
    shape = (*volume.shape, 1, 1)[: max(3, len(volume.shape))]
    sizes = {int(axis): size for (axis, _), size in zip(oriented, shape)}
    through = next((axis for axis in (2, 1, 0) if sizes[axis] == 1), 2)
    across = [int(axis) for axis, _ in oriented].index(through)
    middle = shape[across] // 2 if oriented[across, 1] == 1 else (shape[across] - 1) - shape[across] // 2
    index: list[Any] = [slice(None)] * 3 + [0] * (len(shape) - 3)
    index[across] = slice(middle, middle + 1)
    values = np.asanyarray(volume.dataobj[tuple(index[: len(volume.shape)])])
    if values.dtype.kind not in "iuf":
        raise ValueError("its values are colors or complex numbers")
    values = values.reshape([1 if axis == across else size for axis, size in enumerate(shape[:3])])
    plane = apply_orientation(values, oriented).take(0, axis=through)
    return plane.T[::-1, ::-1], shape[across] > 1 or max(shape[3:], default=1) > 1


def _in_rgb(pixels: NDArray[np.uint8]) -> Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
