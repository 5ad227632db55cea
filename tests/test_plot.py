"""`rsattn.plot`: what is drawn, read back from the axes, and that it does not overlap."""

from __future__ import annotations

import itertools
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

import rsattn
from rsattn import BlockRecord, Record
from rsattn.cli.drawing import number, upsampled
from rsattn.plot import attention_overlay, block_labels, head_choices, norm_map, pruning_overlay

NORMS = [[[1.0, 3.0, 2.0], [1.0, 2.0, 5.0]], [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]]  # blocks, samples, heads
BEST = [[1, 2], [0, 0]]


def record() -> Record:
    """Two blocks of three heads, two samples in two forward passes; in the second block all heads tie."""
    blocks = {}
    for index, (norms, best) in enumerate(zip(NORMS, BEST)):
        rows, heads = torch.tensor(norms).split(1), torch.tensor(best).split(1)
        blocks[f"encoder.{index}.attn"] = BlockRecord(list(rows), list(heads))
    return Record(blocks)


def looking(tokens: int, heads: int = 2, samples: int = 1) -> Record:
    """A record of two blocks with the attention received; the best head of sample s is s modulo `heads`."""
    generator = torch.Generator().manual_seed(tokens)
    best = [torch.arange(samples) % heads]
    return Record(
        {
            f"{block}": BlockRecord(
                [torch.rand(samples, heads)], best, [0.5 + torch.rand(samples, heads, tokens, generator=generator)]
            )
            for block in (3, 7)
        }
    )


def drawn(figure: Figure) -> NDArray[np.float64]:
    return np.asarray(figure.axes[0].images[0].get_array())


def words(figure: Figure) -> list[str]:
    """All that is written in the figure, whether on the axes or on their color bar."""
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(lambda thing: hasattr(thing, "get_text")) if text.get_text()]


def dots(figure: Figure) -> dict[tuple[int, int], float]:
    """(block, head) -> the area of the dot there."""
    (scatter,) = figure.axes[0].collections
    places, areas = np.asarray(scatter.get_offsets()), scatter.get_sizes()
    return {(int(block), int(head)): float(area) for (head, block), area in zip(places, areas)}


def labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_norm_map_of_one_sample() -> None:
    figure = norm_map(record(), sample=0)
    assert drawn(figure).tolist() == [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]
    assert dots(figure) == {(0, 1): 95.0, (1, 0): 95.0}
    written = words(figure)
    for expected in ("1.00", "3.00", "4.00", "sample 0; dot: the best head", "least", "most", "head", "block"):
        assert expected in written
    assert "norm of the head's attention, within its block" in written
    assert labels(figure.axes[0]) == ["0", "1"]


def test_norm_map_of_all_samples() -> None:
    """Means are 1, 2.5 and 3.5; heads 1 and 2 won one sample each."""
    figure = norm_map(record())
    assert drawn(figure).tolist() == [[0.0, 0.6, 1.0], [0.0, 0.0, 0.0]]
    assert dots(figure) == {(0, 1): 47.5, (0, 2): 47.5, (1, 0): 95.0}
    assert {"3.50", "mean of 2 samples; dot: how often best"} <= set(words(figure))


def test_norm_map_counts_samples_from_the_end() -> None:
    assert np.array_equal(drawn(norm_map(record(), sample=-1)), drawn(norm_map(record(), sample=1)))
    assert drawn(norm_map(record(), sample=1)).tolist() == [[0.0, 0.25, 1.0], [0.0, 0.0, 0.0]]


def test_norm_map_leaves_a_block_that_is_not_finite_blank() -> None:
    broken = record()
    broken.blocks["encoder.1.attn"].norms[0][0, 1] = torch.nan
    figure = norm_map(broken, sample=0)
    assert np.isnan(drawn(figure)).tolist() == [[False] * 3, [True] * 3]
    assert words(figure).count("nan") == 2


def differing() -> Record:
    """As in Swin: the first block has four windows and one head, the second one window and three heads."""
    first = BlockRecord([torch.tensor([[1.0], [2.0], [3.0], [4.0]])], [torch.zeros(4, dtype=torch.int64)])
    second = BlockRecord([torch.tensor([[5.0, 9.0, 7.0]])], [torch.tensor([1])])
    return Record({"a": first, "b": second})


