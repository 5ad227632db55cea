"""Groups of images that belong together, such as those of one patient; a group is never divided between splits.

Without groups, near-identical images can be in both training and test, and the test rewards memorization.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..cli.command import CommandError, shown, why
from .cells import from_cell
from .checking import over_images
from .folders import Found, counted, same_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# 144 bits distinguish scans of the same view; the usual 64 bits do not. Near-identical images (saved again, resized,
# or with other brightness) differ in up to 12 of these bits, and different images of cells or brains usually in more.
HASH_SIZE = 12
MOST_DIFFERENT_BITS = 12
ROWS = 256  # of the pairwise distances at once: 256 x 15,000 x 8 bytes are 31 MB


def group(found: Found, groups: str | None, console: Console) -> tuple[list[str], str]:
    """The group of each image, and a sentence that describes the groups.

    Links to the same file are always in one group; groups that share a file become one.

    Args:
        found: the images.
        groups: None, where each image is its own group; "phash", where images that look alike are a group, whatever
            their labels; else the path of a CSV file with the columns `file` (as in `Found`) and `group`.
        console: shows the progress bar.

    Raises:
        CommandError: the CSV file cannot be read, lacks a column or an image, or gives an image two groups.
    """
    files = [image.file for image in found.images]
    first = same_files(found.root, files)
    if groups is None:
        return first, "each image is its own group"
    if groups == "phash":
        names, what = _alike(found, console), "images that look alike are in one group"
    else:
        names, what = _from_csv(Path(groups), files), f"the groups are those of {shown(groups)}"
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


def _alike(found: Found, console: Console) -> list[str]:
    """Groups of images with similar hashes; the name of a group is the file of its first image."""
    import numpy as np

    hashes = np.stack(over_images(found, _perceptual_hash, "comparing images", console))
    return [found.images[first].file for first in components(hashes, MOST_DIFFERENT_BITS)]


def _perceptual_hash(path: Path) -> NDArray[np.uint64]:
    """The bits of the hash in (3,) words, padded with zeros."""
    import imagehash
    import numpy as np

    from ..cli.images import load_image

    image, _ = load_image(path)
    packed = np.packbits(imagehash.phash(image, hash_size=HASH_SIZE).hash)
    return np.pad(packed, (0, -len(packed) % 8)).view(np.uint64)


def components(hashes: NDArray[np.uint64], most: int) -> NDArray[np.int64]:
    """The connected components of hashes that differ in at most `most` bits.

    Args:
        hashes: (images, words).
        most: the largest number of bits in which linked hashes differ.

    Returns:
        (images,), for each hash the index of the first member of its component.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number = len(hashes)
    first = np.arange(number)
    for start in range(0, number, ROWS):
        rows = hashes[start : start + ROWS]
        different = np.zeros((len(rows), number - start), dtype=np.uint16)
        for word in range(hashes.shape[1]):
            different += np.bitwise_count(rows[:, word, None] ^ hashes[None, start:, word])
        row, column = np.nonzero(different <= most)
        # Earlier links are reduced to one per image, to its first member, because all links could be as many as pairs.
        ends = np.concatenate([np.arange(number), row + start]), np.concatenate([first, column + start])
        links = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(number, number))
        _, component = connected_components(links, directed=False)
        _, members = np.unique(component, return_index=True)
        first = members[component]
    return first


def _from_csv(path: Path, files: list[str]) -> list[str]:
    groups = _read(path)
    lacking = [file for file in files if file not in groups]
    if lacking:
        examples = ", ".join(shown(file) for file in lacking[:3])
        known = "no image" if len(lacking) == len(files) else f"{len(files) - len(lacking)} of {len(files)} images"
        raise CommandError(
            f"{path} gives a group to {known}: add a row for {counted(len(lacking), 'image')}, with files written like "
            f"{examples}"
        )
    return [groups[file] for file in files]


def _read(path: Path) -> dict[str, str]:
    """File -> group, from the rows that have a group."""
    groups: dict[str, str] = {}
    twice: list[str] = []
    try:
        # utf-8-sig: spreadsheets write a byte order mark; surrogateescape: Python decodes file names that way.
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            missing = {"file", "group"} - set(rows.fieldnames or ())
            if missing:
                raise CommandError(
                    f"{path} has no column {' and no column '.join(sorted(missing))}: its first line should be "
                    "file,group"
                )
            for row in rows:
                if not row["group"]:
                    continue
                image, name = from_cell(row["file"]), from_cell(row["group"])
                if groups.setdefault(image, name) != name:
                    twice.append(image)
    except OSError as error:
        raise CommandError(
            f"cannot read the groups in {path}: {why(error)}; expected phash, or a CSV file with columns file and group"
        ) from None
    except csv.Error as error:
        raise CommandError(f"{path} is not a CSV file with the columns file and group: {why(error)}") from None
    if twice:
        examples = ", ".join(shown(file) for file in list(dict.fromkeys(twice))[:3])
        raise CommandError(f"{path} gives several groups to one file, such as {examples}: give each file one group")
    return groups
