"""The on-chip resources of the CUDA kernels, read from the compiled extension without a GPU.

    python tests/kernels/cuda_resources.py            print the table, and what differs from csrc/cuda/resources.json
    python tests/kernels/cuda_resources.py --write    also write it

For every kernel: registers and stack bytes of a thread, and the number of tensor-core instructions in its machine code
(HGMMA: of a warpgroup, sm_90a; HMMA: of a warp). For calls of real sizes: the launches, and the number of their blocks
on a multiprocessor. For the kernels of sm_90a, only printed: their loops, and the findings of kernels/hazards.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from cuda_model import SHARED_MEMORY, CudaModel

from rsattn.backends.extension import cuda_build
from rsattn.call import Call
from rsattn.kernels import machine_code
from rsattn.kernels.hazards import Hazards, hazards
from rsattn.kernels.machine_code import Loop

TABLE = Path(__file__).parents[2] / "csrc" / "cuda" / "resources.json"
# (N, E) of the calls: each with the induced norm, and with backward and a mask's gradient if the kernels support them.
SIZES = [(65, 64), (197, 64), (257, 64), (577, 64), (577, 80), (1025, 64), (1370, 64), (4096, 64)]
# The kernels that do not depend on head_dim and dtype.
EPILOGUE = ("AddBestHead", "BestHeadGradient", "AddGatedHead", "GateGradients", "GammaGradient")
# Limits of a multiprocessor (CUDA C++ programming guide, table of compute capabilities); each block reserves 1 KiB.
REGISTERS, THREADS = 65536, {"sm80": 2048, "sm86": 1536, "sm90": 2048}


@dataclass(frozen=True)
class Kernel:
    kernel: str
    target: str
    registers: int
    stack: int
    hgmma: int
    hmma: int


@dataclass(frozen=True)
class Launch:
    """One kernel of a bfloat16 call without dropout and, but for its gradient, without mask.

    `resident`: blocks on a multiprocessor.
    """

    call: str
    target: str
    kernel: str
    threads: int
    shared: int
    resident: int


def extension() -> str | None:
    found = importlib.util.find_spec("rsattn._C")
    return os.environ.get("RSATTN_EXTENSION") or (found.origin if found else None)


def kernels() -> list[Kernel]:
    """The kernels of the installed extension."""
    import triton  # its wheel contains cuobjdump

    def dump(what: str) -> str:
        command = [triton.knobs.nvidia.cuobjdump.path, what, str(extension())]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    products = {key: (code.count("HGMMA."), code.count("HMMA.")) for key, code in _functions(dump("-sass"))}
    found = []
    for (name, target), text in _functions(dump("-res-usage")):
        registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", text).groups())
        found.append(Kernel(name, target, registers, stack, *products[name, target]))
    return sorted(found, key=lambda row: (row.target, row.kernel))


def watched() -> dict[str, tuple[list[Loop], Hazards]]:
    """The loops and the hazards of asynchronous products (kernels/hazards.py) of every kernel for sm_90a."""
    import triton  # its wheel contains the tools

    with tempfile.TemporaryDirectory() as folder:
        command = [triton.knobs.nvidia.cuobjdump.path, "-xelf", "sm_90a", str(Path(str(extension())).resolve())]
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        (cubin,) = Path(folder).glob("*.cubin")
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", str(cubin)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    codes = {_short(name): code for name, code in machine_code.functions(text).items()}
    # Blocks of several warpgroups: a wait in one does not cover the others.
    return {name: (machine_code.loops(code), hazards(code, warps=8)) for name, code in sorted(codes.items())}


def _functions(text: str) -> list[tuple[tuple[str, str], str]]:
    """((kernel, target), its lines) from the output of cuobjdump."""
    found = []
    for target, part in re.findall(r"^arch = (sm_\w+)$(.*?)(?=^arch = |\Z)", text, re.M | re.S):
        pieces = re.split(r"^\s*Function ?:? (\S+?):?$", part, flags=re.M)
        for name, said in zip(pieces[1::2], pieces[2::2]):
            found.append(((_short(name), target.replace("_", "")), said))
    return found


def _short(mangled: str) -> str:
    match = re.search(r"(Forward|Backward|ColumnSums|MaskGradient)INS0_\d+(b?float16)ELi(\d+)ELb(\d)", mangled)
    if match:
        kernel, element, width, extras = match.groups()
        return f"{kernel} {element} {width}{' extras' if extras == '1' else ''}"
    return next(name for name in EPILOGUE if name in mangled)


def launches(table: list[Kernel]) -> list[Launch]:
    of = {(row.kernel, row.target): row.registers for row in table}
    found = []
    for target in SHARED_MEMORY:
        model = CudaModel(target, order=-1)
        code = "sm90a" if target == "sm90" else "sm80"
        for length, width in SIZES:
            call = Call((torch.zeros(1, 1, length, width, dtype=torch.bfloat16),) * 3)
            result = model.forward(call)
            lines = model.launched()
            if length <= model.backward_length(width, 0):
                model.backward(call, result, result.output, None)
                lines += model.launched()
                call.attn_mask = torch.zeros(1, 1, length, length)
                model.mask_gradient(call, result, result.output, None)
                lines += model.launched()
            for line in lines:
                name, *numbers = re.match(r"(\w+) \d+ blocks of (\d+) threads, (\d+) bytes", line).groups()
                threads, shared = map(int, numbers)
                kernel = name.title().replace("_", "")
                registers = of[f"{kernel} bfloat16 {64 if width <= 64 else 128}", code]
                resident = min(
                    REGISTERS // (-(-registers // 8) * 8 * threads),
                    THREADS[target] // threads,
                    (SHARED_MEMORY[target] + 1024) // (shared + 1024),
                )
                found.append(Launch(f"N{length} E{width}", target, kernel, threads, shared, resident))
    return found


def committed() -> tuple[str, list[Kernel], list[Launch]]:
    """(the CUDA version that compiled the table, its two lists)."""
    table = json.loads(TABLE.read_text())
    return table["cuda"], [Kernel(**row) for row in table["kernels"]], [Launch(**row) for row in table["launches"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write csrc/cuda/resources.json")
    options = parser.parse_args()
    version_and_architectures = cuda_build() or "none"
    version = version_and_architectures.split()[0]
    now = kernels()
    lists: dict[str, list[Kernel] | list[Launch]] = {"kernels": now, "launches": launches(now)}
    _, *before = committed() if TABLE.exists() else ("", [], [])
    for rows, old in zip(lists.values(), before):
        for row in rows:
            print("  " if row in old else "! ", *asdict(row).values())
    for name, (loops, found) in watched().items() if "90a" in version_and_architectures else ():
        print(f"   {name}: loops {[loop.counts for loop in loops]}, fences {[loop.fences for loop in loops]}")
        print(
            f"      {found.watched} products with A in registers, {len(found.overwritten)} overwritten; shared stores "
            f"before a barrier {len(found.early_writes)}, without a fence {len(found.unfenced)}"
        )
    if options.write:
        parts = ['"cuda": ' + json.dumps(version)]
        for name, rows in lists.items():
            parts.append(f'"{name}": [\n' + ",\n".join(json.dumps(asdict(row)) for row in rows) + "\n]")
        TABLE.write_text("{" + ",\n".join(parts) + "}\n")


if __name__ == "__main__":
    main()
