"""Figures of a report: the confusion matrix, the training curves, and the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..cli import drawing
from ..plot import block_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_NAME = 24
MOST_WITH_COUNTS, MOST_WITH_NUMBERS = 12, 20  # classes, so that a cell has room for two numbers, and for one
MOST_NAMED = 30  # classes, so that names at the axes can be read
STEPS = (10, 20, 25, 50, 100, 200, 250, 500)  # between the classes whose number is at the axes
MOST_MARKED = 12
CELL, BORDER, LARGEST, LETTER = 0.85, 1.5, 11.0, 0.09  # inches: a cell, the labels and titles, the figure, a letter
NO_IMAGES = "#e3e5e8"
MOST_BLOCKS_NAMED = 24
TRAINING, VALIDATION = "#5d656f", "#b5367a"  # gray, and a color of `drawing.MAP_COLORS`
DASHED: dict[str, Any] = {"color": drawing.INK, "linewidth": 1.0, "linestyle": (0, (3, 3)), "zorder": 0}


def confusion_matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix.

    Colors and large numbers are percentages of the true class; small numbers count images. With more than 12 classes,
    the cells have no small numbers; with more than 20, no numbers; with more than 30, some classes have their number at
    the axes, counted from 1, instead of their name. Rows of classes without images are gray.

    Args:
        confusion: (C, C) numbers of images; rows are true classes, columns predicted ones.
        classes: C names, which are drawn as `labels` returns them.

    Returns:
        The figure. The first image of its axes holds the shares (C, C), from 0 to 1, masked in rows without images.
    """
    from matplotlib import colormaps

    counts, number = np.asarray(confusion), len(classes)
    totals = counts.sum(1, keepdims=True)
    shares = np.ma.masked_array(counts / np.maximum(totals, 1), np.broadcast_to(totals == 0, counts.shape))
    side = min(BORDER + CELL * max(number, 3), LARGEST)
    figure = new_figure(side + 1.6, side + 0.8)
    axes = figure.subplots()
    drawing.bare(axes)
    colors = colormaps[drawing.MAP_COLORS].with_extremes(bad=NO_IMAGES)
    image = axes.imshow(shares, cmap=colors, vmin=0, vmax=1)
    if number > MOST_NAMED:
        _mark_numbers(axes, number)
    else:
        _name_cells(axes, labels(classes))
    axes.set_xlabel("predicted class", size=11, color=drawing.FAINT)
    axes.set_ylabel("true class", size=11, color=drawing.FAINT)
    if number <= MOST_WITH_NUMBERS:
        _write_numbers(axes, counts, shares)
    drawing.title(axes, "Confusion matrix", "percent of the test images of each true class (row)")
    drawing.scale_beside(axes, image, 0.2, "share of the true class", {0: "0 %", 0.5: "50 %", 1: "100 %"})
    return figure


def labels(classes: Sequence[str]) -> list[str]:
    """The names of classes in figures: shortened where long, and the number, from 1, where the font lacks a letter."""
    return [drawing.label(name, f"class {number}", LONGEST_NAME) for number, name in enumerate(classes, 1)]


def has_numbers(classes: Sequence[str]) -> bool:
    """Whether the confusion matrix has the numbers of classes instead of names."""
    return len(classes) > MOST_NAMED or any(
        label == f"class {number}" != name for number, (label, name) in enumerate(zip(labels(classes), classes), 1)
    )


