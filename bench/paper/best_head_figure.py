"""The figure of best_head.py: a panel for each quantity, over the blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rsattn.cli.drawing import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEST, EVERY = "#b5367a", "#8a8f98"
# Quantity -> title, unit, upper limit of the axis, and whether 1 is a line to compare with.
PANELS: dict[str, tuple[str, str, float, bool]] = {
    "class_token_most_attended": ("The class token is\nthe most attended token", "share of images", 1.08, False),
    "most_attended_receives_mean": ("Attention received by\nthe most attended token", "queries (of 65)", 68, False),
    "class_value_over_median_patch_value": (
        "Length of the value vector\nof the class token",
        "median patch's value = 1",
        3.2,
        True,
    ),
    "cosine_with_class_value": (
        "Similarity of the head's mean output\nand the class token's value vector",
        "cosine",
        1.08,
        False,
    ),
    "added_over_projected": (
        "Length of the head's output\nas tiled for the residual",
        "projected output = 1",
        3.5,
        True,
    ),
}


def draw(blocks: dict[str, list[dict[str, float]]]) -> Figure:
    """From the numbers of the induced norm's best head and of all heads."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure((8.0, 8.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1), facecolor="white")
    *panels, last = figure.subplots(3, 2).flat
    for axes, (name, (title, unit, top, compare)) in zip(panels, PANELS.items()):
        if compare:
            axes.axhline(1.0, color=INK, linewidth=0.8)
        for choice, style in (("all heads", _style(EVERY, "--")), ("induced", _style(BEST, "-"))):
            axes.plot([of[name] for of in blocks[choice]], **style)
        _finish(axes, title, unit, top)
    _most_frequent(last, blocks["induced"])
    best, every = panels[0].lines[1], panels[0].lines[0]
    names = ["best head (induced norm)", "all heads, counted alike"]
    figure.legend([best, every], names, loc="outside upper left", ncols=2, frameon=False, fontsize=11)
    return figure


def _style(color: str, line: str) -> dict[str, Any]:
    return {"color": color, "linestyle": line, "marker": "o", "markersize": 4.5, "linewidth": 1.6}


def _most_frequent(axes: Axes, best: list[dict[str, float]]) -> None:
    """The share of images that one head wins, with its number."""
    shares = [of["most_frequent_head_share"] for of in best]
    bars = axes.bar(range(len(best)), shares, color=BEST)
    heads = [f"{of['most_frequent_head']:.0f}" for of in best]
    axes.bar_label(bars, heads, size=9, color=INK, padding=1)
    _finish(axes, "How often the most frequent best head\nwins (its number above the bar)", "share of images", 1.15)


def _finish(axes: Axes, title: str, unit: str, top: float) -> None:
    axes.set_title(title, loc="left", size=10.5, color=INK)
    axes.set_ylabel(unit, size=9.5, color=FAINT)
    axes.set_xlabel("block", size=9.5, color=FAINT)
    axes.set_xticks(range(0, 12, 1))
    axes.tick_params(labelsize=9, labelcolor=FAINT, color=FAINT)
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), top)
    axes.spines[["top", "right"]].set_visible(False)
