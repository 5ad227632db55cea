"""Find machine code that overwrites data that an asynchronous product of sm_90 (wgmma) may still read.

The analysis follows the pending products along all branches and loops to a fixed point. A wait, fence or barrier under
a predicate does not count. Called functions are not followed. The rules are from the PTX ISA, "Asynchronous warpgroup
level matrix instructions":

- overwritten: the registers of an A operand may not be written before a wait for the product's group.
- early_writes: a wait covers only its own warpgroup's products, so shared memory may be written only after the next
  barrier. Addresses are not compared, so harmless writes to memory that no product reads are reported too.
- unfenced: a product sees writes to shared memory only after a fence of the asynchronous proxy. Addresses are not
  compared here either.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import zip_longest

from .machine_code import Code, Instruction, blocks

# One step of a product reads 64 rows of 32 bytes of A for any element type: 16 bytes of each of 128 threads.
A_REGISTERS = 4
GROUPS = 8  # pending groups that are distinguished; older ones are merged
WRITES = ("STS", "STSM", "LDGSTS", "ATOMS")


@dataclass(frozen=True)
class Hazards:
    """The instructions found, each after the product that it affects; `watched`: products with A in registers."""

    watched: int
    overwritten: list[str]
    early_writes: list[str]
    unfenced: list[str]


@dataclass(frozen=True)
class _State:
    """The possible state at a point: products not yet in a group, groups (newest first) and writes, by address."""

    open: frozenset[int] = frozenset()
    groups: tuple[frozenset[int], ...] = ()
    waited: bool = False
    unfenced: frozenset[int] = frozenset()

    def joined(self, other: _State | None) -> _State:
        """The possible state where two paths meet."""
        if other is None:
            return self
        groups = zip_longest(self.groups, other.groups, fillvalue=frozenset[int]())
        return _State(
            self.open | other.open,
            tuple(a | b for a, b in groups),
            self.waited or other.waited,
            self.unfenced | other.unfenced,
        )


def hazards(code: Code, warps: int) -> Hazards:
    """The hazards of a kernel. `warps` of a block: up to four are one warpgroup, which has no early writes."""
    operands = {address: a_operand(instruction) for address, instruction in code.items()}
    written = {address: destination(instruction) for address, instruction in code.items()}
    overwritten: set[tuple[int, int]] = set()
    early: set[int] = set()
    unfenced: set[int] = set()

    def step(state: _State, now: Instruction) -> _State:
        for product in state.open.union(*state.groups):
            if written[now.address] & operands[product]:
                overwritten.add((product, now.address))
        if now.name in WRITES:
            if state.waited:
                early.add(now.address)
            return replace(state, unfenced=state.unfenced | {now.address})
        if now.opcode.startswith("FENCE.VIEW.ASYNC") and not now.guard:
            return replace(state, unfenced=frozenset())
        if now.opcode.startswith("WARPGROUP.DEPBAR"):
            left = int(found[1], 0) if (found := re.match(r"(\w+)", now.operands[-1])) else 0
            return replace(state, groups=state.groups if now.guard else state.groups[:left], waited=warps > 4)
        if now.opcode.startswith(("BAR.SYNC", "BAR.RED")) and not now.guard:
            return replace(state, waited=False)
        if now.name == "HGMMA":
            unfenced.update(state.unfenced)
            products = state.open | {now.address} if operands[now.address] else state.open
            if "gsb0" not in now.operands:
                return replace(state, open=products)
            groups = (products, *state.groups)
            oldest = frozenset().union(*groups[GROUPS:])
            groups = (*groups[: GROUPS - 1], groups[GROUPS - 1] | oldest) if len(groups) > GROUPS else groups
            return replace(state, open=frozenset(), groups=groups)
        return state

    pieces = blocks(code)
    at = {next(iter(code)): _State()}
    ahead = list(at)
    while ahead:
        leader = ahead.pop()
        state = at[leader]
        for instruction in pieces[leader]:
            state = step(state, instruction)
        for following in pieces[leader][-1].successors:
            if following in pieces and (joined := state.joined(at.get(following))) != at.get(following):
                at[following] = joined
                ahead.append(following)
    return Hazards(
        watched=sum(map(bool, operands.values())),
        overwritten=[f"{code[product]} | {code[write]}" for product, write in sorted(overwritten)],
        early_writes=[str(code[write]) for write in sorted(early)],
        unfenced=[str(code[write]) for write in sorted(unfenced)],
    )


def a_operand(instruction: Instruction) -> frozenset[int]:
    """The registers of a product's A operand; none if A is in shared memory, given by a descriptor (gdesc)."""
    if instruction.name != "HGMMA" or not (found := re.match(r"R(\d+)", instruction.operands[1])):
        return frozenset()
    return frozenset(range(int(found[1]), int(found[1]) + A_REGISTERS))


def destination(instruction: Instruction) -> frozenset[int]:
    """The registers it writes. The first operand of a store or branch is read; a predicate may come first."""
    name, operands = instruction.name, instruction.operands
    if name in ("BRX", "WARPSYNC", "RET", "FCHK", "BAR", "R2P", "WARPGROUP", "SYNCS", "CALL") or not operands:
        return frozenset()
    first = operands[1] if re.fullmatch(r"U?PT|U?P\d", operands[0]) and len(operands) > 1 else operands[0]
    if not (found := re.fullmatch(r"R(\d+)(\.\w+)?", first)):
        return frozenset()
    return frozenset(range(int(found[1]), int(found[1]) + width(instruction)))


def width(instruction: Instruction) -> int:
    """The number of registers in its result."""
    name, *modifiers = instruction.opcode.split(".")
    if name == "HGMMA":  # 64 x N elements in 128 threads
        columns = int(modifiers[0].split("x")[1])
        return columns // 2 if modifiers[1] == "F32" else columns // 4
    if name == "HMMA":  # 16 x 8 elements in a warp
        return 4 if modifiers[1] == "F32" else 2
    if name == "LDSM":
        return int(modifiers[-1]) if modifiers[-1] in ("2", "4") else 1
    if name in ("LDG", "LDS", "LDL", "LD", "LDC", "ATOMG", "ATOMS", "ATOM"):
        return 4 if "128" in modifiers else 2 if "64" in modifiers else 1
    if name == "CS2R":
        return 1 if "32" in modifiers else 2
    two = name in ("DADD", "DMUL", "DFMA", "DMNMX", "IDP64") or modifiers[:1] in (["WIDE"], ["F64"])
    return 2 if two or (name == "F2I" and {"S64", "U64"} & set(modifiers)) else 1
