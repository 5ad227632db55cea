"""Near-identical images: a perceptual hash of each image, groups of similar hashes, and pairs in different splits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..cli.command import shown

if TYPE_CHECKING:
    from PIL.Image import Image

# 144 bits distinguish scans of the same view; the usual 64 bits do not. Near-identical images (saved again, resized,
# or with other brightness) differ in up to 12 of these bits, and different images of cells or brains usually in more.
HASH_SIZE = 12
MOST_DIFFERENT_BITS = 12
ROWS = 16  # of the pairwise distances at once: the fastest number, because they stay in the cache
MOST_LINKS = 10**6  # in memory: 16 MB
MOST_PAIRS = 3 * 10**10  # under a minute on one core, and 340,000 images with the default shares

SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test"}
PAIRS_OF_SPLITS = (("test", "train"), ("val", "train"), ("test", "val"))
EXAMPLES = 3


@dataclass(frozen=True)
class Overlap:
    """The images of one split that look the same as an image of another one.

    Attributes:
        split, other: "train", "val" or "test".
        images: the number of images of `split` with a near-identical image in `other`.
        of: the number of all images of `split`.
        examples: some pairs of files, the first of `split`, the second of `other`.
    """

    split: str
    other: str
    images: int
    of: int
    examples: list[list[str]]


SHAPE = [{"split": str, "other": str, "images": int, "of": int, "examples": [[str]]}]
"""The shape of overlaps in data.json, see `contents.Shape`."""


def perceptual_hash(image: Image) -> NDArray[np.uint64]:
    """The bits of the hash in (3,) words, padded with zeros."""
    import imagehash

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
    first, links = np.arange(len(hashes)), _Links()
    for row, column in _similar(hashes, hashes, most, later_only=True):
        links.add(row, column)
        if links.number > MOST_LINKS:
            first, links = links.joined(first), _Links()
    return links.joined(first)


class _Links:
    """Links between images; they are reduced now and then, because all of them could be as many as pairs."""

    def __init__(self) -> None:
        self.ends: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self.number = 0

    def add(self, row: NDArray[np.int64], column: NDArray[np.int64]) -> None:
        self.ends.append((row, column))
        self.number += len(row)

    def joined(self, first: NDArray[np.int64]) -> NDArray[np.int64]:
        """`first`, the first member of each image's component, after these links are added."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        number = len(first)
        rows, columns = zip((np.arange(number), first), *self.ends)
        ends = np.concatenate(rows), np.concatenate(columns)
        links = coo_array((np.ones(len(ends[0]), dtype=bool), ends), shape=(number, number))
        _, component = connected_components(links, directed=False)
        _, members = np.unique(component, return_index=True)
        joined: NDArray[np.int64] = members[component]
        return joined


def overlaps(files: Sequence[str], splits: Sequence[str], hashes: NDArray[np.uint64]) -> list[Overlap] | None:
    """The near-identical images in different splits; None where there are too many images to compare.

    Args:
        files: the name of each image.
        splits: the split of each image.
        hashes: (images, words).
    """
    of = {split: np.flatnonzero(np.array(splits) == split) for split in SPLIT_WORDS}
    if sum(len(of[split]) * len(of[other]) for split, other in PAIRS_OF_SPLITS) > MOST_PAIRS:
        return None
    found = []
    for split, other in PAIRS_OF_SPLITS:
        pairs: list[tuple[int, int]] = []
        for row, column in _similar(hashes[of[split]], hashes[of[other]], MOST_DIFFERENT_BITS):
            ones, places = np.unique(row, return_index=True)
            pairs += zip(of[split][ones].tolist(), of[other][column[places]].tolist())
        if pairs:
            examples = [[files[one], files[another]] for one, another in pairs[:EXAMPLES]]
            found.append(Overlap(split, other, len(pairs), len(of[split]), examples))
    return found


def _similar(
    hashes: NDArray[np.uint64], others: NDArray[np.uint64], most: int, later_only: bool = False
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Indices of the pairs that differ in at most `most` bits, some at a time; with `later_only`, each once."""
    words = np.ascontiguousarray(others[:, 0])
    for start in range(0, len(hashes), ROWS):
        rows, left_out = hashes[start : start + ROWS], start if later_only else 0
        # Most pairs already differ too much in the first word.
        close = np.bitwise_count(rows[:, 0, None] ^ words[None, left_out:]) <= most
        row, column = np.divmod(np.flatnonzero(close), len(words) - left_out)
        row, column = row + start, column + left_out
        same = np.bitwise_count(hashes[row] ^ others[column]).sum(1, dtype=np.int64) <= most
        if later_only:
            same &= row < column
        if same.any():
            yield row[same], column[same]


def table_of(groups: str) -> str:
    """In words, the CSV file of the groups that `groups` of the options gives, or that can replace it."""
    return "a CSV file for --groups" if groups in ("patient", "folder") else shown(groups)


def warning(found: Sequence[Overlap], given: Collection[str | None], groups: str | None) -> str | None:
    """A sentence on the test or validation images that look the same as a training image; None without any.

    Args:
        given: the splits that the folder has, which are not drawn.
        groups: `groups` of the options; phash would replace those of a file.
    """
    first = next((one for one in found if one.other == "train"), None)
    if first is None:
        return None
    one, other = map(shown, first.examples[0])
    words = SPLIT_WORDS[first.split]
    alike = (
        f"{first.images} of {first.of} {words} images {'looks' if first.images == 1 else 'look'} the same as a "
        f"training image (such as {one} and {other})"
    )
    if groups is not None:
        return (
            f"{alike}; if they are copies, the {words} accuracy is too high: give them one group in {table_of(groups)}"
        )
    remedy = "leaves such training images out" if first.split in given else "keeps such images in one split"
    return f"{alike}, so the {words} accuracy is too high; --groups phash {remedy}"
