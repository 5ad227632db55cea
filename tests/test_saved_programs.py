"""A model saved here runs in a process that has loaded nothing yet but `rsattn`, and an ONNX one without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
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
load = {
    "pt2": lambda: torch.export.load(program).module(),
    "ts": lambda: torch.jit.load(program),
    "package": lambda: torch._inductor.aoti_load_package(program),
    "pickle": lambda: torch.load(program, weights_only=False),
}
model = load[program.split(".")[1]]()
with torch.no_grad():
    torch.save([model(x) for x in torch.load(inputs)], output)
"""


# The same, of ONNX, where neither rsattn nor PyTorch is.
LOAD_ONNX = """
import sys
import numpy
import onnxruntime

program, inputs, output = sys.argv[1:]
session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
numpy.savez(output, *[session.run(None, {session.get_inputs()[0].name: x})[0] for x in numpy.load(inputs).values()])
assert not {"torch", "rsattn"} & sys.modules.keys()
"""


def elsewhere(
    program: Path, inputs: list[Tensor], load: str = LOAD, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Load the program in a fresh Python and run it on each input."""
    if load == LOAD:
        torch.save(inputs, program.with_name("inputs"))
    return subprocess.run(
        [sys.executable, "-c", load, str(program), str(program.with_name("inputs")), str(program.with_name("output"))],
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


def exported(module: torch.nn.Module, grad: bool = False, strict: bool = False) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    with torch.set_grad_enabled(grad):
        return torch.export.export(module, (torch.randn(2, 20, 48),), dynamic_shapes=shapes, strict=strict)


def save(module: torch.nn.Module, path: Path, grad: bool = False) -> Path:
    torch.export.save(exported(module, grad), path)
    return path


def assert_ran_alike(
    ran: subprocess.CompletedProcess[str], module: torch.nn.Module, inputs: list[Tensor], folder: Path
) -> None:
    """The other process gave the bits that this one gives."""
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        for got, x in zip(torch.load(folder / "output"), inputs, strict=True):
            assert torch.equal(got, module(x))


@pytest.mark.parametrize(
    ("module", "grad"), [(None, False), (0.5, True)], ids=["no_gate-no_grad", "gate-grad"], indirect=["module"]
)
def test_an_exported_program(module: rsattn.ResidualSelfAttention, tmp_path: Path, grad: bool) -> None:
    inputs = [torch.randn(batch, 20, 48) for batch in (2, 5)]
    assert_ran_alike(elsewhere(save(module, tmp_path / "program.pt2", grad), inputs), module, inputs, tmp_path)


one_module = pytest.mark.parametrize("module", [0.5], ids=["gate"], indirect=True)


@one_module
def test_a_strictly_exported_program_in_core_operators(module: rsattn.ResidualSelfAttention, tmp_path: Path) -> None:
    inputs = [torch.randn(batch, 20, 48) for batch in (2, 5)]
    program = exported(module, strict=True).run_decompositions()
    torch.export.save(program, tmp_path / "program.pt2")
    assert_ran_alike(elsewhere(tmp_path / "program.pt2", inputs), module, inputs, tmp_path)


@one_module
def test_a_package_that_inductor_compiled(module: rsattn.ResidualSelfAttention, tmp_path: Path) -> None:
    """Its C++ calls the operators; `import rsattn` has registered them."""
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("AOTInductor needs a C++ compiler (Debian, Ubuntu: apt install g++)")
    inputs = [torch.randn(batch, 20, 48) for batch in (2, 5)]
    package = tmp_path / "program.package.pt2"
    torch._inductor.aoti_compile_and_package(exported(module), package_path=str(package))
    ran = elsewhere(package, inputs)
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        for got, x in zip(torch.load(tmp_path / "output"), inputs, strict=True):
            # Inductor's own matrix products around the kernels: float32 sums of 48 terms, in an order of their own.
            torch.testing.assert_close(got, module(x), rtol=0.0, atol=1e-5)


@one_module
def test_a_pickled_module(module: rsattn.ResidualSelfAttention, tmp_path: Path) -> None:
    inputs = [torch.randn(2, 20, 48)]
    torch.save(module, tmp_path / "module.pickle")
    assert_ran_alike(elsewhere(tmp_path / "module.pickle", inputs), module, inputs, tmp_path)


@one_module
def test_an_onnx_program_without_pytorch(module: rsattn.ResidualSelfAttention, tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=f"pip install -e '.[test]' brings {name}")
    inputs = [torch.randn(batch, 20, 48) for batch in (2, 5)]
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    program = tmp_path / "module.onnx"
    torch.onnx.export(module, (inputs[0],), program, dynamo=True, dynamic_shapes=shapes, verbose=False)
    with (tmp_path / "inputs").open("wb") as file:
        numpy.savez(file, *(x.numpy() for x in inputs))
    ran = elsewhere(program, inputs, LOAD_ONNX)
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        for got, x in zip(numpy.load(tmp_path / "output.npz").values(), inputs, strict=True):
            # As PyTorch operators, whose float32 sums of up to 48 terms have another order.
            torch.testing.assert_close(torch.from_numpy(got), module(x), rtol=0.0, atol=1e-5)


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
