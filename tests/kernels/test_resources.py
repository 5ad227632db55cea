"""Every shipped configuration, compiled for each target without a GPU, against the committed table.

    python -m rsattn.kernels.resources --write      rewrites the table

A process of its own compiles, because a test process on a machine without a GPU has Triton's interpreter in the
place of its compiler.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import triton

TARGETS = ["sm80", "sm90", "sm100", "gfx942"]
# A thread block may use this much shared memory (CUDA C++ programming guide, table of compute capabilities; for
# gfx942 the 64 KiB LDS of a compute unit).
SHARED_LIMIT = {"sm80": 163 * 1024, "sm90": 227 * 1024, "sm100": 227 * 1024, "gfx942": 64 * 1024}


def resources():
    from rsattn.kernels import resources

    return resources


def committed(target):
    return [row for row in resources().committed()[1] if row.target == target]


@pytest.mark.parametrize("target", TARGETS)
class TestCommittedTable:
    def test_covers_every_case(self, target):
        assert {row.case for row in committed(target)} == {case.name for case in resources().CASES}

    def test_fits_in_shared_memory(self, target):
        too_large = [row for row in committed(target) if row.shared > SHARED_LIMIT[target]]
        assert not too_large

    def test_nothing_grew(self, target):
        made_by = resources().committed()[0]
        if triton.__version__ != made_by:
            pytest.skip(f"the table was made by Triton {made_by}, this is {triton.__version__}; use constraints.txt")
        code = (
            "import json; from dataclasses import asdict; from rsattn.kernels import resources as r; "
            f"print(json.dumps([asdict(row) for c in r.CASES for row in r.measure(c, {target!r})]))"
        )
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        now = {(row["kernel"], row["case"]): row for row in json.loads(done.stdout.splitlines()[-1])}
        before = {(row.kernel, row.case): asdict(row) for row in committed(target)}
        assert now.keys() == before.keys()
        grown = {
            key: f"{name} {before[key][name]} -> {row[name]}"
            for key, row in now.items()
            for name in ("registers", "spilled", "shared")
            if row[name] > before[key][name]
        }
        assert not grown, "look at what changed; if it is meant, rewrite the table"


@pytest.mark.parametrize("target", ["sm80", "sm90"])
def test_no_configuration_spills(target):
    assert [row for row in committed(target) if row.spilled] == []
