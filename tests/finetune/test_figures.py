"""The figures of the report: their content, read from the axes, and that texts do not overlap."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
from matplotlib.axis import Axis, Tick
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from rsattn.finetune.figures import confusion_matrix, gate_sizes, has_numbers, labels, training_curves

CONFUSION = [[8, 2, 0], [0, 0, 0], [1, 0, 399]]
CLASSES = ("glioma", "no tumour", "pituitary")


def many(number: int) -> list[list[int]]:
    """A hundred images of each class, 90 correct and ten predicted as the next class."""
    return (90 * np.eye(number, dtype=int) + 10 * np.roll(np.eye(number, dtype=int), 1, 1)).tolist()


def history(epochs: int) -> list[dict[str, float]]:
    columns = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    return [
        {"epoch": epoch, **{name: (index + 1) / (epoch + 4) for index, name in enumerate(columns)}}
        for epoch in range(1, epochs + 1)
    ]


def words(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(Text)]


def in_cells(figure: Figure) -> dict[tuple[int, int], list[str]]:
    """The texts in each (row, column)."""
    cells: dict[tuple[int, int], list[str]] = {}
    for text in figure.axes[0].texts:
        if text.xycoords == "data":
            cells.setdefault((text.xy[1], text.xy[0]), []).append(text.get_text())
    return cells


def test_cells_are_shares_of_the_true_class_in_rows() -> None:
    figure = confusion_matrix(CONFUSION, CLASSES)
    shares = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shares[0], [0.8, 0.2, 0.0])
    np.testing.assert_allclose(shares[2], [1 / 400, 0.0, 399 / 400])
    assert in_cells(figure) == {
        (0, 0): ["80", "8"],
        (0, 1): ["20", "2"],
        (2, 0): ["<1", "1"],
        (2, 2): ["100", "399"],
    }
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list(CLASSES)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == list(CLASSES)
    assert figure.axes[0].get_ylabel() == "true class"
    assert figure.axes[0].get_xlabel() == "predicted class"


def test_colors_mean_the_same_in_every_matrix() -> None:
    for confusion in ([[5, 5], [5, 5]], [[1, 0], [0, 1]]):
        assert confusion_matrix(confusion, ("a", "b")).axes[0].images[0].get_clim() == (0, 1)


def test_a_class_without_images_is_gray() -> None:
    image = confusion_matrix(CONFUSION, CLASSES).axes[0].images[0]
    assert image.get_array().mask.tolist() == [[False] * 3, [True] * 3, [False] * 3]
    red, green, blue, opacity = image.to_rgba(image.get_array())[1, 1]
    assert opacity == 1.0
    assert max(red, green, blue) - min(red, green, blue) < 0.05


def test_numbers_give_way_where_there_are_many_classes() -> None:
    def lines(number: int) -> set[tuple[str, ...]]:
        return set(map(tuple, in_cells(confusion_matrix(many(number), [str(i) for i in range(number)])).values()))

    assert lines(12) == {("90", "90"), ("10", "10")}
    assert lines(13) == lines(20) == {("90",), ("10",)}
    assert lines(21) == set()


def test_cells_can_be_read() -> None:
    """The WCAG contrast of text and cell is at least 3 for every percentage."""
    rows = [[percent, 100 - percent, *[0] * 8] for percent in range(1, 51)]
    for ten in (rows[start : start + 10] for start in range(0, 50, 10)):
        figure = confusion_matrix(ten, "abcdefghij")
        image = figure.axes[0].images[0]
        colors = image.to_rgba(image.get_array())
        for text in figure.axes[0].texts:
            if text.xycoords == "data":
                back = luminance(colors[text.xy[1], text.xy[0]][:3])
                front = luminance(text.get_color())
                assert (max(back, front) + 0.05) / (min(back, front) + 0.05) >= 3.0, text.get_text()


def luminance(color: Any) -> float:
    """The relative luminance of WCAG."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_names_are_written_as_they_are_and_long_ones_cut_in_the_middle() -> None:
    figure = confusion_matrix([[1, 0], [0, 1]], ("$a_b$", "carcinoma in situ, left upper lobe"))
    for ticks in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        assert [label.get_text() for label in ticks] == ["$a_b$", "carcinoma i\u2026 upper lobe"]
        assert not any(label.get_parse_math() for label in ticks)
    broken = confusion_matrix([[1, 0], [0, 1]], ("a\nb", "\udcff"))
    assert {"a\\nb", "\\udcff"} <= set(words(broken))


def test_many_classes_have_numbers_at_the_axes() -> None:
    for number, marked in ((31, "1 10 20 30"), (300, "1 25 50 75 100 125 150 175 200 225 250 275 300"), (7000, None)):
        (axes, *_) = confusion_matrix(np.eye(number, dtype=int), [f"bird {i}" for i in range(number)]).axes
        texts = [label.get_text() for label in axes.get_yticklabels()]
        assert texts == [label.get_text() for label in axes.get_xticklabels()]
        assert [int(text) - 1 for text in texts] == axes.get_yticks().tolist()
        assert len(texts) <= 13
        assert marked is None or " ".join(texts) == marked
    assert has_numbers([f"bird {i}" for i in range(31)])
    assert not has_numbers([f"class {i + 1}" for i in range(30)])


def test_a_name_in_another_script_is_replaced_by_its_number(recwarn: pytest.WarningsRecorder) -> None:
    names = ("\u0431\u0435\u0437", "\u9ad3\u819c\u816b", "yes \U0001f642")
    assert labels(names) == ["\u0431\u0435\u0437", "class 2", "class 3"]
    assert has_numbers(names)
    confusion_matrix(many(3), names).savefig(io.BytesIO())
    assert list(recwarn) == []


