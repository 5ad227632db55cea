"""`pytest bench/ --benchmark-only`: what it measured, once for each case, and where it is kept."""

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
LATEST = "latest.json"  # not kept by git: the runs that are quoted have numbers


class Measured:
    """The records of a session; a case is measured when its first variant is asked for."""

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
        terminalreporter.write_line("raw times are kept when every case has run")
