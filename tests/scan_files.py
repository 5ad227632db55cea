"""Made-up DICOM and NIfTI files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def dicom(path: Path, stored: Any, **tags: Any) -> Path:
    """Write stored values (H, W), (H, W, 3) or, with NumberOfFrames, with frames in front; tags change the header."""
    stored = np.asarray(stored)
    color = stored.ndim == 3 and stored.shape[-1] == 3
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=128 * b"\0")
    made.SamplesPerPixel = 3 if color else 1
    made.Rows, made.Columns = stored.shape[-3:-1] if color else stored.shape[-2:]
    made.BitsAllocated = made.BitsStored = 8 * stored.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(stored.dtype.kind == "i")
    made.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        made.PlanarConfiguration = 0
    made.PixelData = stored.tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def nifti(path: Path, values: Any, axes: str = "RAS", **header: float) -> Path:
    """Write a volume whose axes lead in these directions, such as LPS; `header` sets fields of the header."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    to_stored = nibabel.orientations.inv_ornt_aff(
        nibabel.orientations.axcodes2ornt(axes), (*np.shape(values), 1, 1)[:3]
    )
    image = nibabel.Nifti1Image(np.asarray(values), np.linalg.inv(to_stored))
    assert "".join(nibabel.aff2axcodes(image.affine)) == axes
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path
