"""The three rows of README: a training step of attention beside PyTorch's, on every machine that has results."""

from __future__ import annotations

from collections.abc import Sequence

from .baselines import EAGER, RSATTN
from .results import Record, Run, same_cases
from .tables import as_markdown, best_sdpa, between

SHOWN = ((197, "float32"), (577, "float32"), (577, "bfloat16"))


def table(machines: Sequence[Sequence[Run]]) -> str:
    """Empty where no machine has all three."""
    columns = {runs[0].machine["device"]: _cases(runs) for runs in machines}
    columns = {machine: cases for machine, cases in columns.items() if len(cases) == len(SHOWN)}
    if not columns:
        return ""
    heads = [f"{machine}: {name}" for machine in columns for name in ("SDPA", "eager PyTorch")]
    lines = []
    for length, dtype in SHOWN:
        found = [cases[length, dtype] for cases in columns.values()]
        case = found[0][0].case
        ratios = [ratio for records in found for ratio in (_ratio(records, sdpa=True), _ratio(records, sdpa=False))]
        lines.append([f"{case.model}, N = {length}, {dtype}", *ratios])
    return as_markdown(["training step of attention", *heads], lines)


def _cases(runs: Sequence[Run]) -> dict[tuple[int, str], list[Record]]:
    """Length and dtype -> the records of all runs, of those that README shows."""
    every = [records for records in same_cases(runs, "attention") if records[0].case.train]
    found = {(records[0].case.shape.length, records[0].case.dtype): records for records in every}
    return {key: found[key] for key in SHOWN if key in found}


def _ratio(records: list[Record], sdpa: bool) -> str:
    return between(record.median(best_sdpa(record) if sdpa else EAGER) / record.median(RSATTN) for record in records)
