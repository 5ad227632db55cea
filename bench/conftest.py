"""`pytest bench/ --benchmark-only`: measures each case once and stores the records."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import kinds
from bench.cases import Case
from bench.machine import about, folder_name
from bench.measure import measure
from bench.results import FOLDER, Record, Run, write

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LATEST = "latest.json"  # ignored by git; committed runs are called run-N.json


class Measured:
    """The records of this pytest run. A case is measured when the first of its variants is requested."""

    def __init__(self) -> None:
        self.records: dict[Case, Record] = {}

    def __call__(self, case: Case) -> Record:
        if case not in self.records:
            self.records[case] = measure(case, DEVICE)
        return self.records[case]


MEASURED = Measured()


@pytest.fixture(scope="session")
def measured() -> Measured:
    return MEASURED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not MEASURED.records:
        return
    run = Run(about(DEVICE), list(MEASURED.records.values()))
    everything = len(run.records) == len(kinds.cases(DEVICE))
    terminalreporter.section("rsattn")
    if everything:
        path = FOLDER / folder_name(run.machine["device"]) / LATEST
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, run)
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        terminalreporter.write_line(f"raw times: {shown}; python -m bench.report --show {shown}")
    else:
        terminalreporter.write_line("raw times are written only after a run of every case")
