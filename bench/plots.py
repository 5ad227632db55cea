"""The two plots: time and peak memory against the number of tokens."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rsattn.cli import drawing

from .baselines import EAGER, RSATTN
from .kinds.ranking import WITH_RESIDUAL
from .results import Record, Run, same_cases
from .tables import best_sdpa

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, PYTORCH, NAIVE = "#b5367a", "#3b528b", "#8a8f98"
TIME, MEMORY = "time", "memory"


def write(runs: Sequence[Run], folder: Path, ending: str = "") -> list[Path]:
    """Write the plots that the runs have numbers for, with `ending` at the end of their names; return their paths."""
    written = []
    for name, figure in ((TIME, time(runs)), (MEMORY, memory(runs))):
        if figure is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}{ending}.png"
            figure.savefig(path, dpi=110, metadata={"Software": None})
            written.append(path)
    return written


def time(runs: Sequence[Run]) -> Figure | None:
    """The time of a forward pass, in milliseconds."""
    return _figure(
        runs,
        train=False,
        value=lambda record, name: 1e3 * record.median(name) if name in record.seconds else None,
        title="Time of one attention, forward",
        unit="ms",
        ours=WITH_RESIDUAL,
        words="rsattn: norms, best head and residual included",
    )


def memory(runs: Sequence[Run]) -> Figure | None:
    """The peak memory of forward and backward, in megabytes."""
    return _figure(
        runs,
        train=True,
        value=lambda record, name: record.peaks[name] / 1e6 if name in record.peaks else None,
        title="Peak memory of one attention, forward and backward",
        unit="MB",
        ours=RSATTN,
        words="rsattn: norms and best head included",
    )


def _figure(
    runs: Sequence[Run],
    train: bool,
    value: Callable[[Record, str], float | None],
    title: str,
    unit: str,
    ours: str,
    words: str,
) -> Figure | None:
    cases = [of for of in same_cases(runs, "length") if of[0].case.train == train]
    if len(cases) < 2 or value(cases[0][0], ours) is None:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure((8.6, 5.0), layout="constrained")
    axes = figure.subplots()
    lines: list[tuple[Callable[[Record], str], str, str]] = [
        (lambda record: EAGER, "eager PyTorch, norms included", NAIVE),
        (best_sdpa, "PyTorch's SDPA, without norms", PYTORCH),
        (lambda record: ours, words, OURS),
    ]
    ends = []
    for variant, label, color in lines:
        points = [
            (of[0].case.shape.length, statistics.median(got))
            for of in cases
            if (got := [v for record in of if (v := value(record, variant(record))) is not None])
        ]
        axes.loglog(*zip(*points), color=color, marker="o", markersize=4.5, linewidth=2.2, label=label)
        ends.append((points[-1], color))
    shape = cases[0][0].case.shape
    lengths = [of[0].case.shape.length for of in cases]
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(lengths, labels=[str(n) for n in lengths])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    axes.set_xlabel("tokens N", size=11, color=drawing.FAINT)
    axes.set_ylabel(unit, size=11, color=drawing.FAINT)
    detail = f"B = {shape.batch}, H = {shape.heads}, E = {shape.head_dim}, {cases[0][0].case.dtype}; "
    drawing.title(axes, title, detail + _short(runs[0]))
    _plain(axes)
    for place, color, up in _apart(ends):
        words_at_end = f"{drawing.number(place[1])} {unit}"
        drawing.beside(axes, words_at_end, place, (8, up), xycoords="data", va="center", color=color)
    axes.set_xlim(lengths[0] * 0.85, lengths[-1] * 1.75)
    axes.legend(frameon=False, labelcolor=drawing.INK, loc="upper left")
    return figure


def _apart(ends: Sequence[tuple[tuple[float, float], str]]) -> list[tuple[tuple[float, float], str, float]]:
    """For each end of a line, how many points its label moves up so that close labels do not overlap."""
    moved: list[tuple[tuple[float, float], str, float]] = []
    for place, color in sorted(ends, key=lambda end: end[0][1]):
        close = bool(moved) and place[1] < 1.5 * moved[-1][0][1]
        if close:
            below, color_below, up = moved.pop()
            moved.append((below, color_below, up - 5.0))
        moved.append((place, color, 5.0 if close else 0.0))
    return moved


def _short(run: Run) -> str:
    name = str(run.machine["device"])
    return name if run.machine["kind"] == "cuda" else f"{name}, threads: {run.machine['threads']}"


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=10, labelcolor=drawing.FAINT)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(drawing.FAINT)