def test_curves_are_the_history() -> None:
    rows = history(6)
    figure = training_curves(rows, tested_epoch=4)
    assert len(figure.axes) == 2
    for axes, what in zip(figure.axes, ("loss", "accuracy")):
        training, validation, best = axes.get_lines()
        for line, split, label in ((training, "train", "training"), (validation, "val", "validation")):
            assert line.get_label() == label
            assert line.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
            assert line.get_ydata().tolist() == [row[f"{split}_{what}"] for row in rows]
        assert list(best.get_xdata()) == [4, 4]
    assert figure.axes[1].yaxis.get_major_formatter()(0.5) == "50 %"
    legend = figure.axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
    assert {"dashed: epoch 4, which was tested", "validation at epoch 4: 50.0 %"} <= set(words(figure))


def test_a_single_epoch_shows_as_a_dot() -> None:
    figure = training_curves(history(1), tested_epoch=1)
    for axes in figure.axes:
        assert [line.get_marker() for line in axes.get_lines()[:2]] == ["o", "o"]
        low, high = axes.get_xlim()
        assert low < 1 < high
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_epochs_are_whole_numbers() -> None:
    figure = training_curves(history(3), tested_epoch=1)
    assert all(float(tick).is_integer() for axes in figure.axes for tick in axes.get_xticks())


def gates(number: int, start: float = 0.0, name: str = "blocks.{}.attn") -> list[dict[str, Any]]:
    return [{"name": name.format(i), "start": start, "rms": 0.01 * (i + 1)} for i in range(number)]


def test_gates_are_drawn_beside_their_start() -> None:
    figure = gate_sizes(gates(4, start=0.25))
    (axes,) = figure.axes
    became, start = axes.get_lines()
    assert list(became.get_xdata()) == [0, 1, 2, 3]
    assert list(became.get_ydata()) == pytest.approx([0.01, 0.02, 0.03, 0.04])
    assert set(start.get_ydata()) == {0.25}
    assert start.get_linestyle() != "-"
    assert (start.get_xdata()[0], start.get_xdata()[-1]) == axes.get_xlim()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "2", "3"]
    low, high = axes.get_ylim()
    assert low < 0.0 < 0.25 < high
    assert "root mean square over the channels; dashed: at the start" in words(figure)


def test_gates_of_a_file_start_where_they_were() -> None:
    blocks = [{**block, "start": 0.5 * i} for i, block in enumerate(gates(3))]
    assert gate_sizes(blocks).axes[0].get_lines()[1].get_ydata().tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_gates_that_stayed_at_0_are_a_line_that_can_be_seen() -> None:
    figure = gate_sizes([{"name": "attn", "start": 0.0, "rms": 0.0}])
    (axes,) = figure.axes
    assert axes.get_lines()[0].get_ydata().tolist() == [0.0]
    low, high = axes.get_ylim()
    assert low < 0.0 < high


LONG = "a name of many words and letters"
PAGES = {
    "two": lambda: confusion_matrix(many(2), ("no", "yes")),
    "gray": lambda: confusion_matrix(CONFUSION, CLASSES),
    "long_names": lambda: confusion_matrix(many(5), [f"{i} {LONG}" for i in range(5)]),
    "twelve": lambda: confusion_matrix(many(12), [f"class {i:03}" for i in range(12)]),
    "twenty": lambda: confusion_matrix(many(20), [f"class {i}" for i in range(20)]),
    "thirty": lambda: confusion_matrix(many(30), [f"{i} {LONG}" for i in range(30)]),
    "three_hundred": lambda: confusion_matrix(many(300), [f"{i} {LONG}" for i in range(300)]),
    "curves": lambda: training_curves(history(100), tested_epoch=100),
    "one_epoch": lambda: training_curves(history(1), tested_epoch=1),
    "gates": lambda: gate_sizes(gates(12)),
    "one_gate": lambda: gate_sizes(gates(1)),
    "tiny_gates": lambda: gate_sizes([{**block, "rms": 1e-7 * block["rms"]} for block in gates(4)]),
    "many_gates": lambda: gate_sizes(gates(48)),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_no_words_overlap_or_leave_the_page(page: Any) -> None:
    """Slanted names are checked only against the edge of the page: their boxes overlap, their letters do not."""
    figure = page()
    figure.draw_without_rendering()
    unseen = [tick for axis in figure.findobj(Axis) for tick in axis.get_major_ticks() if not in_view(axis, tick)]
    hidden = {id(text) for tick in unseen for text in (tick.label1, tick.label2)}
    texts = [text for text in figure.findobj(Text) if text.get_text() and id(text) not in hidden]
    boxes = [(text.get_text(), text.get_window_extent(), text.get_rotation()) for text in texts if text.get_visible()]
    edge = figure.bbox.expanded(1 + 1e-9, 1 + 1e-9)  # for rounding
    for name, box, _ in boxes:
        assert edge.x0 <= box.x0 < box.x1 <= edge.x1, name
        assert edge.y0 <= box.y0 < box.y1 <= edge.y1, name
    upright = [(name, box) for name, box, rotation in boxes if rotation in (0.0, 90.0)]
    for (one, a), (other, b) in itertools.combinations(upright, 2):
        assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0, (one, other)


def in_view(axis: Axis, tick: Tick) -> bool:
    """Matplotlib has ticks beyond the ends of an axis, which it does not draw."""
    low, high = sorted(axis.get_view_interval())
    return bool(low <= tick.get_loc() <= high)
