"""Convert DICOM files to PNG: python dicom_to_png.py SOURCE TARGET [LOW HIGH].

The folders below SOURCE, such as one per class, are kept. LOW and HIGH are the values that become black and white, in
Hounsfield units for CT, such as -160 240 for soft tissue. Without them, the window in the file is used, or else its
smallest and largest value. TARGET/patients.csv gets the patient of each image, for `rsattn finetune --groups`.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.misc import is_dicom
from pydicom.pixels import apply_modality_lut

if len(sys.argv) not in (3, 5):
    sys.exit(__doc__)
source, target = map(Path, sys.argv[1:3])
window = tuple(map(float, sys.argv[3:5]))

patients = []
for file in sorted(path for path in source.rglob("*") if path.is_file() and is_dicom(path)):
    scan = pydicom.dcmread(file)
    if "PixelData" not in scan:  # such as DICOMDIR, the list of the files on a disc
        continue
    values = apply_modality_lut(scan.pixel_array, scan).astype(np.float64)
    if values.ndim != 2:
        print(f"left out: {file} has several frames, or colors")
        continue
    if window:
        low, high = window
    elif "WindowCenter" in scan and scan["WindowCenter"].VM:  # it can be empty
        center, width = (float(np.atleast_1d(scan[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        low, high = center - width / 2, center + width / 2
    else:
        low, high = values.min(), values.max()
    gray = ((values - low) / max(high - low, 1e-9)).clip(0, 1)
    if scan.PhotometricInterpretation == "MONOCHROME1":  # the smallest value is white
        gray = 1 - gray
    image = file.relative_to(source).with_name(f"{file.name}.png")
    (target / image).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * gray).round().astype(np.uint8)).save(target / image)
    patients.append((image.as_posix(), scan.get("PatientID", "")))

target.mkdir(parents=True, exist_ok=True)  # if no image was converted
with (target / "patients.csv").open("w", newline="", encoding="utf-8") as table:
    csv.writer(table).writerows([("file", "group"), *patients])
print(f"images: {len(patients)}, patients: {len({patient for _, patient in patients if patient})}")
if unknown := sum(not patient for _, patient in patients):
    print(f"images without PatientID: {unknown}; give them groups in {target / 'patients.csv'}")
