"""The machine code and launches of the CUDA kernels match the committed table (`cuda_resources.py --write`)."""

import cuda_resources
import pytest
from cuda_model import SHARED_MEMORY

from rsattn.backends.extension import cuda_build

BUILD = cuda_build()
compiled = pytest.mark.skipif(
    BUILD is None, reason="the extension was installed without CUDA kernels; with nvcc on PATH, install it again"
)


@pytest.fixture(scope="module")
def now():
    version, architectures = BUILD.split()
    made_by = cuda_resources.committed()[0]
    if version != made_by or architectures != "80;90a":
        pytest.skip(f"the table was made by CUDA {made_by} for 80;90a, this is CUDA {version} for {architectures}")
    return cuda_resources.kernels()


@compiled
def test_nothing_grew(now):
    before = {(row.kernel, row.target): row for row in cuda_resources.committed()[1]}
    assert {(row.kernel, row.target) for row in now} == before.keys()
    grown = [
        (row, before[row.kernel, row.target])
        for row in now
        if row.registers > before[row.kernel, row.target].registers or row.stack > before[row.kernel, row.target].stack
    ]
    assert not grown, "look at what changed; if it is meant, rewrite the table"


@compiled
def test_products_are_those_of_the_architecture(now):
    """Every attention kernel uses tensor cores; on sm_90a only instructions of a warpgroup."""
    attention = [row for row in now if "float16" in row.kernel]
    assert len(attention) == 2 * 32
    for row in attention:
        assert (row.hgmma > 0, row.hmma > 0) == ((True, False) if row.target == "sm90a" else (False, True)), row


@pytest.mark.skipif(
    "90a" not in (BUILD or ""),
    reason="the extension has no kernels for sm_90a; with nvcc on PATH, install it again without RSATTN_CUDA_ARCHS",
)
def test_no_operand_of_an_asynchronous_product_is_overwritten():
    """Early writes to shared memory are not checked: these kernels also store data there that no product reads."""
    found = {name: hazards for name, (_, hazards) in cuda_resources.watched().items()}
    assert sum(one.watched for one in found.values()) > 0
    assert {name: one.overwritten for name, one in found.items() if one.overwritten} == {}


@compiled
def test_launches_are_those_of_the_table(now):
    assert cuda_resources.launches(now) == cuda_resources.committed()[2]


DTYPES = ("float16", "bfloat16")
# Bytes of stack since rows have two statistics instead of one; not timed.
STACK = {("Backward {} 64", "sm90a"): 48}


def test_no_kernel_spills():
    allowed = {(name.format(dtype), target): most for (name, target), most in STACK.items() for dtype in DTYPES}
    rows = cuda_resources.committed()[1]
    assert [row for row in rows if row.stack > allowed.get((row.kernel, row.target), 0)] == []


def test_every_launch_fits():
    for row in cuda_resources.committed()[2]:
        assert row.resident >= 1, row
        assert row.shared <= SHARED_MEMORY[row.target], row


def test_the_papers_own_length_takes_one_pass():
    """N = 577, and DINOv2's 1370 with 227 KiB for a block, need no second kernel for the norm."""
    passes = {}
    for row in cuda_resources.committed()[2]:
        passes.setdefault((row.call, row.target), []).append(row.kernel)
    assert passes["N577 E64", "sm90"] == passes["N1370 E64", "sm90"] == passes["N577 E64", "sm80"] == ["Forward"]
    assert passes["N4096 E64", "sm90"] == passes["N577 E64", "sm86"] == ["Forward", "ColumnSums"]
