"""Every fifth image of blood cells as a folder for `rsattn finetune`, in the leak-free split.

FOLDER gets the images under train/ and test/, and beside it FOLDER.csv says of which photograph each image is a copy.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
from pathlib import Path

from .sets import blood, divided, thinned


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.paper.as_folder", description=__doc__)
    parser.add_argument("data", metavar="DATA", type=Path, help="folder with the zip files, see README.md")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="new folder for the images")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"{options.data}: no such folder")
    if options.folder.exists():
        parser.error(f"{options.folder} exists; name a new folder")
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, open(f"{options.folder}.csv", "w", newline="") as file:
        images = thinned(blood(options.data, Path(work)), 5)
        writer = csv.writer(file)
        writer.writerow(["file", "group"])
        for row in divided(images, "leak-free", seed=0):
            if row.split == "left-out":
                continue
            name = f"{'test' if row.split == 'test' else 'train'}/{row.label}/{Path(row.file).name}"
            (options.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(images.root / row.file, options.folder / name)
            writer.writerow([name, row.group])


if __name__ == "__main__":
    main()
