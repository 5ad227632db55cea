"""`python -m bench.candidates`: compile candidate tile shapes without a GPU and report their on-chip resources.

    python -m bench.candidates            print them, and what differs from candidates.json
    python -m bench.candidates --write    also write candidates.json, which `python -m bench.tune` reads

A candidate is kept if it fits on a multiprocessor and needs no local memory. The output also lists its matrix
instructions (HGMMA are Hopper's asynchronous ones), the number of programs on a multiprocessor, and the bytes that its
programs read. Only a GPU can tell which candidate is fastest: see `bench.tune`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from rsattn.kernels import configs, machine_code, resources
from rsattn.kernels.configs import Config

FILE = Path(__file__).with_name("candidates.json")
TARGET = "sm90"
# Limits of a block and of a multiprocessor: CUDA C++ programming guide, compute capability 9.0.
SHARED_OF_A_BLOCK, SHARED = 227 * 1024, 228 * 1024
REGISTERS, WARPS, BLOCKS, RESERVED = 65536, 64, 32, 1024


@dataclass(frozen=True)
class Slot:
    """A row of configs.json whose tile sizes are to be found.

    Attributes:
        row: says which calls the row serves; its tile sizes are ignored.
        batch, heads, length, head_dim: the shape at which candidates are timed.
        choices: field of `Config` -> the values to try.
    """

    row: Config
    batch: int
    heads: int
    length: int
    head_dim: int
    choices: dict[str, tuple[int, ...]]

    @property
    def case(self) -> resources.Case:
        return resources.Case("bfloat16", self.heads, self.length, self.head_dim)

    @property
    def name(self) -> str:
        keys = f"up to {self.row.max_keys} keys" if self.row.max_keys else "any number of keys"
        return f"{self.row.kernel}, {keys}, head_dim up to {self.row.max_width}"

    def candidates(self) -> list[Config]:
        return [
            replace(self.row, **dict(zip(self.choices, values))) for values in itertools.product(*self.choices.values())
        ]


def _slot(kernel: str, max_width: int, max_keys: int, shape: tuple[int, int, int, int], **choices: Any) -> Slot:
    sizes = {"block_m": 0, "block_n": 0, "block_e": min(max_width, 128), "warps": 4, "stages": 1}
    row = Config(kernel, TARGET, 2, max_width, max_keys, "no", **sizes)
    return Slot(row, *shape, choices)


WIDE = (32, 6, 577, 128)
SLOTS = (
    _slot("row_forward", 64, 128, (256, 12, 65, 64), block_m=(16, 32, 64, 128), warps=(2, 4, 8)),
    _slot("row_forward", 64, 256, (64, 12, 197, 64), block_m=(32, 64, 128), warps=(4, 8), stages=(1, 2)),
    _slot("row_forward", 128, 256, (64, 6, 197, 128), block_m=(32, 64), block_e=(64, 128), warps=(4, 8)),
    _slot("row_forward", 1024, 128, (16, 4, 65, 768), block_m=(32, 64), block_e=(64, 128), warps=(4, 8)),
    _slot(
        "stream_forward",
        64,
        0,
        (32, 12, 577, 64),
        block_m=(64, 128),
        block_n=(32, 64, 128),
        warps=(4, 8),
        stages=(2, 3),
    ),
    _slot("column_sums", 64, 0, (32, 12, 577, 64), block_m=(64, 128), block_n=(64, 128), warps=(4, 8), stages=(2, 3)),
    _slot("row_backward", 64, 128, (256, 12, 65, 64), block_m=(16, 32, 64, 128), warps=(4, 8)),
    _slot(
        "query_gradient",
        64,
        0,
        (32, 12, 577, 64),
        block_m=(64, 128),
        block_n=(32, 64, 128),
        warps=(4, 8),
        stages=(1, 2, 3),
    ),
    _slot(
        "key_value_gradient",
        64,
        0,
        (32, 12, 577, 64),
        block_m=(32, 64),
        block_n=(64, 128),
        warps=(4, 8),
        stages=(1, 2, 3),
    ),
    _slot("stream_forward", 128, 0, WIDE, block_m=(64, 128), block_n=(32, 64, 128), warps=(4, 8), stages=(2, 3)),
    _slot("column_sums", 128, 0, WIDE, block_m=(64, 128), block_n=(64, 128), warps=(4, 8), stages=(2, 3)),
    _slot("query_gradient", 128, 0, WIDE, block_m=(64, 128), block_n=(32, 64), warps=(4, 8), stages=(1, 2, 3)),
    _slot("key_value_gradient", 128, 0, WIDE, block_m=(32, 64), block_n=(64, 128), warps=(4, 8), stages=(1, 2, 3)),
    _slot("square_backward", 1024, 128, (16, 4, 65, 768), block_e=(16, 32, 64), warps=(4, 8)),
)


@dataclass(frozen=True)
class Cost:
    """The resources of one compiled candidate.

    Attributes:
        registers: of a thread.
        stack: bytes of local memory of a thread.
        shared: bytes of shared memory of a program.
        hgmma, hmma: the number of asynchronous and of older matrix instructions in the machine code.
        local: the number of loads from and stores to local memory in the machine code.
        resident: the number of programs that fit on a multiprocessor at once.
    """

    registers: int
    stack: int
    shared: int
    hgmma: int
    hmma: int
    local: int
    resident: int

    @property
    def usable(self) -> bool:
        return self.stack == 0 and self.local == 0 and self.resident > 0


@contextmanager
def first_in_the_table(rows: Sequence[Config]) -> Iterator[None]:
    """Put these rows before all others of configs.json while the context is open."""
    shipped = configs.table()
    with mock.patch.object(configs, "table", return_value=(*rows, *shipped)):
        configs.find.cache_clear()
        try:
            yield
        finally:
            configs.find.cache_clear()


def cost(slot: Slot, candidate: Config) -> Cost:
    """Compile the slot's kernel with these sizes for `TARGET` and read its resources and machine code."""
    with first_in_the_table([candidate]), resources.compiling_for(TARGET) as compiled:
        resources.launches(slot.case)
    (kernel,) = [found for found in compiled if found.metadata.name == candidate.kernel]
    registers, stack = resources.usage(kernel)
    (code,) = machine_code.disassemble([kernel.asm["cubin"]], TARGET)
    names = [instruction.name for instruction in code.values()]
    return Cost(
        registers,
        stack,
        kernel.metadata.shared,
        hgmma=names.count("HGMMA"),
        hmma=names.count("HMMA"),
        local=names.count("LDL") + names.count("STL"),
        resident=resident(registers, candidate.warps, kernel.metadata.shared),
    )


