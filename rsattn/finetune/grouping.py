"""Groups of images that belong together, such as those of one patient; a group is never divided between splits.

Without groups, near-identical images can be in both training and test, and the test rewards memorization.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.command import CommandError, shown
from .folders import Found
from .group_file import groups_from
from .near_identical import MOST_DIFFERENT_BITS, components
from .same_files import same_files
from .wording import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def group(
    found: Found, groups: str | None, hashes: NDArray[np.uint64], patients: Sequence[str | None] = ()
) -> tuple[list[str], str]:
    """The group of each image, and a sentence that describes the groups.

    Links to the same file are always in one group; groups that share a file become one.

    Args:
        found: the images.
        groups: None, where each image is its own group; "phash", where images that look alike are a group, whatever
            their labels; "patient", where the DICOM files with one PatientID are a group; "folder", where the images in
            subfolders of the class folders with one name are a group; else the path of a CSV file with the columns
            `file` and `group`.
        hashes: of the images, see `near_identical`.
        patients: of the images, for "patient", see `checking.Checked`.

    Raises:
        CommandError: an image has no PatientID, or is in no subfolder; or the CSV file cannot be read, lacks a column
            or an image, or gives an image two groups.
    """
    files = [image.file for image in found.images]
    first = same_files(found.root, files)
    if groups is None:
        return first, "each image is its own group"
    if groups == "phash":
        names, what = _alike(found, hashes), "images that look alike are in one group"
    elif groups == "patient":
        names, what = _of_patients(found, patients), "the images of one patient (PatientID) are in one group"
    elif groups == "folder":
        names, what = _of_subfolders(found), "the images in one subfolder of the class folders are in one group"
    else:
        names, what = groups_from(Path(groups), found.root, files), f"the groups are those of {shown(groups)}"
    names = _joined(names, first)
    return names, f"{what}: {_counts(found, names)}"


def _joined(names: list[str], files: list[str]) -> list[str]:
    """The names of the groups; groups that share a file get the same name."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number = len(names)
    of_name: dict[str, int] = {}
    of_file: dict[str, int] = {}
    ends = [of_name.setdefault(name, i) for i, name in enumerate(names)]
    ends += [of_file.setdefault(file, i) for i, file in enumerate(files)]
    links = coo_array((np.ones(2 * number), (np.tile(np.arange(number), 2), ends)), shape=(number, number))
    called: dict[int, str] = {}
    return [called.setdefault(one, name) for one, name in zip(connected_components(links, directed=False)[1], names)]


def _counts(found: Found, names: list[str]) -> str:
    labels: dict[str, set[str]] = {}
    for image, name in zip(found.images, names):
        labels.setdefault(name, set()).add(image.label)
    words = f"{counted(len(names), 'image')} in {counted(len(labels), 'group')}"
    mixed = sum(len(of_group) > 1 for of_group in labels.values())
    return f"{words}, {mixed} of them with images of several classes" if mixed else words


def _alike(found: Found, hashes: NDArray[np.uint64]) -> list[str]:
    """Groups of images with similar hashes; the name of a group is the file of its first image."""
    return [found.images[first].file for first in components(hashes, MOST_DIFFERENT_BITS)]


def _of_patients(found: Found, patients: Sequence[str | None]) -> list[str]:
    """Groups of images with one PatientID.

    The name of a group is the file of its first image, because split.csv and predictions.csv are shared, and have to
    hold no identifiers of patients.
    """
    first: dict[str, str] = {}
    names: list[str] = []
    for image, patient in zip(found.images, patients, strict=True):
        if not patient:
            lacking = sum(not other for other in patients)
            raise CommandError(
                f"--groups patient needs a PatientID in every image, and {lacking} of {len(patients)} have none, such "
                f"as {shown(image.file)}: give --groups a CSV file with the columns file and group"
            )
        names.append(first.setdefault(patient, image.file))
    return names


def _of_subfolders(found: Found) -> list[str]:
    """The subfolder of each image; one name in several classes is one group, because it can be one patient."""
    if lacking := [image.file for image in found.images if not image.subfolder]:
        raise CommandError(
            f"--groups folder needs each image in a subfolder of its class folder, and {len(lacking)} of "
            f"{len(found.images)} are in none, such as {shown(lacking[0])}: move them, or give --groups a CSV file "
            "with the columns file and group"
        )
    return [image.subfolder for image in found.images]
