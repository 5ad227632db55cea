"""Result files: one JSON file for each run, with every raw time."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import Case
from .clock import Times

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Record:
    """The measurements of one case.

    Attributes:
        seconds: variant -> the seconds of every timed call.
        peaks: variant -> peak bytes beyond its inputs, if measured.
        left_out: variant -> the reason why it was not timed.
    """

    case: Case
    seconds: Times
    peaks: dict[str, int]
    left_out: dict[str, str]

    def median(self, variant: str) -> float:
        return statistics.median(self.seconds[variant])


@dataclass(frozen=True)
class Run:
    """The measurements of one process on one machine."""

    machine: dict[str, Any]
    records: list[Record]

    def of(self, kind: str) -> list[Record]:
        return [record for record in self.records if record.case.kind == kind]


def write(path: Path, run: Run) -> None:
    rows = [
        {
            "case": record.case.as_json(),
            "seconds": {name: [float(f"{t:.4g}") for t in times] for name, times in record.seconds.items()},
            "peaks": record.peaks,
            "left out": record.left_out,
        }
        for record in run.records
    ]
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{{"machine": {json.dumps(run.machine)}, "records": [\n{lines}\n]}}\n')


def read(path: Path) -> Run:
    content = json.loads(path.read_text())
    records = [
        Record(Case.from_json(row["case"]), row["seconds"], row["peaks"], row["left out"]) for row in content["records"]
    ]
    return Run(content["machine"], records)


def committed(kind: str) -> dict[str, list[Run]]:
    """Folder name -> its committed runs, for devices of a kind ("cpu" or "cuda")."""
    found = {
        folder.name: [read(path) for path in sorted(folder.glob("run-*.json"))] for folder in sorted(FOLDER.glob("*"))
    }
    return {name: runs for name, runs in found.items() if runs and runs[0].machine["kind"] == kind}


def with_kind(runs: Sequence[Run], kind: str) -> list[Run]:
    """The runs that have a case of a kind."""
    return [run for run in runs if run.of(kind)]


def same_cases(runs: Sequence[Run], kind: str) -> list[list[Record]]:
    """The records of each case of a kind that all runs have. A run without any case of this kind does not count."""
    others = [{record.case: record for record in run.of(kind)} for run in with_kind(runs, kind)]
    cases = list(others[0]) if others else []
    return [[other[case] for other in others] for case in cases if all(case in other for other in others)]
