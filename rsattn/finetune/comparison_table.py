"""The results of a comparison as tables, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .auroc_intervals import Score
from .comparison import Comparison
from .comparison_sentences import p_value, points, signed
from .statistics import Difference

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

INTERVAL, OF_AUROC = "95 % interval", "95 % interval of AUROC"
ACCURACY_DIFFERENCE, AUROC_DIFFERENCE = "difference in accuracy", "difference in AUROC"
Rows = list[dict[str, str]]
"""The rows of a table: the text of each column. All rows have the same columns in the same order."""


def table(comparison: Comparison) -> Group:
    """The tables for the terminal: the results of each model, and its differences from the baseline."""
    from rich.console import Group

    results = {name: name for name in ("model", "accuracy, %", INTERVAL, "AUROC", "F1")}
    drawn = [_drawn(result_rows(comparison), results)]
    if pairs := pair_rows(comparison):
        baseline = comparison.pairs[0].baseline
        heads = {name: name for name in pairs[0] if name not in (AUROC_DIFFERENCE, OF_AUROC)}
        heads |= {"model": f"accuracy compared with {baseline}", ACCURACY_DIFFERENCE: "difference"}
        drawn.append(_drawn(pairs, heads))
        heads = {"model": f"AUROC compared with {baseline}", AUROC_DIFFERENCE: "difference", OF_AUROC: INTERVAL}
        drawn.append(_drawn(pairs, heads))
    return Group(*drawn)


def _drawn(rows: Rows, headings: Mapping[str, str]) -> Table:
    """A table of the columns that `headings` name; long names of models are folded."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name, heading in headings.items():
        if name == "model":
            drawn.add_column(Text(heading), overflow="fold")
        else:
            drawn.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(row[name]) for name in headings))
    return drawn


def result_rows(comparison: Comparison) -> Rows:
    """The scores of each model."""
    rows = []
    for result in comparison.results:
        accuracy = f"{100 * result.mean:.1f}"
        if result.sd is not None:
            accuracy += f" \u00b1 {100 * result.sd:.1f}"
        rows.append(
            {
                "model": result.label,
                "accuracy, %": accuracy,
                INTERVAL: _ends(result.interval, _percent),
                **_auroc(result.auroc, _three),
                "precision": _three(result.precision),
                "recall": _three(result.recall),
                "F1": _three(result.f1),
            }
        )
    return rows


def pair_rows(comparison: Comparison) -> Rows:
    """The differences of each model from the baseline; p-values are adjusted where there are several."""
    several = len(comparison.pairs) > 1
    return [
        {"model": pair.label, **_differences(pair.difference, pair.adjusted_p, pair.auroc, several)}
        for pair in comparison.pairs
    ]


def group_rows(comparison: Comparison) -> tuple[Rows, Rows]:
    """The scores for groups, such as patients, and the differences from the baseline; empty without such groups."""
    results = [
        {
            "model": result.label,
            "groups": str(by.groups),
            "accuracy, %": _percent(by.accuracy.mean),
            INTERVAL: _ends(by.accuracy.interval, _percent),
            **_auroc(by.auroc, _three),
        }
        for result in comparison.results
        if (by := result.by_group)
    ]
    several = len(comparison.pairs) > 1
    pairs = [
        {"model": pair.label, **_differences(both.accuracy, both.adjusted_p, both.auroc, several)}
        for pair in comparison.pairs
        if (both := pair.by_group)
    ]
    return results, pairs


def _differences(accuracy: Difference, adjusted_p: float, auroc: Score | None, several: bool) -> dict[str, str]:
    """The columns of a model after its name; `several` is whether other models are compared too."""
    return {
        ACCURACY_DIFFERENCE: points(accuracy.mean),
        INTERVAL: _ends(accuracy.interval, points),
        "p": _p(accuracy.p),
        **({"p, adjusted": _p(adjusted_p)} if several else {}),
        **_auroc(auroc, signed, AUROC_DIFFERENCE),
    }


def _auroc(score: Score | None, text: Callable[[float], str], name: str = "AUROC") -> dict[str, str]:
    if score is None:
        return {name: "", OF_AUROC: ""}
    return {name: text(score.mean), OF_AUROC: _ends(score.interval, text)}


def _ends(interval: Sequence[float], text: Callable[[float], str]) -> str:
    return " to ".join(map(text, interval))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _three(score: float) -> str:
    return f"{score:.3f}"


def _p(p: float) -> str:
    return p_value(p).removeprefix("= ")
