"""`rsattn bench` from its command line."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from rsattn.bench import machine, measure
from rsattn.cli import main as cli

ROOT = Path(__file__).parents[2]
FEW = ("bench", "--only", "epilogue 16", "--seconds", "0.001", "--device", "cpu")


def test_it_times_prints_and_stores(tmp_path, capsys):
    assert cli.main([*FEW, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "GB/s" in printed  # the table of the chosen case, which the summary of all cases omits
    assert "eager / rsattn" in (tmp_path / "out" / "report.md").read_text()
    assert str(tmp_path / "out" / "results.json") in printed.replace("\n", "")
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["case"]["dtype"] for row in content["records"]] == ["float32", "bfloat16"]
    assert {"device", "torch", "commit", "threads", "instruction set"} <= set(content["machine"])
    assert {len(times) for row in content["records"] for times in row["seconds"].values()} <= set(range(3, 31))


@pytest.mark.parametrize("case", ["width 2,4,577,16", "length 1,2,64,64 float32 forward + backward"])
def test_the_times_of_any_case_are_printed(case, tmp_path, capsys):
    """Also of one case of a series, which the tables of growth omit."""
    assert cli.main(["bench", "--only", case, "--seconds", "0.001", "--device", "cpu", "--out", str(tmp_path)]) == 0
    row = re.search(r"SDPA contiguous +([0-9.]+) +([0-9.]+)", capsys.readouterr().out)
    assert row is not None
    assert f"| SDPA contiguous | {row[1]} | {row[2]} |" in (tmp_path / "report.md").read_text()


def test_a_second_run_keeps_the_first(tmp_path, capsys):
    for name in ("results.json", "report.md", "memory-2.png", "time.png"):
        (tmp_path / name).write_text("earlier")
    assert cli.main([*FEW, "--out", str(tmp_path)]) == 0
    written = sorted(path.name for path in tmp_path.iterdir() if path.read_text() != "earlier")
    assert written == ["report-3.md", "results-3.json"]
    assert "results-3.json" in capsys.readouterr().out


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout: git clone the repository")
def test_the_commit_is_the_checkouts():
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout
    assert machine.about(torch.device("cpu"))["commit"].removesuffix("+") == head.strip()


def test_list_prints_names_and_times_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "--list", "--only", "length", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14
    assert all(line.startswith("length ") for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "xyzzy"], "no case has 'xyzzy' in its name; rsattn bench --list lists them"),
        (
            ["--only", "lenght"],
            "no case has 'lenght' in its name (the nearest: length); rsattn bench --list lists them",
        ),
        (["--only", "width 2,4,577,17"], "in its name (the nearest: width 2,4,577,16; width 2,4,577,"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda: PyTorch finds no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; run it without one"),
        ),
    ],
)
def test_an_error_is_one_line(arguments, words, capsys, tmp_path):
    assert cli.main(["bench", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rsattn bench:")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_seconds_are_checked(seconds, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--seconds", seconds])
    assert stop.value.code == 2
    assert "--seconds" in capsys.readouterr().err


def test_an_invalid_folder_is_reported_before_the_work(capsys, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("a file")
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("it was timed"))
    assert cli.main([*FEW, "--out", str(tmp_path / "out")]) == 2
    assert "it is not a folder" in capsys.readouterr().err


def test_an_interrupted_run_leaves_an_older_result_as_it_was(capsys, tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("older")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", interrupted)
    assert cli.main([*FEW, "--out", str(tmp_path)]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "older"
