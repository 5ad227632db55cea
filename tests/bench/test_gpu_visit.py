"""gpu_visit.sh, with a Python that only notes what it was asked: what runs, what is repeated, what is kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu_visit.sh"
pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs bash and coreutils' timeout")

STUB = """#!/bin/bash
echo "$*" >> {log}
case "$*" in
  *is_available*) echo "{gpu}" ;;
  *folder_name*) echo some-gpu ;;
  *"rsattn info"*) echo "CUDA C++ {kernels}" ;;
  *"rsattn bench"*) mkdir -p "${{@: -1}}"; echo '{{}}' > "${{@: -1}}/results.json" ;;
esac
if [ -e {fail} ] && [[ "$*" == *"$(cat {fail})"* ]]; then echo "it broke"; exit 3; fi
"""


@pytest.fixture
def visit(tmp_path):
    """Runs the script in a copy; returns (exit code, output, what Python was asked)."""
    (tmp_path / "bench").mkdir()
    shutil.copy(SCRIPT, tmp_path / "bench")
    log, fail, stub, tools = (tmp_path / name for name in ("log", "fail", "python", "bin"))
    tools.mkdir()
    for name, noted in (
        (
            "compute-sanitizer",
            "sanitizer $2 $(grep -oE 'triton|cuda' <<< \"$*\") caching=$PYTORCH_NO_CUDA_MEMORY_CACHING",
        ),
        ("nvcc", "nvcc"),
        ("cmake", "cmake for $RSATTN_CUDA_ARCHS: $1 $2"),
    ):
        tool = tools / name
        tool.write_text(f'#!/bin/bash\necho "{noted}" >> {log}\n')
        tool.chmod(0o755)

    def run(gpu="Some GPU", failing="", kernels="kernels compiled by CUDA 13.0", **settings):
        stub.write_text(STUB.format(log=log, gpu=gpu, fail=fail, kernels=kernels))
        stub.chmod(0o755)
        log.write_text("")
        fail.write_text(failing) if failing else fail.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHON": str(stub), "PATH": f"{tools}:{os.environ['PATH']}", **settings}
        done = subprocess.run(
            ["bash", str(tmp_path / "bench" / "gpu_visit.sh")], capture_output=True, text=True, env=environment
        )
        return done.returncode, done.stdout + done.stderr, log.read_text().splitlines()

    run.folder = tmp_path
    return run


def asked(log, words):
    return [line for line in log if words in line]


def test_everything_once_and_the_results_are_kept(visit):
    code, output, log = visit(RUNS="2")
    assert code == 0, output
    assert len(asked(log, "-m pytest")) == 3
    assert asked(log, "sanitizer") == [
        f"sanitizer {tool} {kernels} caching=1" for kernels in ("triton", "cuda") for tool in ("memcheck", "racecheck")
    ]
    assert asked(log, "cmake") == ["cmake for 80: -S .", f"cmake for : --build {visit.folder}/gpu-visit/sm80"]
    assert len(asked(log, "rsattn bench")) == 2
    assert asked(log, "bench.report")
    assert not asked(log, "bench.tune")
    results = visit.folder / "bench" / "results" / "some-gpu"
    assert sorted(path.name for path in results.iterdir()) == ["run-1.json", "run-2.json"]
    code, output, log = visit(RUNS="2")
    assert code == 0
    assert output.count("passed before") == output.count("==")
    assert not asked(log, "-m pytest") + asked(log, "rsattn bench")


def test_what_failed_is_named_does_not_stop_the_rest_and_is_repeated(visit):
    code, output, log = visit(failing="tests/kernels tests/test_ops.py")
    assert code == 1
    assert "FAILED: kernels" in output
    assert "it broke" in output
    assert asked(log, "rsattn bench")
    code, output, log = visit()
    assert code == 0
    assert len(asked(log, "-m pytest")) == 1
    assert not asked(log, "rsattn bench")


def test_cuda_kernels_that_are_not_compiled_are_a_failure(visit):
    code, output, _ = visit(kernels="kernels not compiled")
    assert code == 1
    assert "FAILED: cuda-compiled" in output


def test_a_failed_benchmark_keeps_no_results(visit):
    code, output, _ = visit(failing="rsattn bench")
    assert code == 1
    assert "FAILED: bench-1" in output
    assert not list((visit.folder / "bench" / "results").rglob("*.json"))


def test_tuning_comes_when_asked_for_and_before_the_benchmarks(visit):
    _, _, log = visit(TUNE="1")
    assert log.index(*asked(log, "bench.tune")) < log.index(*asked(log, "rsattn bench"))


@pytest.mark.skipif(sys.platform != "linux", reason="the script is tried on Linux only")
def test_without_a_gpu_it_goes_as_far_as_it_can(visit):
    code, output, log = visit(gpu="")
    assert code == 0
    assert "needs a GPU" in output
    assert "no GPU: its results stay in" in output
    assert asked(log, "rsattn bench")
    assert not asked(log, "sanitizer") + asked(log, "bench.report")
    assert not (visit.folder / "bench" / "results").exists()
