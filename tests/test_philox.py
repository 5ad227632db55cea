"""The dropout stream: Philox4x32-10 as published, addressed by (seed, b, h, i, j) alone."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import philox_keep, philox_words, seed_after

import rsattn
from rsattn import philox

# kat_vectors of Random123, rows "philox4x32 10": counter, key, result.
KNOWN_ANSWERS = [
    pytest.param("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    pytest.param("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    pytest.param("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def split(words: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in words.split())


def signed(seed: int) -> torch.Tensor:
    """A 64-bit key as the int64 tensor the library takes."""
    return torch.tensor([seed - 2**64 if seed >= 2**63 else seed], dtype=torch.int64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_published_vectors(counter: str, key: str, expected: str) -> None:
    low, high = split(key)
    seed = low | high << 32
    drawn = philox.words(signed(seed), *(torch.tensor([word]) for word in split(counter)))
    assert tuple(int(word) for word in drawn) == split(expected)
    assert philox_words(seed, split(counter)) == split(expected)  # the oracle of the other tests


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 5, 2**63 - 1, 0x1234567890ABCDEF])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 4), (2, 2, 3, 7), (1, 2, 4, 65)], ids=str)
def test_mask_equals_plain_integers(seed: int, shape: tuple[int, int, int, int]) -> None:
    assert torch.equal(philox.keep_mask(signed(seed), 0.4, shape), philox_keep(seed, 0.4, shape))


@pytest.mark.parametrize("dropout_p", [0.01, 0.1, 0.5, 0.9])
def test_kept_fraction_is_binomial(dropout_p: float) -> None:
    keep = philox.keep_mask(signed(20230601), dropout_p, (4, 4, 111, 197))
    # Five standard deviations of a binomial share: a fair stream fails once in 1.7 million seeds; this is one seed.
    bound = 5 * math.sqrt(dropout_p * (1 - dropout_p) / keep.numel())
    assert abs(float(keep.double().mean()) - (1 - dropout_p)) < bound
    # The same along every axis, where a counter wired wrongly would show: slices of one index.
    for axis in range(4):
        slices = keep.double().movedim(axis, 0).flatten(1)
        wide = 6 * math.sqrt(dropout_p * (1 - dropout_p) / slices.shape[1])  # six: up to 197 slices are looked at
        assert float((slices.mean(1) - (1 - dropout_p)).abs().max()) < wide


def test_neighbours_are_not_copies() -> None:
    """Each of b, h, i, j and the seed changes the stream."""
    keep = philox.keep_mask(signed(7), 0.5, (2, 2, 2, 512))
    rows = [keep[b, h, i] for b in range(2) for h in range(2) for i in range(2)]
    rows.append(philox.keep_mask(signed(8), 0.5, (1, 1, 1, 512))[0, 0, 0])
    rows.append(philox.keep_mask(signed(7 + 2**32), 0.5, (1, 1, 1, 512))[0, 0, 0])
    rows += [rows[0].roll(shift) for shift in (1, 2, 3, 4)]
    for first in range(len(rows)):
        for second in range(first):
            agree = float((rows[first] == rows[second]).double().mean())
            assert abs(agree - 0.5) < 6 * 0.5 / math.sqrt(512), (first, second)


@pytest.mark.parametrize("keys", [1, 2, 63, 65, 111])
def test_the_mask_of_an_element_does_not_depend_on_the_shape_asked_for(keys: int) -> None:
    whole = philox.keep_mask(signed(99), 0.3, (3, 4, 67, 113))
    part = philox.keep_mask(signed(99), 0.3, (2, 3, 65, keys))
    assert torch.equal(part, whole[:2, :3, :65, :keys])


def test_no_dropout_keeps_everything() -> None:
    assert philox.keep_mask(signed(3), 0.0, (2, 2, 33, 65)).all()
    assert philox.keep_scale(0.0) == 1.0


def test_probability_one_drops_everything() -> None:
    # The 32-bit threshold cannot exclude the word 2^32 - 1, so the scale is 0 and what it keeps counts for nothing.
    assert philox.keep_scale(1.0) == 0.0
    assert not philox.keep_mask(signed(3), 1.0, (2, 2, 33, 65)).any()
    query = torch.randn(1, 2, 5, 16)
    result = rsattn.residual_attention(query, query, query, dropout_p=1.0, norm="entrywise", backend="reference")
    assert torch.equal(result.output, torch.zeros_like(query))
    assert torch.equal(result.norms, torch.zeros(1, 2))


@pytest.mark.parametrize(("dropout_p", "first_kept"), [(0.5, 2**31), (0.25, 2**30), (2**-33, 0), (1.0, 2**32 - 1)])
def test_threshold_is_the_smallest_kept_word(dropout_p: float, first_kept: int) -> None:
    assert philox.threshold(dropout_p) == first_kept


def test_manual_seed_governs_the_stream() -> None:
    """The same torch.manual_seed gives the same output, the next call and another seed do not."""
    query = torch.randn(2, 2, 9, 16)

    def outputs(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        call = lambda: rsattn.residual_attention(query, query, query, dropout_p=0.5, backend="reference")  # noqa: E731
        return [call().output, call().output]

    first, again, other = outputs(1), outputs(1), outputs(2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_drawn_seed_is_the_generators() -> None:
    """`seed_after`, which other tests build their masks from, is what the library draws; it fits 63 bits."""
    for manual in (0, 5, 12345):
        torch.manual_seed(manual)
        drawn = int(philox.draw_seed(torch.device("cpu")))
        assert drawn == seed_after(manual)
        assert 0 <= drawn < 2**63


def test_a_word_equal_to_the_threshold_is_kept() -> None:
    word = philox_words(31, (0, 0, 0, 0))[0]
    for dropout_p, kept in ((word / 2**32, True), ((word + 1) / 2**32, False)):
        assert bool(philox.keep_mask(signed(31), dropout_p, (1, 1, 1, 1))) is kept
