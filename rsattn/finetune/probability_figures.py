"""Figures of a report on the probabilities: ROC and precision-recall curves, and the reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..cli import drawing
from .figures import DASHED, LONGEST_NAME, TRAINING, VALIDATION, new_figure, over_a_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinct in lightness too; more curves than these are not drawn (curves.MOST_CURVES).
COLORS = ("#8c2981", "#0b6e75", "#c46210", "#3b5ba5", "#6b8e23", "#a0303a", "#5d656f", "#b08900")
MOST_BANDS = 4  # curves with a band; more would hide one another
TICKS = (0, 0.25, 0.5, 0.75, 1)


def roc_and_pr(found: Mapping[str, Any], classes: Sequence[str]) -> Figure:
    """Plot the ROC curve and the precision-recall curve of each class in `found`, with 95 % bands for up to 4.

    Args:
        found: as from `curves.curves`.
        classes: all names, for labels of names that the font lacks.

    Returns:
        The figure, with the axes of the ROC curves, then those of the precision-recall curves.
    """
    figure = new_figure(9.0, 4.6)
    roc, pr = figure.subplots(1, 2)
    for color, (name, of_class) in zip(COLORS, found.items()):
        label = drawing.label(name, f"class {list(classes).index(name) + 1}", LONGEST_NAME)
        banded = len(found) <= MOST_BANDS
        _draw(roc, of_class["roc"], "fpr", "tpr", label, color, banded)
        _draw(pr, of_class["pr"], "recall", "precision", label, color, banded)
        pr.axhline(of_class["prevalence"], color=color, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    roc.plot([0, 1], [0, 1], **DASHED)
    for axes, across, up in (
        (roc, "1 \u2212 specificity", "sensitivity"),
        (pr, "recall (sensitivity)", "precision"),
    ):
        _square(axes, across, up)
    bands = "; bands: 95 %, pointwise" if len(found) <= MOST_BANDS else ""
    drawing.title(roc, "ROC", f"dashed: chance{bands}")
    drawing.title(pr, "Precision and recall", f"dotted: share of the class{bands}")
    if len(found) > 1:
        roc.legend(frameon=False, labelcolor=drawing.INK, loc="lower right", fontsize=9)
    return figure


def reliability(calibration: Mapping[str, Any]) -> Figure:
    """Plot the accuracy of the predictions of each confidence, with 95 % intervals, and how many images each has.

    Args:
        calibration: as in metrics.json.

    Returns:
        The figure, with the axes of the accuracy, then those of the numbers of images.
    """
    figure = new_figure(5.4, 5.6)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], **DASHED)
    bins, before = calibration["bins"], calibration["before"]["bins"]
    if calibration["temperature"] != 1.0:
        axes.plot(
            [one["confidence"] for one in before],
            [one["accuracy"] for one in before],
            color=TRAINING,
            marker="s",
            markersize=4,
            linewidth=1.2,
            label="without temperature",
        )
    places, shares = [one["confidence"] for one in bins], [one["accuracy"] for one in bins]
    axes.vlines(places, *zip(*(one["interval"] for one in bins)), color=VALIDATION, linewidth=1.4)
    axes.plot(places, shares, color=VALIDATION, marker="o", markersize=6, linewidth=1.8, label="calibrated")
    _square(axes, "", "accuracy")
    counts.bar([sum(one["range"]) / 2 for one in bins], [one["images"] for one in bins], width=0.09, color=VALIDATION)
    over_a_grid(counts)
    counts.set_ylabel("images", size=10, color=drawing.FAINT)
    counts.set_xlabel("probability of the predicted class", size=11, color=drawing.FAINT)
    drawing.title(axes, "Calibration", "dashed: perfect; vertical lines: 95 % intervals")
    if calibration["temperature"] != 1.0:
        axes.legend(frameon=False, labelcolor=drawing.INK, loc="upper left", fontsize=9)
    return figure


def _draw(axes: Axes, of_class: Mapping[str, Any], x: str, y: str, label: str, color: str, banded: bool) -> None:
    axes.plot(of_class[x], of_class[y], color=color, linewidth=1.8, label=label)
    if banded:
        axes.fill_between(of_class[x], of_class["low"], of_class["high"], color=color, alpha=0.15, linewidth=0)


def _square(axes: Axes, across: str, up: str) -> None:
    over_a_grid(axes)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xticks(TICKS)
    axes.set_yticks(TICKS)
    axes.set_xlabel(across, size=11, color=drawing.FAINT)
    axes.set_ylabel(up, size=11, color=drawing.FAINT)
