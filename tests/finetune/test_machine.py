"""Devices, processes and launchers that are not there: one line before anything is read or written."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from runs import MakeOptions

from rsattn.cli.command import CommandError
from rsattn.cli.main import main
from rsattn.finetune import running
from rsattn.finetune.machine import (
    OF_TORCHRUN,
    _fault_of_devices,
    machine_of,
    refuse_incomplete_launcher,
    refuse_machine,
    refuse_precision,
)
from rsattn.finetune.options import Options
from rsattn.finetune.run_folder import RunFolder

LAUNCHERS = (*OF_TORCHRUN, "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS")
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of GPUs that PyTorch finds."""
    count: int = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    return count


NO_GPU = f"expected auto or a number of processes from 1 to {max(os.cpu_count() or 1, 8)}: PyTorch finds no GPU here"
TWO = "expected auto, a number from 1 to 2, or a list such as 0,1 of the 2 GPUs here"


@pytest.mark.parametrize(
    ("gpus", "devices", "fault"),
    [
        *((0, text, NO_GPU) for text in ("0", "gpu", "-1", "1,2", "", "9999")),
        *((2, text, TWO) for text in ("0", "gpu", "3", "1,2", "-2", ",")),
    ],
    indirect=["gpus"],
)
def test_devices_that_are_not_there_are_refused(
    gpus: int, devices: str, fault: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["finetune", "--out", str(tmp_path / "run"), "--devices", devices]) == 2
    assert capsys.readouterr().err == f"rsattn finetune: --devices {devices}: {fault}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ("--strategy", "dpp"),
            "unknown --strategy 'dpp': expected auto, ddp, fsdp or another of Lightning's (did you",
        ),
        (("--strategy", "foo"), "unknown --strategy 'foo': expected auto, ddp, fsdp or another of Lightning's\n"),
        (("--strategy", "fsdp"), "Lightning cannot train with --devices auto --strategy fsdp --precision 32-true: "),
        (("--precision", "16-mixed"), "--precision 16-mixed needs a GPU, and PyTorch finds none here: use bf16-mixed"),
        (("--nodes", "2"), "--nodes 2 waits for other machines, and no launcher started this process: run `torchrun"),
    ],
)
@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_what_cannot_train_here_is_refused(
    words: tuple[str, ...], complaint: str, gpus: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["finetune", "--out", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rsattn finetune: {complaint}")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    if words[0] != "--nodes":
        assert main(["compare", "--out", str(tmp_path / "all"), *words]) == 2
        assert complaint.partition(" --devices")[0] in capsys.readouterr().err
        assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_a_resumed_run_is_checked_too(
    gpus: int,
    make_options: MakeOptions,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = make_options(precision="16-mixed")
    running.write_options(RunFolder(Path(options.out)), options)
    assert main(["finetune", "--resume", options.out, "--devices", "0"]) == 2
    assert f"--devices 0: {NO_GPU}" in capsys.readouterr().err
    asked: list[Options] = []
    monkeypatch.setattr(running, "run", lambda options, console, changed: asked.append(options))
    assert main(["finetune", "--resume", options.out, "--devices", "2"]) == 0  # with the precision it began with
    assert [one.devices for one in asked] == ["2"]


HALVES = {
    "WORLD_SIZE alone": ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but no RANK, LOCAL_RANK, LOCAL_WORLD_SIZE: start"),
    "RANK alone": ({"RANK": "1"}, "RANK=1, but no WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE: start the command with"),
    "of a cluster": ({"RANK": "1", "WORLD_SIZE": "2"}, "or unset RANK, WORLD_SIZE$"),
    "LOCAL_WORLD_SIZE alone": ({"LOCAL_WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE=2, but no RANK, WORLD_SIZE, LOCAL_RANK"),
    "no number": ({**TORCHRUN, "RANK": "x"}, "RANK=x, WORLD_SIZE=4, .*, which are not valid process numbers"),
    "rank too large": ({**TORCHRUN, "RANK": "4"}, "RANK=4, WORLD_SIZE=4, .*, which are not valid process numbers"),
    "no process": ({**TORCHRUN, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "0"}, "which are not valid process numbers"),
    "Lightning's without a node": ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, "but no RANK, LOCAL_WORLD_SIZE"),
}


@pytest.mark.parametrize(("environment", "complaint"), HALVES.values(), ids=HALVES)
def test_half_a_launcher_is_refused(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(CommandError, match=complaint):
        refuse_incomplete_launcher(environment)


@pytest.mark.parametrize("environment", [{}, TORCHRUN, {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}])
def test_a_whole_launcher_is_taken(environment: dict[str, str]) -> None:
    refuse_incomplete_launcher(environment)


@pytest.mark.parametrize("command", ["finetune", "compare", "predict"])
def test_every_command_looks_at_the_launcher_first(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "x")  # with which Lightning cannot be imported
    assert main([command, *(("run", "images") if command == "predict" else ())]) == 2
    assert capsys.readouterr().err.startswith(f"rsattn {command}: the environment has RANK=x, but no")


def test_numbers_that_torchrun_did_not_start_are_refused(
    make_options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    for changes, complaint in (
        (dict(devices="3"), "--devices 3: torchrun started 2 processes on this machine"),
        (dict(nodes=3), "--nodes 3: torchrun started processes on 2 machines"),
    ):
        with pytest.raises(CommandError, match=complaint):
            refuse_machine(make_options(**{"devices": "auto", **changes}))
    found = machine_of(make_options(devices="auto", nodes=1))
    assert (found["devices"], found["num_nodes"]) == (2, 2)


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_processes_on_a_cpu_are_taken(gpus: int, make_options: MakeOptions) -> None:
    for devices in ("auto", "1", "2"):
        refuse_machine(make_options(devices=devices))
    refuse_precision(make_options(precision="bf16-mixed"))


@pytest.mark.parametrize(
    ("gpus", "devices"), [*((2, text) for text in ("auto", "1", "2", "-1", "0,1", "1,")), (0, "3")], indirect=["gpus"]
)
def test_devices_that_are_there_are_no_fault(gpus: int, devices: str) -> None:
    assert _fault_of_devices(devices) is None


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_the_check_itself_says_nothing_and_leaves_no_trace(gpus: int, make_options: MakeOptions) -> None:
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append  # type: ignore[method-assign]
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(handler)
    before = dict(os.environ), torch.are_deterministic_algorithms_enabled()
    refuse_machine(make_options(devices="2", strategy="ddp"))
    logger.removeHandler(handler)
    assert not said
    assert before == (dict(os.environ), torch.are_deterministic_algorithms_enabled())
