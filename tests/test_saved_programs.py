"""A model exported here runs in a process that has loaded nothing yet but `rsattn`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rsattn

if reasons := rsattn.backends("cpu")["cpu"].reasons:
    pytest.skip("; ".join(reasons), allow_module_level=True)

LOAD = """
import sys
import torch
import rsattn

program, inputs, output = sys.argv[1:]
model = torch.export.load(program).module() if program.endswith(".pt2") else torch.jit.load(program)
with torch.no_grad():
    torch.save([model(x) for x in torch.load(inputs)], output)
"""


def elsewhere(program: Path, inputs: list[Tensor], **environment: str) -> subprocess.CompletedProcess[str]:
    """Load the program in a fresh Python and run it on each input."""
    torch.save(inputs, program.with_name("inputs"))
    return subprocess.run(
        [sys.executable, "-c", LOAD, str(program), str(program.with_name("inputs")), str(program.with_name("output"))],
        capture_output=True,
        text=True,
        check=False,
        cwd=program.parent,
        env={**os.environ, **environment},
    )


@pytest.fixture(params=[None, 0.5], ids=["no_gate", "gate"])
def module(request: pytest.FixtureRequest) -> rsattn.ResidualSelfAttention:
    torch.manual_seed(0)
    return rsattn.ResidualSelfAttention(48, 3, init_values=request.param).eval()


def save(module: torch.nn.Module, path: Path, grad: bool = False) -> Path:
    batch = torch.export.Dim("batch", min=2)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(module, (torch.randn(2, 20, 48),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_an_exported_program(module: rsattn.ResidualSelfAttention, tmp_path: Path, grad: bool) -> None:
    inputs = [torch.randn(batch, 20, 48) for batch in (2, 5)]
    ran = elsewhere(save(module, tmp_path / "program.pt2", grad), inputs)
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        for got, x in zip(torch.load(tmp_path / "output"), inputs, strict=True):
            assert torch.equal(got, module(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_trace(module: rsattn.ResidualSelfAttention, tmp_path: Path) -> None:
    x = torch.randn(2, 20, 48)
    with torch.no_grad():
        want = module(x)
        torch.jit.trace(module, (x,)).save(str(tmp_path / "trace.ts"))
    ran = elsewhere(tmp_path / "trace.ts", [x])
    assert ran.returncode == 0, ran.stderr
    assert torch.equal(torch.load(tmp_path / "output")[0], want)


@pytest.mark.parametrize("module", [None], ids=["no_gate"], indirect=True)
def test_where_the_kernels_cannot_be_loaded_it_says_why(module: rsattn.ResidualSelfAttention, tmp_path: Path) -> None:
    """The program names the backend that it was exported with, and gets no other."""
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    ran = elsewhere(save(module, tmp_path / "program.pt2"), [torch.randn(2, 20, 48)], RSATTN_EXTENSION=str(broken))
    assert ran.returncode != 0
    assert f"RuntimeError: {broken} cannot be loaded into PyTorch" in ran.stderr
