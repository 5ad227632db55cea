"""Every shipped configuration, compiled for a target once for all tests that need it.

A separate process compiles, because a test process without a GPU uses Triton's interpreter instead of its compiler.
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
print(json.dumps([asdict(measured) for measured in resources.measure(resources.CASES, sys.argv[1])]))
"""


@functools.cache
def _compiled(target):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", CODE, target], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def compiled(target):
    """`resources.Measured` of every configuration, as dictionaries."""
    from rsattn.kernels import resources

    made_by = resources.committed()[0]
    if triton.__version__ != made_by:
        pytest.skip(f"the table was made by Triton {made_by}, this is {triton.__version__}; use constraints.txt")
    return _compiled(target)