def test_blocks_that_differ_in_samples_and_heads() -> None:
    for figure, second in ((norm_map(differing()), [0.0, 1.0, 0.5]), (head_choices(differing()), [0.0, 1.0, 0.0])):
        cells = drawn(figure)
        assert cells[0, 0] == (0.0 if second[2] else 1.0)  # a single norm has no range
        assert np.isnan(cells[0, 1:]).all()
        assert cells[1].tolist() == second
    assert dots(norm_map(differing())) == {(0, 0): 95.0, (1, 1): 95.0}
    assert {"2.50", "5.00", "9.00", "mean of 1 to 4 samples; dot: how often best"} <= set(words(norm_map(differing())))
    assert {"100", "percent of 1 to 4 samples, block by block"} <= set(words(head_choices(differing())))
    with pytest.raises(ValueError, match="the blocks have 1 to 4 samples, because some attend in windows or run"):
        norm_map(differing(), sample=0)


def test_a_block_that_did_not_run_is_named() -> None:
    for draw in (norm_map, head_choices):
        with pytest.raises(RuntimeError, match="nothing was recorded of 'c', which did not run"):
            draw(Record({**differing().blocks, "c": BlockRecord()}))


def test_head_choices_are_the_shares_of_the_samples() -> None:
    best = torch.tensor([[0] * 6 + [2] * 2, [1] * 8])
    figure = head_choices(
        Record({"a": BlockRecord([torch.ones(8, 3)], [best[0]]), "b": BlockRecord([torch.ones(8, 3)], [best[1]])})
    )
    assert drawn(figure).tolist() == [[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]]
    cells = {text.get_position(): text.get_text() for text in figure.axes[0].texts if text.get_text().isdigit()}
    assert cells == {(0, 0): "75", (2, 0): "25", (1, 1): "100"}
    assert figure.axes[0].images[0].get_clim() == (0, 1)
    assert {"percent of 8 samples, block by block", "share of the samples", "0 %", "100 %"} <= set(words(figure))
    assert labels(figure.axes[0]) == ["a", "b"]


def test_head_choices_say_when_a_share_is_not_quite_nothing() -> None:
    best = torch.zeros(300, dtype=torch.int64)
    best[0] = 1
    assert "<1" in words(head_choices(Record({"a": BlockRecord([torch.ones(300, 2)], [best])})))


def test_shares_can_be_read_on_their_cells() -> None:
    """Every number has at least three times its cell's luminance, or a third of it (WCAG's contrast, for any share)."""
    for winner in range(1, 100):
        best = torch.tensor([0] * winner + [1] * (100 - winner))
        figure = head_choices(Record({"a": BlockRecord([torch.ones(100, 2)], [best])}))
        axes = figure.axes[0]
        for text in (text for text in axes.texts if text.get_text().isdigit()):
            head = int(text.get_position()[0])
            back = luminance(axes.images[0].to_rgba(drawn(figure)[0, head]))
            front = luminance(text.get_color())
            assert (max(back, front) + 0.05) / (min(back, front) + 0.05) >= 3.0, text.get_text()


def luminance(color: Any) -> float:
    """WCAG's relative luminance."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_overlay_is_the_best_heads_attention_over_the_gray_image() -> None:
    """Patch by patch: an image of the grid's own size needs no smoothing, so every pixel is known."""
    seen = looking(tokens=17, samples=2)
    image = torch.rand(3, 4, 4)
    figure = attention_overlay(image, seen, block=0, sample=1)
    patches = seen.blocks["3"].received[0][1, 1, 1:].double().reshape(4, 4).numpy()
    place = (patches - patches.min()) / (patches.max() - patches.min())
    strength = 0.15 + 0.65 * place[..., None]
    gray = np.tensordot(image.double().numpy(), (0.2126, 0.7152, 0.0722), axes=(0, 0))[..., None]
    colors = colormaps["inferno"](place)[..., :3]
    np.testing.assert_allclose(drawn(figure), gray * (1 - strength) + colors * strength, atol=1e-6)
    share = seen.blocks["3"].received[0][1, 1]
    written = set(words(figure))
    assert "Block 3, head 1 (the best)" in written
    assert f"4\u00d74 patches; {float(share[0] / share.sum()):.1%} goes to the first token" in written
    assert {"attention received (1 = equal)", number(patches.min()), number(patches.max())} <= written


def test_overlay_of_another_head_says_which_is_the_best() -> None:
    seen = looking(tokens=16)
    figure = attention_overlay(torch.zeros(4, 4), seen, head=1)
    assert "Block 7, head 1 (the best is 0)" in words(figure)
    assert "4\u00d74 patches" in words(figure)
    received = seen.blocks["7"].received[0][0, 1]
    assert bright(figure) == divmod(int(received.argmax()), 4)
    assert np.array_equal(drawn(figure), drawn(attention_overlay(torch.zeros(4, 4), seen, block=1, head=1)))


