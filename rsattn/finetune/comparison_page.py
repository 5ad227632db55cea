"""The results of a comparison as one self-contained HTML page, and its plot."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import drawing
from .comparison import Comparison
from .comparison_sentences import headline, percent, sentences
from .comparison_table import group_rows, pair_rows, result_rows
from .report import setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("comparison.html.j2")
SEED, MEAN = "#9aa7b4", "#0b6e75"


def dot_plot(comparison: Comparison) -> Figure:
    """Plot a row for each model: a dot for each seed or fold, the mean and its interval; thin lines join equal ones."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    results, seeds = comparison.results, list(comparison.test_splits)
    margins = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    figure = Figure(figsize=(5.4, 1.7 + 0.8 * len(results)), layout=margins, facecolor="white")
    axes = figure.add_subplot()
    for index, seed in enumerate(seeds):
        shift = 0.18 * (index + 1) / len(seeds)  # below the mean, at a separate height for each seed
        places = [(100 * r.accuracies[seed], row + shift) for row, r in enumerate(results) if seed in r.accuracies]
        across, down = zip(*places)
        axes.plot(across, down, color=SEED, lw=0.7, alpha=0.6, marker="o", ms=5, mec="white", mew=0.5)
    for row, result in enumerate(results):
        axes.plot([100 * end for end in result.interval], [row, row], color=MEAN, lw=2.5, solid_capstyle="round")
        axes.plot(100 * result.mean, row, "D", color=MEAN, ms=8, mec="white", mew=1)
        name = result.label if len(result.label) <= 44 else f"{result.label[:43]}\u2026"
        drawing.beside(axes, name, (0, row), (0, 15), xycoords=drawing.ROW, size=11, color=drawing.INK)
    drawing.bare(axes)
    axes.set_ylim(len(results) - 0.55, -0.75)
    axes.set_yticks([])
    axes.grid(axis="x", color="#e4e8ec", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("accuracy on test images, %", size=11, color=drawing.FAINT)
    whole = "all images" if comparison.folds else "mean"
    drawing.title(axes, "Accuracy", f"small dots: {comparison.repeats}s; diamond and line: {whole} and 95 % interval")
    return figure


def write_page(path: Path, comparison: Comparison) -> None:
    """Write the self-contained HTML page."""
    from jinja2 import Environment, StrictUndefined

    png = io.BytesIO()
    dot_plot(comparison).savefig(png, format="png", dpi=200)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["setting"] = setting
    path.write_text(
        page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            comparison=comparison,
            headline=headline(comparison),
            sentences=sentences(comparison),
            results=result_rows(comparison),
            pairs=pair_rows(comparison),
            by_group=group_rows(comparison),
            plot=base64.b64encode(png.getvalue()).decode(),
            settings=_settings(comparison),
            percent=percent,
        ),
        encoding="utf-8",
        errors="replace",
    )


def _settings(comparison: Comparison) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The options that are equal for all models, and those that differ, with the value of each model."""
    told = {name: [result.options[name] for result in comparison.results] for name in comparison.results[0].options}
    alike = {name: values[0] for name, values in told.items() if all(value == values[0] for value in values)}
    return alike, {name: values for name, values in told.items() if name not in alike}
