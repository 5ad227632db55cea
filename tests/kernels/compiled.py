"""The shipped configurations, compiled for a target once for all tests that need them.

All of them where the kernels are not those of the committed table; else some of them, because the same code compiled by
the same Triton gives the same table. A separate process compiles, because a test process without a GPU uses Triton's
interpreter instead of its compiler.
"""

import functools
import json
import os
import subprocess
import sys

import pytest
import triton

CODE = """
import json, sys
from dataclasses import asdict
from rsattn.kernels import resources
cases = resources.CASES[:: int(sys.argv[2])]
print(json.dumps([asdict(measured) for measured in resources.measure(cases, sys.argv[1])]))
"""
SOME = 16  # compiles one case of sixteen


@functools.cache
def _compiled(target, step):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", CODE, target, str(step)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def compiled(target):
    """(`resources.Measured` of the configurations, as dictionaries; whether these are all of them)."""
    from rsattn.kernels import resources

    table = resources.committed()
    made_by, same = table.triton, table.sources == resources.digest()
    if triton.__version__ != made_by:
        pytest.skip(f"the table was made by Triton {made_by}, this is {triton.__version__}; use constraints.txt")
    return _compiled(target, SOME if same else 1), not same
