"""The on-chip resources of each shipped launch, read from compiled code without a GPU.

    python -m rsattn.kernels.resources            compile, print the table and what differs from resources.json
    python -m rsattn.kernels.resources --write    also write resources.json

The shipped launchers run with a driver that compiles but launches nothing, so the specialization and the row of
configs.json are the shipped ones. Registers and stack bytes are for one thread. For NVIDIA targets the instructions of
the loops are counted, and on sm90 the asynchronous products are checked (`hazards.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from rsattn import call, contract, philox, slices
from rsattn.call import Call, empty_forward

from . import (
    best_head,
    column_sums,
    gate,
    launch,
    launch_residual,
    machine_code,
    mask_gradient,
    row_backward,
    row_forward,
    square_backward,
    stream_backward,
    stream_forward,
)
from .hazards import Hazards, hazards

TABLE = Path(__file__).with_name("resources.json")
# The files that decide what is compiled: the kernels, their launchers, and what those know of a call.
SOURCES = (
    *sorted(Path(__file__).parent.glob("*.py")),
    Path(__file__).with_name("configs.json"),
    *(Path(str(module.__file__)) for module in (call, contract, philox, slices)),
)

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

KERNELS = (
    row_forward.row_forward,
    stream_forward.stream_forward,
    column_sums.column_sums,
    row_backward.row_backward,
    square_backward.square_backward,
    stream_backward.query_gradient,
    stream_backward.key_value_gradient,
    mask_gradient.mask_gradient,
    best_head.add_best_head,
    best_head.best_head_gradient,
    gate.gate_gradients,
    gate.gamma_gradient,
)


@dataclass(frozen=True)
class Case:
    """One call of the launchers.

    Attributes:
        extras: with a mask and dropout, which need registers too.
        part: if not empty, only these launches: "gate tile" and "gate slot", the gated epilogue with that merge;
            "mask gradient"; "received", a forward pass that ranks heads by confidence and returns the attention
            received; "received alone".
    """

    dtype: str
    heads: int
    length: int
    width: int
    extras: bool = False
    epilogue: bool = False
    part: str = ""

    @property
    def name(self) -> str:
        extras = " mask+dropout" if self.extras else ""
        part = f" {self.part}" if self.part else ""
        return f"{self.dtype} H{self.heads} N{self.length} E{self.width}{extras}{part}"


CASES = (
    Case("bfloat16", 12, 65, 64, epilogue=True),
    Case("bfloat16", 12, 65, 64, extras=True),
    Case("bfloat16", 12, 197, 64),
    Case("bfloat16", 12, 197, 64, extras=True),
    Case("bfloat16", 12, 577, 64),
    Case("bfloat16", 12, 577, 64, extras=True),
    Case("bfloat16", 6, 197, 128),
    Case("bfloat16", 6, 577, 128),
    Case("bfloat16", 6, 577, 128, extras=True),
    Case("bfloat16", 4, 65, 768, epilogue=True),
    Case("bfloat16", 4, 65, 768, extras=True),
    Case("bfloat16", 4, 577, 768),
    Case("float32", 12, 65, 64, epilogue=True),
    Case("float32", 12, 577, 64),
    Case("float32", 4, 65, 768),
    Case("bfloat16", 12, 65, 64, part="gate tile"),
    Case("bfloat16", 12, 65, 64, part="gate slot"),
    Case("bfloat16", 3, 65, 64, part="gate slot"),
    Case("bfloat16", 4, 65, 768, part="gate tile"),
    Case("float32", 12, 65, 64, part="gate tile"),
    Case("bfloat16", 12, 197, 64, part="received"),
    Case("bfloat16", 12, 577, 64, part="received"),
    Case("bfloat16", 12, 197, 64, part="received alone"),
    Case("bfloat16", 12, 577, 64, part="received alone"),
    Case("bfloat16", 4, 65, 768, part="received alone"),
    Case("float32", 12, 577, 64, part="received alone"),
    Case("bfloat16", 3, 49, 32, part="mask gradient"),
    Case("bfloat16", 12, 197, 64, part="mask gradient"),
    Case("bfloat16", 12, 197, 64, extras=True, part="mask gradient"),
    Case("bfloat16", 6, 197, 128, part="mask gradient"),
    Case("bfloat16", 6, 197, 128, extras=True, part="mask gradient"),
    Case("bfloat16", 4, 65, 768, part="mask gradient"),
    Case("bfloat16", 4, 65, 768, extras=True, part="mask gradient"),
    Case("float32", 12, 197, 64, part="mask gradient"),
    Case("float32", 4, 65, 768, part="mask gradient"),
)


@dataclass(frozen=True)
class Row:
    """One compiled kernel.

    Attributes:
        spilled: bytes of local memory of a thread (its stack frame).
        loops: (instructions, HGMMA or UTCHMMA, HMMA, EX2) of each loop with a product or an exponential, by address;
            none for AMD targets.
    """

    kernel: str
    case: str
    target: str
    registers: int
    spilled: int
    shared: int
    loops: list[list[int]]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kernel, self.case, self.target


class CompileOnlyDriver:
    """Stands in for the GPU driver that Triton expects; knows only the target to compile for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_current_device(self) -> str:
        return self.name

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.name]


