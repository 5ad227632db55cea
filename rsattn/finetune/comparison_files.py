"""The results of a comparison for other programs: comparison.csv with plain numbers, and comparison.tex for a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ..cli.command import finished_file, shown, writing
from .auroc_intervals import Score
from .cells import as_cell
from .comparison import Comparison, Pair, Result
from .comparison_table import INTERVAL, OF_AUROC, Rows, group_rows, pair_rows, result_rows
from .statistics import Difference

Cell = str | float | None

# TeX has no signs for these characters in text.
SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': r"\char34{}",  # \textquotedbl needs another font encoding than LaTeX's default
    "\u2212": "$-$",
    "\u00b1": r"$\pm$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
HEADS = {INTERVAL: r"95 \% CI", OF_AUROC: r"95 \% CI", "p": "$p$", "p, adjusted": "$p$, adjusted"}


def write_tables(stem: Path, comparison: Comparison) -> None:
    """Write `stem`.csv and `stem`.tex.

    Raises:
        CommandError: a file cannot be written.
    """
    for suffix, text in ((".csv", as_csv(comparison)), (".tex", as_tex(comparison))):
        path = stem.with_suffix(suffix)
        with finished_file(path) as partial, writing(path):
            partial.write_text(text, encoding="utf-8", errors="replace", newline="")


def as_csv(comparison: Comparison) -> str:
    """A row for each model, with numbers from 0 to 1; cells without a number are empty."""
    pairs = {pair.label: pair for pair in comparison.pairs}
    rows = [_row(result, pairs.get(result.label)) for result in comparison.results]
    columns = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(result: Result, pair: Pair | None) -> dict[str, Cell]:
    """The numbers of a model; the baseline has no differences."""
    row: dict[str, Cell] = {
        "model": as_cell(result.label),
        "runs": len(result.accuracies),
        **_score("accuracy", Score(result.mean, result.interval)),
        "accuracy_sd": result.sd,
        **_score("auroc", result.auroc),
        **({} if result.fold_auroc is None else {"auroc_mean_of_folds": result.fold_auroc}),
        "precision": result.precision,
        "recall": result.recall,
        "f1": result.f1,
        "parameters": result.parameters,
        "seconds": result.seconds,
    }
    if by := result.by_group:
        row |= {"groups": by.groups, **_score("group_accuracy", by.accuracy), **_score("group_auroc", by.auroc)}
    if pair:
        row |= _differences("", pair.difference, pair.adjusted_p, pair.auroc)
    if pair and pair.by_group:
        row |= _differences("group_", pair.by_group.accuracy, pair.by_group.adjusted_p, pair.by_group.auroc)
    return row


def _differences(prefix: str, accuracy: Difference, adjusted_p: float, auroc: Score | None) -> dict[str, Cell]:
    return {
        **_score(f"{prefix}accuracy_difference", Score(accuracy.mean, accuracy.interval)),
        f"{prefix}p": accuracy.p,
        **_score(f"{prefix}auroc_difference", auroc),
        f"{prefix}p_adjusted": adjusted_p,
    }


def _score(name: str, score: Score | None) -> dict[str, Cell]:
    if score is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    low, high = score.interval
    return {name: score.mean, f"{name}_low": low, f"{name}_high": high}


def as_tex(comparison: Comparison) -> str:
    """A tabular for each table of the page; they need the package booktabs."""
    groups, group_pairs = group_rows(comparison)
    baseline = comparison.pairs[0].baseline if comparison.pairs else ""
    tables = [
        ("Results on the test images", result_rows(comparison)),
        (f"Differences from {baseline}: accuracy in percentage points, and AUROC", pair_rows(comparison)),
        ("Results by group", groups),
        (f"Differences from {baseline} by group", group_pairs),
    ]
    parts = [f"% {shown(title)}\n{_tabular(rows)}" for title, rows in tables if rows]
    return "% Needs \\usepackage{booktabs}.\n\n" + "\n".join(parts)


def _tabular(rows: Rows) -> str:
    names = list(rows[0])
    lines = [_line([HEADS.get(name, escaped(name)) for name in names])]
    lines += ["\\midrule", *(_line([escaped(text) for text in row.values()]) for row in rows)]
    body = "\n".join(["\\toprule", *lines, "\\bottomrule"])
    return f"\\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}\n{body}\n\\end{{tabular}}\n"


def _line(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def escaped(text: str) -> str:
    """Text for TeX, on one line."""
    return "".join(SIGNS.get(sign, sign) for sign in shown(text))