def bright(figure: Figure) -> tuple[int, ...]:
    """The row and column of the pixel with most color, over a black image."""
    pixels = drawn(figure)
    return tuple(int(i) for i in np.unravel_index(pixels.sum(-1).argmax(), pixels.shape[:2]))


@pytest.mark.parametrize(
    ("tokens", "given", "shape", "prefix"),
    [
        (16, {}, (4, 4), 0),
        (21, {}, (4, 4), 5),
        (25, {"prefix_tokens": 9}, (4, 4), 9),
        (29, {"grid": (4, 7)}, (4, 7), 1),
        (29, {"grid": (7, 4)}, (7, 4), 1),
        (33, {"grid": (4, 7), "prefix_tokens": 5}, (4, 7), 5),
    ],
    ids=str,
)
def test_overlay_finds_the_patches(tokens: int, given: dict[str, Any], shape: tuple[int, int], prefix: int) -> None:
    """The patch that receives most is where it is in the image: rows first, after the prefix."""
    for place in (prefix, prefix + shape[1] + 2, tokens - 1):
        received = torch.ones(1, 1, tokens)
        received[0, 0, :prefix] = 9.0
        received[0, 0, place] = 3.0
        seen = Record({"": BlockRecord([torch.ones(1, 1)], [torch.tensor([0])], [received])})
        figure = attention_overlay(torch.zeros(*shape), seen, **given)
        assert bright(figure) == divmod(place - prefix, shape[1])
        assert "3.00" in words(figure)


def test_overlay_reads_samples_across_forward_passes_of_other_lengths() -> None:
    received = [torch.ones(2, 1, 4), torch.ones(1, 1, 9)]
    received[1][0, 0, 5] = 2.0
    seen = Record(
        {
            "a": BlockRecord(
                [torch.ones(2, 1), torch.ones(1, 1)], [torch.zeros(2).long(), torch.zeros(1).long()], received
            )
        }
    )
    for sample in (2, -1):
        assert bright(attention_overlay(torch.zeros(3, 3), seen, sample=sample)) == (1, 2)


PICTURE = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
PICTURE[:, 0, 0], PICTURE[:, 0, 1] = 0.0, 1.0  # of the whole range, so that stretching gives it back
BYTES = (255 * PICTURE).round().byte()


