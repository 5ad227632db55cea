"""The benchmarks run, keep what they measured, and print it again from the file alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rsattn

REASONS = rsattn.backends("cpu")["cpu"].reasons
ROOT = Path(__file__).parents[1]


def run(*arguments):
    command = [sys.executable, "-m", *arguments]
    # pytest-benchmark measures nothing in what it takes for a worker of pytest-xdist.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=environment).stdout


@pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))
def test_the_comparison_keeps_raw_times_and_shows_them_again(tmp_path):
    path = tmp_path / "cpu.json"
    printed = run("bench.cpu", "--rounds", "3", "--no-compile", "--no-model", "--out", str(path))
    result = json.loads(path.read_text())
    assert {"processor", "threads", "torch", "commit", "instruction set"} <= set(result)
    rounds = {len(times) for row in result["attention"] for times in row["times"].values()}
    assert rounds == {3}
    shown = run("bench.cpu", "--show", str(path))
    assert "8,12,197,64" in shown
    assert shown.strip() in printed


def test_committed_results_can_be_shown():
    files = sorted((ROOT / "bench" / "results").glob("*/cpu*.json"))
    assert files
    assert "ViT-B/16 at 384" in run("bench.cpu", "--show", *map(str, files))


@pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))
def test_pytest_benchmark_runs_them():
    options = (
        "--benchmark-only",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-k",
        "float32 and not backward and not 197 and not 577",
    )
    printed = run("pytest", "bench/", *options)
    assert "16,4,65,768 float32 forward" in printed
    assert "passed" in printed