@contextmanager
def compiling_for(target: str) -> Iterator[list[Any]]:
    """While the context is open, a launch only compiles the kernel for `target` and adds it to the list."""
    compiled: list[Any] = []

    def compile_only(kernel: Any) -> Any:
        original = kernel.run

        def run(*args: Any, grid: Any, warmup: bool, **options: Any) -> None:
            compiled.append(original(*args, grid=grid, warmup=True, **options))

        return run

    triton.runtime.driver.set_active(CompileOnlyDriver(target))
    with ExitStack() as stack:
        for kernel in KERNELS:
            stack.enter_context(mock.patch.object(kernel, "run", compile_only(kernel)))
        stack.enter_context(mock.patch.object(launch, "architecture", return_value=target))
        yield compiled


DIM = 768  # of the epilogue, except with merge="slot"


def launches(case: Case) -> None:
    """Launch everything that a training step of one block launches, on packed projections as in a module."""
    if case.part.startswith("gate "):
        return gate_launches(case)
    if case.part == "mask gradient":
        return mask_gradient_launches(case)
    if case.part == "received alone":
        launch.received(call_of(case))
        return None
    call = call_of(case)
    if case.part == "received":
        call.norm, call.return_received = "confidence", True
        launch.forward(call)
        return None
    forward = launch.forward(call)
    residual = torch.zeros(1, case.length, case.width, dtype=call.query.dtype)
    launch.backward(call, forward, forward.output, residual)
    if case.epilogue:
        projected = torch.zeros(1, case.length, DIM, dtype=call.query.dtype)
        launch_residual.add_best_head(projected, forward.output, forward.best_head, "tile", projected)
        launch_residual.best_head_gradient(projected, forward.best_head, case.width, "tile")
    return None


def call_of(case: Case, batch: int = 1) -> Call:
    packed = torch.zeros(batch, case.length, 3, case.heads, case.width, dtype=getattr(torch, case.dtype))
    if not case.extras:
        return Call((packed,))
    mask = torch.ones(1, 1, case.length, case.length, dtype=torch.bool)
    return Call((packed,), mask, torch.zeros(1, dtype=torch.int64), 0.1)


def mask_gradient_launches(case: Case) -> None:
    """Launch the gradient of a bias that each head learns, for a batch so large that a program walks over samples."""
    batch = 64
    call = call_of(case, batch)
    call.attn_mask = torch.zeros(1, case.heads, case.length, case.length)
    forward = empty_forward(call)
    residual = torch.zeros(batch, case.length, case.width, dtype=call.query.dtype)
    launch.gradient_of_mask(call, forward, forward.output, residual)


