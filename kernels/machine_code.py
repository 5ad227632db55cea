"""SASS, as NVIDIA's disassembler prints it: instructions, branch targets and the contents of loops.

Names are those of "CUDA Binary Utilities", section Instruction Set Reference (HGMMA: a warpgroup's asynchronous matrix
product on sm_90; UTCHMMA: a block's on sm_100; HMMA: a warp's; MUFU.EX2: an exponential).
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SIZE = 16  # bytes of an instruction, from sm_70 on
LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:(@\S+)\s+)?([A-Z][\w.]*)([^;]*);")
LABEL = re.compile(r"(\.L_x_\d+):")
# CALL returns, and BSSY only names where its threads reconverge: neither counts as a branch.
BRANCHES = ("BRA", "BRX", "BRXU", "WARPSYNC", "EXIT", "RET")


@dataclass(frozen=True)
class Instruction:
    """`guard`: its predicate, such as "@!P0", or "". `targets`: the addresses to which it may branch."""

    address: int
    guard: str
    opcode: str
    operands: tuple[str, ...]
    targets: tuple[int, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"{self.address:#06x} {self.guard} {self.opcode} {', '.join(self.operands)}".replace("  ", " ")

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def successors(self) -> tuple[int, ...]:
        after = self.address + SIZE
        conditional = self.guard or (self.name == "BRA" and len(self.operands) > 1)  # BRA.U UP0, BRA.DIV UR4
        if self.name in ("BRX", "BRXU") and not self.targets:
            raise ValueError(f"{self}: a computed branch whose targets the disassembler does not name")
        if self.name in ("BRA", "BRX", "BRXU", "EXIT", "RET") and not conditional:
            return self.targets
        return (*self.targets, after)


Code = dict[int, Instruction]  # by address, ascending; the first is the entry


def disassemble(cubins: Sequence[bytes], architecture: str) -> list[Code]:
    """The code of cubins that hold one kernel each, for an `architecture` such as "sm90".

    Starting nvdisasm takes longer than disassembling a kernel, so all kernels are passed to it as one image.
    """
    import triton

    kernels = [_instructions_of(cubin) for cubin in cubins]
    suffix = "" if architecture == "sm80" else "a"
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(kernels))
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-b", architecture.upper() + suffix, file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    whole = parse(text)
    found, start = [], 0
    for kernel in kernels:
        end = start + len(kernel)
        found.append({address: whole[address] for address in range(start, end, SIZE)})
        start = end
    return found


def _instructions_of(cubin: bytes) -> bytes:
    """The section `.text.<kernel>` of a cubin, a 64-bit ELF file (`man 5 elf`)."""
    (headers,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, headers + i * size) for i in range(count)]
    strings = sections[names][4]
    texts = [
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if cubin.startswith(b".text.", strings + name)
    ]
    (text,) = texts
    return text


def parse(text: str) -> Code:
    """Parse nvdisasm's output for one function or one image; branches have labels or addresses."""
    lines = text.splitlines()
    labels: dict[str, int] = {}
    waiting: list[str] = []
    for line in lines:
        if label := LABEL.match(line):
            waiting.append(label[1])
        elif found := LINE.match(line):
            labels.update(dict.fromkeys(waiting, int(found[1], 16)))
            waiting = []
    code = {}
    for found in filter(None, map(LINE.match, lines)):
        address, guard, opcode, rest = found.groups()
        targets: tuple[int, ...] = ()
        if opcode.split(".")[0] in BRANCHES:
            named = [labels[label] for label in re.findall(r"\.L_x_\d+", rest)]
            plain = re.search(r"(?<!-)\b0x([0-9a-f]+)\s*$", rest)
            targets = tuple(named) or ((int(plain[1], 16),) if plain and opcode.startswith("BRA") else ())
        operands = tuple(operand.strip() for operand in rest.split("(*")[0].split(",") if operand.strip())
        code[int(address, 16)] = Instruction(int(address, 16), guard or "", opcode, operands, targets)
    return code


def functions(text: str) -> dict[str, Code]:
    """Name -> code, from the output of `nvdisasm -c` for a cubin with several kernels."""
    pieces = re.split(r"^\.text\.(\S+):$", text, flags=re.M)
    return {name: parse(part) for name, part in zip(pieces[1::2], pieces[2::2])}


def blocks(code: Code) -> dict[int, list[Instruction]]:
    """Basic blocks, by the address of their first instruction."""
    leaders = {next(iter(code))}
    for instruction in code.values():
        if instruction.name in BRANCHES:
            leaders.update((*instruction.targets, instruction.address + SIZE))
    found: dict[int, list[Instruction]] = {}
    for address, instruction in code.items():
        if address in leaders:
            found[address] = piece = []
        piece.append(instruction)
    return found


@dataclass(frozen=True)
class Loop:
    """The number of instructions of each kind in a loop, including the loops inside it.

    Attributes:
        hgmma: asynchronous products, including UTCHMMA.
        fences: between writes to shared memory and the reads of an asynchronous product (fence.proxy.async).
        copies: cp.async.
        stores: other writes to shared memory.
    """

    instructions: int
    hgmma: int
    hmma: int
    ex2: int
    fences: int
    copies: int
    stores: int

    @property
    def counts(self) -> list[int]:
        return [self.instructions, self.hgmma, self.hmma, self.ex2]


def loops(code: Code) -> list[Loop]:
    """Natural loops with a product or an exponential, by address (Aho, Lam, Sethi, Ullman: Compilers, section 9.6)."""
    pieces = blocks(code)
    graph = {leader: piece[-1].successors for leader, piece in pieces.items()}
    before: dict[int, list[int]] = {leader: [] for leader in graph}
    for leader, after in graph.items():
        for successor in after:
            before.setdefault(successor, []).append(leader)
    entry = next(iter(graph))
    everywhere = _reach(graph, entry)
    bodies: dict[int, set[int]] = {}
    for leader, after in graph.items():
        for head in after:
            if leader not in everywhere or head > leader:
                continue
            if leader not in _reach(graph, entry, without=head):
                bodies.setdefault(head, {head}).update(_reach(before, leader, without=head))
    found = [_count(pieces[leader] for leader in sorted(body)) for _, body in sorted(bodies.items())]
    return [loop for loop in found if any(loop.counts[1:])]


def _reach(graph: Mapping[int, Sequence[int]], start: int, without: int | None = None) -> set[int]:
    reached, left = set(), [start]
    while left:
        at = left.pop()
        if at != without and at in graph and at not in reached:
            reached.add(at)
            left.extend(graph[at])
    return reached


def _count(pieces: Iterator[list[Instruction]]) -> Loop:
    body = [instruction for piece in pieces for instruction in piece]
    names = [instruction.name for instruction in body]
    return Loop(
        len(body),
        hgmma=names.count("HGMMA") + names.count("UTCHMMA"),
        hmma=names.count("HMMA"),
        ex2=sum(instruction.opcode.startswith("MUFU.EX2") for instruction in body),
        fences=sum(instruction.opcode.startswith("FENCE.VIEW.ASYNC") for instruction in body),
        copies=names.count("LDGSTS"),
        stores=names.count("STS") + names.count("STSM"),
    )
