"""`pytest bench/ --benchmark-only` in a separate process."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_pytest_benchmark_replays_what_was_timed_in_turns(tmp_path):
    # pytest-benchmark is disabled in a process that looks like a worker of pytest-xdist.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    options = ("--benchmark-only", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", "epilogue and 65 and float32")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "bench/", *options, f"--benchmark-json={tmp_path / 'b.json'}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epilogue 16,4,65,768 float32 forward" in done.stdout
    assert "2 passed" in done.stdout
    assert "raw times are written only after a run of every case" in done.stdout
    entries = {entry["name"]: entry for entry in json.loads((tmp_path / "b.json").read_text())["benchmarks"]}
    assert set(entries) == {"rsattn", "eager"}
    rounds = {entry["stats"]["rounds"] for entry in entries.values()}
    assert len(rounds) == 1  # the variants ran in turns
    assert all(0 < entry["stats"]["median"] < 1 for entry in entries.values())