def gate_launches(case: Case) -> None:
    """Launch the gated epilogue of such a block, forward and backward, with float32 gamma as under autocast."""
    merge = case.part.removeprefix("gate ")
    dtype, dim = getattr(torch, case.dtype), case.heads * case.width if merge == "slot" else DIM
    projected = torch.zeros(1, case.length, dim, dtype=dtype)
    output = torch.zeros(1, case.length, case.heads, case.width, dtype=dtype).transpose(1, 2)
    best_head, gamma = torch.zeros(1, dtype=torch.int64), torch.zeros(dim)
    launch_residual.add_best_head(projected, output, best_head, merge, projected, gamma)
    launch_residual.gate_gradients(projected, output, best_head, gamma, merge)


@dataclass(frozen=True)
class Measured:
    """A row, and the details of its machine code; `hazards` only on sm90."""

    row: Row
    loops: list[machine_code.Loop]
    hazards: Hazards | None


def measure(cases: Sequence[Case], target: str) -> list[Measured]:
    found = []
    for case in cases:
        with compiling_for(target) as compiled:
            launches(case)
        found += [(case, kernel) for kernel in compiled]
    codes: list[machine_code.Code] = [{}] * len(found)
    if target.startswith("sm"):
        codes = machine_code.disassemble([kernel.asm["cubin"] for _, kernel in found], target)
    measured = []
    for (case, kernel), code in zip(found, codes):
        loops = machine_code.loops(code) if code else []
        row = Row(
            kernel.metadata.name,
            case.name,
            target,
            *usage(kernel),
            kernel.metadata.shared,
            [loop.counts for loop in loops],
        )
        watched = hazards(code, kernel.metadata.num_warps) if target == "sm90" else None
        measured.append(Measured(row, loops, watched))
    return measured


def usage(kernel: Any) -> tuple[int, int]:
    """(registers, bytes of stack frame or scratch) per thread."""
    if "amdgcn" in kernel.asm:
        return tuple(  # type: ignore[return-value]
            int(re.search(rf"\.{field}:\s+(\d+)", kernel.asm["amdgcn"])[1])  # type: ignore[index]
            for field in ("vgpr_count", "private_segment_fixed_size")
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        report = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found is not None, report
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class Table:
    """What resources.json holds.

    Attributes:
        triton: the version of Triton that compiled the rows.
        sources: `digest` of the code that was compiled.
        rows: one for each kernel of each case and target.
    """

    triton: str
    sources: str
    rows: list[Row]


def committed() -> Table:
    table = json.loads(TABLE.read_text())
    return Table(table["triton"], table["sources"], [Row(**row) for row in table["rows"]])


def digest() -> str:
    """SHA-256 of the sources. Where it is that of the committed table, compiling them again gives its rows."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in SOURCES)).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write resources.json")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this target; may be repeated")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    options = parser.parse_args()
    before = {row.key: row for row in committed().rows} if TABLE.exists() else {}
    cases = [case for case in CASES if options.only in case.name]
    rows = []
    for target in options.target or TARGETS:
        for measured in measure(cases, target):
            print("\n".join(lines(measured, before.get(measured.row.key))), flush=True)
            rows.append(measured.row)
    if options.write:
        text = ",\n".join(json.dumps(asdict(row)) for row in rows)
        made = f'"triton": "{triton.__version__}", "sources": "{digest()}"'
        TABLE.write_text(f'{{{made}, "rows": [\n{text}\n]}}\n')


def lines(measured: Measured, old: Row | None) -> Iterator[str]:
    """The lines that are printed for a row, with its difference from the committed table."""
    row = measured.row
    change = "" if old is None or old == row else f"   was {old.registers} / {old.spilled} / {old.shared} / {old.loops}"
    yield (
        f"{row.target:7s} {row.case:38s} {row.kernel:20s} {row.registers:4d} registers "
        f"{row.spilled:5d} stack bytes {row.shared:7d} shared bytes{change}"
    )
    for loop in measured.loops:
        yield (
            f"        loop: {loop.instructions} instructions, {loop.hgmma} HGMMA, {loop.hmma} HMMA, {loop.ex2} EX2; "
            f"{loop.fences} fences, {loop.copies} cp.async, {loop.stores} shared stores"
        )
    for name, found in asdict(measured.hazards).items() if measured.hazards else ():
        if found and name != "watched":
            yield f"        {name}: {len(found)}, {found[0]}"


if __name__ == "__main__":
    main()
