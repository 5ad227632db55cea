"""Every shipped configuration, compiled for each target without a GPU, matches the committed table.

python -m rsattn.kernels.resources --write      rewrites the table
"""

from dataclasses import asdict

import pytest
from compiled import compiled

TARGETS = ["sm80", "sm90", "sm100", "gfx942"]
# Shared memory of a block (CUDA C++ programming guide, table of compute capabilities; for gfx942 the 64 KiB LDS of a
# compute unit).
SHARED_LIMIT = {"sm80": 163 * 1024, "sm90": 227 * 1024, "sm100": 227 * 1024, "gfx942": 64 * 1024}
# Bytes of stack that a kernel may use. The first was timed on an H100 with 24 bytes as faster than every variant that
# needs none (bench/README.md, "Which tiles"); the second was the fastest with 0 bytes, before its output was scaled at
# the end. 16 bytes more came with the two statistics of a row, and have not been timed.
STACK = {
    ("row_forward", "bfloat16 H12 N197 E64", "sm90"): 40,
    ("row_forward", "bfloat16 H6 N197 E128", "sm90"): 32,
    # Column sums beside another norm, whose terms are two more registers.
    ("row_forward", "bfloat16 H12 N197 E64 received", "sm90"): 48,
    # Outside the loop.
    ("column_sums", "float32 H12 N577 E64 received alone", "sm80"): 8,
    ("column_sums", "float32 H12 N577 E64 received alone", "sm90"): 8,
}


def resources():
    from rsattn.kernels import resources

    return resources


def committed(target):
    return [row for row in resources().committed().rows if row.target == target]


def growth(before, now):
    """The resources of which `now` needs more than `before`; loops are compared by position.

    Fewer asynchronous products in a loop count too, because older instructions replace them.
    """
    found = [
        f"{name} {before[name]} -> {now[name]}"
        for name in ("registers", "spilled", "shared")
        if now[name] > before[name]
    ]
    old, new = before["loops"], now["loops"]
    if len(old) != len(new) or any(loop[0] > was[0] or loop[1] < was[1] for loop, was in zip(new, old)):
        found.append(f"loops {old} -> {new}")
    return found


@pytest.mark.parametrize("target", TARGETS)
class TestCommittedTable:
    def test_covers_every_case(self, target):
        assert {row.case for row in committed(target)} == {case.name for case in resources().CASES}

    def test_fits_in_shared_memory(self, target):
        too_large = [row for row in committed(target) if row.shared > SHARED_LIMIT[target]]
        assert not too_large

    def test_nothing_grew(self, target):
        measured, whole = compiled(target)
        now = {(one["row"]["kernel"], one["row"]["case"]): one["row"] for one in measured}
        before = {(row.kernel, row.case): asdict(row) for row in committed(target)}
        assert now.keys() == before.keys() if whole else now and now.keys() <= before.keys()
        grown = {key: found for key, row in now.items() if (found := growth(before[key], row))}
        assert not grown, "look at what changed; if it is meant, rewrite the table"


def test_the_table_is_of_these_sources():
    """Where it is not, test_nothing_grew compiles every configuration, which takes minutes."""
    assert resources().committed().sources == resources().digest(), "run python -m rsattn.kernels.resources --write"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"registers": 90, "loops": [[300, 8, 0, 32]]}, []),
        ({"loops": [[300, 0, 64, 32]]}, ["loops [[309, 8, 0, 32]] -> [[300, 0, 64, 32]]"]),
        ({"registers": 101}, ["registers 100 -> 101"]),
        ({"loops": [[310, 8, 0, 32]]}, ["loops [[309, 8, 0, 32]] -> [[310, 8, 0, 32]]"]),
        ({"loops": []}, ["loops [[309, 8, 0, 32]] -> []"]),
    ],
)
def test_growth(change, found):
    before = {"registers": 100, "spilled": 0, "shared": 0, "loops": [[309, 8, 0, 32]]}
    assert growth(before, before | change) == found


@pytest.mark.parametrize("target", ["sm80", "sm90"])
def test_no_configuration_spills(target):
    assert [row for row in committed(target) if row.spilled > STACK.get(row.key, 0)] == []