@pytest.mark.parametrize(
    ("image", "same"),
    [
        (PICTURE.permute(1, 2, 0), PICTURE),
        (PICTURE.numpy(), PICTURE),
        (PICTURE.permute(1, 2, 0).numpy(), PICTURE),
        ((PICTURE - 0.5) / 0.25, PICTURE),
        (1000 * PICTURE.double().numpy(), PICTURE),
        (PICTURE.bfloat16(), PICTURE.bfloat16().float()),
        (PICTURE.clone().requires_grad_(), PICTURE),
        (BYTES, BYTES / 255),
        (BYTES.numpy(), BYTES / 255),
        (BYTES.permute(1, 2, 0).numpy()[::-1][::-1], BYTES / 255),
        (65535 - BYTES.numpy().astype(np.uint16), 1 - BYTES / 255),
        (0.5 * PICTURE, 0.5 * PICTURE),
        (BYTES // 2, (BYTES // 2) / 255),
        (PICTURE[0], PICTURE[:1].expand(3, 4, 4)),
        (PICTURE[:1], PICTURE[:1].expand(3, 4, 4)),
        (torch.full((4, 4), 7.0), torch.zeros(3, 4, 4)),
    ],
    ids=lambda value: f"{tuple(value.shape)}-{value.dtype}",
)
def test_overlay_takes_pictures_of_many_kinds(image: Tensor | NDArray[Any], same: Tensor) -> None:
    seen = looking(tokens=16)
    expected = drawn(attention_overlay(same, seen))
    np.testing.assert_allclose(drawn(attention_overlay(image, seen)), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("error", "says", "given"),
    [
        (ValueError, r"image must be .*got \(1, 3, 4, 4\).*images\[0\]", {"image": torch.zeros(1, 3, 4, 4)}),
        (ValueError, r"got \(4, 4, 4\)", {"image": torch.zeros(4, 4, 4)}),
        (ValueError, r"got \(3, 0, 4\)", {"image": torch.zeros(3, 0, 4)}),
        (ValueError, "not finite", {"image": torch.full((4, 4), torch.nan)}),
        (ValueError, r"4 x 7, not square: give grid=\(rows, columns\)", {"image": torch.zeros(4, 7)}),
        (ValueError, "17 tokens; without 3 prefix tokens, 14 remain, which are not a square", {"prefix_tokens": 3}),
        (ValueError, "17 tokens; without 18 prefix", {"prefix_tokens": 18}),
        (ValueError, "17 tokens, which are not 4 x 5 patches after prefix tokens", {"grid": (4, 5)}),
        (ValueError, "17 tokens, which are not 4 x 4 patches after 2 prefix", {"grid": (4, 4), "prefix_tokens": 2}),
        (ValueError, "17 tokens, which are not 0 x 4 patches", {"grid": (0, 4)}),
        (ValueError, "17 tokens, which are not 0 x 0 patches after 17", {"prefix_tokens": 17}),
        (IndexError, "block=2, but the record has blocks 0 to 1", {"block": 2}),
        (IndexError, "sample=-2, but the record has samples 0 to 0", {"sample": -2}),
        (IndexError, "head=2, but the block has heads 0 to 1", {"head": 2}),
        (RuntimeError, r"no attention received: .*record\(model, received=True\)", {"record": record()}),
        (
            TypeError,
            "image must be a tensor or an array of numbers; got 'scan.png'. Open a file",
            {"image": "scan.png"},
        ),
        (TypeError, "image must be a tensor or an array of numbers; got None", {"image": None}),
        (ValueError, r"got \(2,\)", {"image": [1, 2]}),
        (TypeError, "block must be an integer; got 1.0", {"block": 1.0}),
        (TypeError, r"sample must be an integer; got \[0\]", {"sample": [0]}),
        (TypeError, "head must be an integer; got 'best'", {"head": "best"}),
        (TypeError, "prefix_tokens must be an integer; got 0.5", {"prefix_tokens": 0.5}),
        (TypeError, r"grid must be \(rows, columns\) of the patches; got 4", {"grid": 4}),
        (TypeError, "rows of grid must be an integer; got 4.0", {"grid": (4.0, 4.0)}),
    ],
    ids=lambda value: None if isinstance(value, type | dict) else str(value),
)
def test_overlay_refuses_what_it_cannot_place(error: type[Exception], says: str, given: dict[str, Any]) -> None:
    with pytest.raises(error, match=says):
        attention_overlay(**{"image": torch.zeros(4, 4), "record": looking(tokens=17), **given})


def faded(figure: Figure, image: Tensor) -> NDArray[np.bool_]:
    """Which pixels are not those of the image (3, H, W)."""
    return ~np.isclose(drawn(figure), image.permute(1, 2, 0).numpy(), atol=1e-6).all(-1)


def test_pruning_fades_the_patches_that_receive_least() -> None:
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    received = torch.tensor([50.0, *torch.arange(16.0).add(1.0).flip(0)])  # a class token, and less and less
    figure = pruning_overlay(image, received, keep=0.25)
    assert faded(figure, image).tolist() == [[False] * 4, [True] * 4, [True] * 4, [True] * 4]
    # 16 + 15 + 14 + 13 of 136
    assert {"4 of 16 patches remain", "they receive 43% of the attention to patches"} <= set(words(figure))
    gray = np.tensordot(image.double().numpy(), (0.2126, 0.7152, 0.0722), axes=(0, 0))[..., None]
    np.testing.assert_allclose(drawn(figure)[1:], np.broadcast_to(0.4 + 0.2 * gray[1:], (3, 4, 3)), atol=1e-6)


@pytest.mark.parametrize(("keep", "remain"), [(1.0, 16), (0.5, 8), (0.1, 2), (1e-9, 1), (np.float32(0.25), 4), (1, 16)])
def test_pruning_keeps_a_share_of_the_patches_and_at_least_one(keep: float, remain: int) -> None:
    """Of equal patches the first remain."""
    image = torch.rand(3, 8, 8)
    figure = pruning_overlay(image, torch.ones(17), keep)
    assert f"{remain} of 16 patches remain" in words(figure)
    patches = faded(figure, image)[::2, ::2].ravel()
    assert patches.tolist() == [False] * remain + [True] * (16 - remain)


def test_pruning_finds_patches_that_do_not_divide_the_image() -> None:
    """Row i of 7 belongs to row i * 3 // 7 of 3."""
    image = torch.rand(3, 7, 10)
    received = torch.tensor([9.0, 9.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0])  # two prefix tokens, then 3 x 2
    figure = pruning_overlay(image, received, keep=1 / 6, prefix_tokens=2, grid=(3, 2))
    expected = np.ones((7, 10), dtype=bool)
    expected[3:5, 5:] = False
    assert np.array_equal(faded(figure, image), expected)


def test_pruning_where_only_the_class_token_receives_attention() -> None:
    figure = pruning_overlay(torch.rand(3, 8, 8), torch.tensor([17.0] + [0.0] * 16))
    assert {"8 of 16 patches remain", "no patch receives attention"} <= set(words(figure))


def test_pruning_takes_a_gray_image_and_a_received_with_a_gradient() -> None:
    image = torch.rand(4, 4)
    figure = pruning_overlay(image, torch.rand(16, requires_grad=True).bfloat16())
    assert faded(figure, image.expand(3, 4, 4)).sum() == 8


@pytest.mark.parametrize(
    ("error", "says", "given"),
    [
        (
            ValueError,
            r"\(tokens,\), for one image; got \(2, 17\). Average over the heads",
            {"received": torch.ones(2, 17)},
        ),
        (ValueError, "got values that are not finite(?!.*Average)", {"received": torch.full((17,), torch.nan)}),
        (TypeError, "received must be a torch tensor; got list", {"received": [1.0] * 99}),
        (ValueError, "keep=0 is no share of the patches; use a number above 0 and at most 1", {"keep": 0}),
        (ValueError, "keep=50 is no share", {"keep": 50}),
        (ValueError, "keep=nan is no share", {"keep": float("nan")}),
        (TypeError, "keep must be a number above 0 and at most 1; got 'half'", {"keep": "half"}),
        (ValueError, "there are 17 tokens, which are not 4 x 5 patches", {"grid": (4, 5)}),
        (TypeError, "prefix_tokens must be an integer", {"prefix_tokens": 0.5}),
        (TypeError, "axes must be one of matplotlib's Axes; got 3", {"axes": 3}),
        (ValueError, "image must be", {"image": torch.zeros(2)}),
    ],
    ids=lambda value: None if isinstance(value, type | dict) else str(value),
)
def test_pruning_refuses_what_it_cannot_draw(error: type[Exception], says: str, given: dict[str, Any]) -> None:
    with pytest.raises(error, match=says):
        pruning_overlay(**{"image": torch.zeros(4, 4), "received": torch.ones(17), **given})


def test_norm_map_refuses_a_sample_that_is_not_there() -> None:
    with pytest.raises(IndexError, match="sample=2, but the record has samples 0 to 1"):
        norm_map(record(), sample=2)


@pytest.mark.parametrize("draw", [norm_map, head_choices], ids=lambda draw: draw.__name__)
def test_an_empty_record(draw: Any) -> None:
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        draw(Record({"a": BlockRecord()}))


EVERY = {
    "norm_map": lambda axes=None: norm_map(record(), axes=axes),
    "head_choices": lambda axes=None: head_choices(record(), axes=axes),
    "attention_overlay": lambda axes=None: attention_overlay(torch.zeros(4, 4), looking(tokens=17), axes=axes),
    "pruning_overlay": lambda axes=None: pruning_overlay(torch.zeros(4, 4), torch.ones(17), axes=axes),
}


@pytest.mark.parametrize(
    "draw",
    [norm_map, head_choices, partial(attention_overlay, torch.zeros(4, 4))],
    ids=["norm_map", "head_choices", "attention_overlay"],
)
def test_what_is_no_record_and_what_are_no_axes_are_named(draw: Any) -> None:
    model = rsattn.ResidualSelfAttention(8, 2)
    for wrong, says in ((model, "got Resid"), (rsattn.record(model), "got <contextlib"), (None, "got None")):
        with pytest.raises(TypeError, match=rf"record must be what `with rsattn\.record.* collected; {says}"):
            draw(wrong)
    several = Figure().subplots(1, 2)
    with pytest.raises(
        TypeError, match=r"axes must be one of matplotlib's Axes; got ndarray \(2,\)\. Of several, pass one"
    ):
        draw(looking(tokens=17), axes=several)


@pytest.mark.parametrize("part", [False, True], ids=["figure", "part_of_a_figure"])
@pytest.mark.parametrize("draw", EVERY.values(), ids=EVERY)
def test_given_axes_are_drawn_on_and_their_figure_returned(draw: Any, part: bool) -> None:
    mine = Figure(layout="constrained")
    left, right = (mine.subfigures(1, 1) if part else mine).subplots(1, 2)
    assert draw(axes=right) is mine
    assert len(right.images) == 1
    assert not left.images
    assert mine.axes[:2] == [left, right]


def many(blocks: int, heads: int, samples: int) -> Record:
    generator = torch.Generator().manual_seed(0)
    norms = 1.0 + 200.0 * torch.rand(blocks, samples, heads, generator=generator)
    return Record({f"blocks.{i}.attn": BlockRecord([norm], [norm.argmax(1)]) for i, norm in enumerate(norms)})


PAGES = {
    "norms": lambda: norm_map(many(12, 12, 64)),
    "norms_of_one_head": lambda: norm_map(many(1, 1, 1)),
    "norms_of_many_heads": lambda: norm_map(many(24, 16, 9)),
    "choices": lambda: head_choices(many(12, 12, 64)),
    "choices_of_one_head": lambda: head_choices(many(1, 1, 1)),
    "choices_of_many_heads": lambda: head_choices(many(24, 16, 9)),
    "square": lambda: attention_overlay(torch.zeros(224, 224), looking(tokens=197)),
    "wide": lambda: attention_overlay(torch.zeros(60, 100), looking(tokens=65), grid=(6, 10), head=1),
    "small": lambda: attention_overlay(
        torch.zeros(9, 9), looking(tokens=17), axes=Figure((4.0, 4.0)).add_axes((0.05, 0.2, 0.65, 0.65))
    ),
    "tall": lambda: attention_overlay(torch.zeros(100, 60), looking(tokens=65), grid=(10, 6), head=1),
    "pruned": lambda: pruning_overlay(torch.zeros(224, 224), torch.ones(197)),
    "pruned_tall": lambda: pruning_overlay(torch.zeros(100, 60), torch.ones(61), grid=(10, 6)),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_no_words_overlap_or_leave_the_page(page: Any) -> None:
    figure = page()
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(lambda thing: hasattr(thing, "get_text")) if text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_visible()]
    edge = figure.bbox
    for name, box in boxes:
        assert edge.x0 <= box.x0 < box.x1 <= edge.x1, name
        assert edge.y0 <= box.y0 < box.y1 <= edge.y1, name
    boxes += [("the color bar", bar.get_window_extent()) for bar in figure.axes[0].child_axes]
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0, (one, other)


def test_the_blocks_are_called_what_tells_them_apart() -> None:
    assert block_labels(["vit.blocks.6.attn", "vit.blocks.7.attn"]) == ["6", "7"]
    assert block_labels(["layers.0.blocks.1.a", "layers.1.blocks.0.a"]) == ["0.1", "1.0"]
    assert block_labels(["stem.attn", "blocks.0.attn"]) == ["stem.attn", "blocks.0.attn"]
    assert block_labels(["blocks.3.attn"]) == ["blocks.3.attn"]
    assert block_labels([""]) == ["0"]


def test_upsampling_keeps_place_and_range() -> None:
    patches = torch.zeros(4, 6)
    patches[1, 2] = 3.0
    smooth = upsampled(patches, 64, 96)
    assert smooth.shape == (64, 96)
    assert smooth.min() == 0.0
    assert smooth.max() == pytest.approx(3.0, abs=0.1)
    row, column = np.unravel_index(smooth.argmax(), smooth.shape)
    assert (row // 16, column // 16) == (1, 2)


def test_three_digits() -> None:
    assert [number(value) for value in (1.1, 0.012, 197.0, 7.456, 4096.4)] == ["1.10", "0.0120", "197", "7.46", "4096"]
    assert [number(value) for value in (0.0, 0.00173, 0.000244, 9.99e-6)] == ["0.00", "0.00173", "2.44e-4", "9.99e-6"]


def test_is_imported_when_asked_for_and_brings_no_pyplot() -> None:
    code = """if True:
        import sys
        import rsattn
        assert not {"rsattn.plot", "rsattn.cli.drawing", "matplotlib"} & set(sys.modules)
        import torch
        record = rsattn.Record({"a": rsattn.BlockRecord([torch.rand(1, 3)], [torch.tensor([0])])})
        rsattn.plot.norm_map(record)
        assert "matplotlib.figure" in sys.modules
        assert "matplotlib.pyplot" not in sys.modules
        import rsattn.plot
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not hasattr(rsattn, "plots")


@pytest.mark.parametrize("draw", EVERY.values(), ids=EVERY)
def test_without_matplotlib(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"rsattn\.plot needs matplotlib: pip install 'rsattn\[demo\]'"):
        draw()