def resident(registers: int, warps: int, shared: int) -> int:
    """The number of programs on a multiprocessor at once. Registers are allocated to a warp in units of 256."""
    if shared > SHARED_OF_A_BLOCK:
        return 0
    by_registers = REGISTERS // (warps * 256 * -(-registers * 32 // 256))
    return min(by_registers, WARPS // warps, BLOCKS, SHARED // (shared + RESERVED))


def traffic(slot: Slot, row: Config) -> int:
    """The bytes that the kernel's programs load from the L2 cache or from memory.

    A streaming program holds one block of rows or keys and reads two whole tensors for it (K and V, or Q and dO);
    `column_sums` reads one (Q). Larger blocks read less often. The other kernels read a head once.
    """
    head = slot.length * slot.head_dim * row.itemsize
    reads = {
        "stream_forward": 2 * -(-slot.length // max(row.block_m, 1)),
        "query_gradient": 2 * -(-slot.length // max(row.block_m, 1)),
        "column_sums": -(-slot.length // max(row.block_n, 1)),
        "key_value_gradient": 2 * -(-slot.length // max(row.block_n, 1)),
    }
    return slot.batch * slot.heads * head * reads.get(row.kernel, 3)


def committed() -> list[tuple[Config, Cost]]:
    return [(Config(**row["row"]), Cost(**row["cost"])) for row in json.loads(FILE.read_text())["rows"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.candidates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write candidates.json")
    parser.add_argument("--only", default="", help="compile only the slots whose name contains this")
    given = parser.parse_args()
    before = dict(committed()) if FILE.exists() else {}
    found = []
    for slot in SLOTS:
        if given.only not in slot.name:
            continue
        print(f"{slot.name}; at {slot.batch},{slot.heads},{slot.length},{slot.head_dim}")
        for candidate in slot.candidates():
            now = cost(slot, candidate)
            found.append((candidate, now))
            kept = "kept" if now.usable else "not kept"
            sizes = ", ".join(f"{name} {getattr(candidate, name)}" for name in slot.choices)
            change = "" if before.get(candidate, now) == now else f"   was {before[candidate]}"
            read = traffic(slot, candidate) / 1e6
            print(f"  {kept}: {sizes}: {_words(now)}, reads {read:.0f} MB{change}", flush=True)
    if given.write:
        import triton

        rows = ",\n".join(json.dumps({"row": asdict(row), "cost": asdict(cost)}) for row, cost in found)
        FILE.write_text(f'{{"triton": "{triton.__version__}", "rows": [\n{rows}\n]}}\n')


def _words(cost: Cost) -> str:
    return (
        f"{cost.registers} registers, {cost.stack} stack bytes, {cost.local} local accesses, {cost.shared} shared "
        f"bytes, {cost.hgmma} HGMMA, {cost.hmma} HMMA, {cost.resident} programs on a multiprocessor"
    )


if __name__ == "__main__":
    main()
