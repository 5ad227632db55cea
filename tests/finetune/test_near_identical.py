"""Near-identical images: components of similar hashes, and images in different splits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rsattn.finetune import near_identical
from rsattn.finetune.near_identical import Overlap, components, overlaps, warning


def linked_one_by_one(hashes: NDArray[np.uint64], most: int) -> list[int]:
    """The result of `components` from its definition: the smallest index that can be reached."""
    distances = [[sum(int(bits).bit_count() for bits in one ^ other) for other in hashes] for one in hashes]
    first = list(range(len(hashes)))
    for _ in hashes:
        first = [min(first[other] for other, bits in enumerate(row) if bits <= most) for row in distances]
    return first


@pytest.mark.parametrize("most", [0, 10, 13, 16])
def test_components_are_what_links_reach(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Two words with few bits set, so that links, chains and isolated images all occur; blocks of 7 rows."""
    monkeypatch.setattr(near_identical, "ROWS", 7)
    bits = np.random.default_rng(most).random((40, 128)) < 0.09
    hashes = np.packbits(bits, axis=1).view(np.uint64)
    hashes[33] = hashes[2]
    expected = linked_one_by_one(hashes, most)
    assert 1 < len(set(expected)) < 40
    assert components(hashes, most).tolist() == expected


def test_a_chain_over_many_blocks_is_one_component(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each differs from the next in one bit; the order joins the ends last."""
    monkeypatch.setattr(near_identical, "ROWS", 4)
    chain = np.array([[(1 << length) - 1] for length in range(60)], dtype=np.uint64)
    order = np.random.default_rng(0).permutation(60)
    assert components(chain[order], 1).tolist() == [0] * 60
    assert components(chain[order], 0).tolist() == list(range(60))


def test_words_that_differ_in_every_bit_do_not_come_round_to_none() -> None:
    hashes = np.zeros((2, 4), dtype=np.uint64)
    hashes[1] = ~hashes[1]
    assert components(hashes, 255).tolist() == [0, 1]
    assert components(hashes, 256).tolist() == [0, 0]


def test_links_are_reduced_before_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_identical, "MOST_LINKS", 50)
    alike = np.repeat(np.array([[0], [2**40 - 1]], dtype=np.uint64), 60, axis=0)
    assert components(alike, 12).tolist() == [0] * 60 + [60] * 60


def with_bits(*numbers: int) -> NDArray[np.uint64]:
    """Hashes of three words, whose first `number` bits are set."""
    return np.array([[((1 << n) - 1) >> (64 * word) & (2**64 - 1) for word in range(3)] for n in numbers], np.uint64)


def test_images_of_different_splits_that_look_the_same_are_counted() -> None:
    """12 different bits look the same, 13 do not; of several partners, the first is named."""
    files = ["a", "b", "c", "d", "e", "f", "g"]
    splits = ["train", "train", "test", "test", "test", "val", "left-out"]
    found = overlaps(files, splits, with_bits(60, 64, 72, 48, 140, 112, 112))
    assert found == [Overlap("test", "train", 2, 3, [["c", "a"], ["d", "a"]])]
    found = overlaps(files, splits, with_bits(60, 64, 77, 47, 140, 128, 128))
    assert found == [Overlap("test", "val", 1, 3, [["e", "f"]])]


def test_only_some_pairs_are_kept_as_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_identical, "ROWS", 2)
    files = [str(number) for number in range(20)]
    found = overlaps(files, ["train"] * 10 + ["val"] * 10, with_bits(*range(0, 140, 14), *range(0, 140, 14)))
    assert found == [Overlap("val", "train", 10, 10, [["10", "0"], ["11", "1"], ["12", "2"]])]


def test_too_many_images_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_identical, "MOST_PAIRS", 2)
    assert overlaps(["a", "b", "c"], ["train", "train", "test"], with_bits(0, 0, 0)) is not None
    assert overlaps(["a", "b", "c", "d"], ["train", "train", "train", "test"], with_bits(0, 0, 0, 0)) is None


def test_the_warning_names_the_split_and_what_to_do() -> None:
    tested = Overlap("test", "train", 37, 51, [["yes/1.jpg", "yes/2.jpg"]])
    validated = Overlap("val", "train", 1, 40, [["no/1.jpg", "no/\n.jpg"]])
    assert warning([tested, validated], set(), None) == (
        "37 of 51 test images look the same as a training image (such as yes/1.jpg and yes/2.jpg), so the test "
        "accuracy is too high; --groups phash keeps such images in one split"
    )
    assert warning([validated], {"train", "val"}, None) == (
        "1 of 40 validation images looks the same as a training image (such as no/1.jpg and no/\\n.jpg), so the "
        "validation accuracy is too high; --groups phash leaves such training images out"
    )
    assert warning([Overlap("test", "val", 1, 2, [["a", "b"]])], set(), None) is None
    assert warning([], set(), None) is None
    assert warning([tested], set(), "patients.csv") == (
        "37 of 51 test images look the same as a training image (such as yes/1.jpg and yes/2.jpg); if they are copies, "
        "the test accuracy is too high: give them one group in patients.csv"
    )