def _name_cells(axes: Axes, names: Sequence[str]) -> None:
    number = len(names)
    size = 10 if number <= MOST_WITH_NUMBERS else 8
    fits = max(map(len, names)) * LETTER <= min(CELL, (LARGEST - BORDER) / number)
    slant: dict[str, Any] = {} if fits else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(number), labels=names, parse_math=False, size=size, **slant)
    axes.set_yticks(range(number), labels=names, parse_math=False, size=size)
    axes.set_xticks(np.arange(number + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(number + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)


def _mark_numbers(axes: Axes, number: int) -> None:
    """Without lines between cells, which would cover cells this small."""
    step = next((step for step in STEPS if number / step <= MOST_MARKED), number // MOST_MARKED)
    marked = [1, *range(step, number + 1, step)]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([index - 1 for index in marked], labels=map(str, marked), size=10)


def training_curves(history: Sequence[Mapping[str, float]], tested_epoch: int) -> Figure:
    """Plot loss and accuracy of training and validation over the epochs, and mark the tested epoch.

    Args:
        history: a row per epoch, with at least epoch, train_loss, train_accuracy, val_loss and val_accuracy.
        tested_epoch: counted from 1.

    Returns:
        The figure, with the axes of the loss, then those of the accuracy. Each has the lines of training, of
        validation, and of the tested epoch.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = new_figure(9.0, 3.9)
    losses, accuracies = figure.subplots(1, 2)
    for axes, what in ((losses, "loss"), (accuracies, "accuracy")):
        _draw_curves(axes, history, what, tested_epoch)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    accuracies.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    drawing.title(losses, "Loss", f"dashed: epoch {tested_epoch}, which was tested")
    tested = {int(row["epoch"]): row["val_accuracy"] for row in history}[tested_epoch]
    drawing.title(accuracies, "Accuracy", f"validation at epoch {tested_epoch}: {100 * tested:.1f} %")
    accuracies.legend(frameon=False, labelcolor=drawing.INK, loc="best")
    return figure


def _draw_curves(axes: Axes, history: Sequence[Mapping[str, float]], what: str, tested_epoch: int) -> None:
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) <= 30 else ""  # a single epoch shows only as a marker
    for split, name, color in (("train", "training", TRAINING), ("val", "validation", VALIDATION)):
        values = [row[f"{split}_{what}"] for row in history]
        axes.plot(epochs, values, color=color, marker=marker, markersize=3.5, linewidth=1.8, label=name)
    axes.axvline(tested_epoch, **DASHED)
    axes.set_xlabel("epoch", size=11, color=drawing.FAINT)
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    over_a_grid(axes)


def gate_sizes(blocks: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the root mean square of each block's gate, after training and at the start.

    Args:
        blocks: in the order of the model, each with at least name, rms and start.

    Returns:
        The figure, with the line after training, then the dashed line of the start.
    """
    number = len(blocks)
    figure = new_figure(min(max(6.0, 2.0 + 0.4 * number), LARGEST), 3.4)
    axes = figure.subplots()
    places, sizes, starts = range(number), [block["rms"] for block in blocks], [block["start"] for block in blocks]
    axes.plot(places, sizes, color=VALIDATION, marker="o", markersize=5, linewidth=1.8, zorder=3)
    # From edge to edge, so that a single block shows too, and above the grid, which has a line at 0.
    axes.plot([-0.5, *places, number - 0.5], [starts[0], *starts, starts[-1]], **DASHED | {"zorder": 2})
    step = -(-number // MOST_BLOCKS_NAMED)
    names = block_labels([block["name"] for block in blocks])
    axes.set_xticks(
        places[::step], labels=[drawing.label(name, name, LONGEST_NAME) for name in names[::step]], parse_math=False
    )
    axes.set_xlim(-0.5, number - 0.5)
    most = max(*sizes, *starts) or 1.0
    axes.set_ylim(-0.06 * most, 1.06 * most)
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.set_xlabel("block", size=11, color=drawing.FAINT)
    over_a_grid(axes)
    drawing.title(axes, "Gates after training", "root mean square over the channels; dashed: at the start")
    return figure


def over_a_grid(axes: Axes) -> None:
    """Horizontal lines, and no frame but the bottom."""
    axes.grid(axis="y", color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=10, labelcolor=drawing.FAINT)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(drawing.FAINT)


def _write_numbers(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for row, column in zip(*counts.nonzero()):
        share = shares[row, column]
        style: dict[str, Any] = {"xycoords": "data", "ha": "center", "va": "center"}
        style["color"] = "white" if share > 0.45 else drawing.INK
        percent = "<1" if share < 0.005 else f"{100 * share:.0f}"
        if len(counts) <= MOST_WITH_COUNTS:
            drawing.beside(axes, percent, (column, row), (0, 5), size=12, **style)
            drawing.beside(axes, f"{counts[row, column]}", (column, row), (0, -9), size=8, **style)
        else:
            drawing.beside(axes, percent, (column, row), (0, 0), size=8, **style)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height are in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure((width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
