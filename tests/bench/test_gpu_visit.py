"""gpu_visit.sh with a Python that only records its arguments: what runs, what is repeated, what is stored."""

import os
import shutil
import subprocess
import tarfile
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
  *"rsattn bench"*) mkdir -p "${{@: -1}}"; echo '{{}}' > "${{@: -1}}/{written}" ;;
esac
if [ -e {fail} ] && [[ "$*" == *"$(cat {fail})"* ]]; then echo "it broke"; exit 3; fi
"""


@pytest.fixture
def visit(tmp_path):
    """Runs the script in a copy; returns (exit code, output, recorded command lines)."""
    (tmp_path / "bench").mkdir()
    shutil.copy(SCRIPT, tmp_path / "bench")
    log, fail, stub, tools = (tmp_path / name for name in ("log", "fail", "python", "bin"))
    tools.mkdir()
    for name, noted in (
        ("compute-sanitizer", "sanitizer $2 ${*: -1} caching=$PYTORCH_NO_CUDA_MEMORY_CACHING"),
        ("nvcc", "nvcc"),
        ("nvidia-smi", "nvidia-smi"),
        ("cmake", "cmake for $RSATTN_CUDA_ARCHS: $1 $2"),
    ):
        tool = tools / name
        tool.write_text(f'#!/bin/bash\necho "{noted}" >> {log}\n')
        tool.chmod(0o755)

    def run(
        *steps, gpu="Some GPU", failing="", kernels="kernels compiled by CUDA 13.0", written="results.json", **settings
    ):
        stub.write_text(STUB.format(log=log, gpu=gpu, fail=fail, kernels=kernels, written=written))
        stub.chmod(0o755)
        log.write_text("")
        fail.write_text(failing) if failing else fail.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHON": str(stub), "PATH": f"{tools}:{os.environ['PATH']}", **settings}
        done = subprocess.run(
            ["bash", str(tmp_path / "bench" / "gpu_visit.sh"), str(tmp_path / "visit"), *steps],
            capture_output=True,
            text=True,
            env=environment,
        )
        return done.returncode, done.stdout + done.stderr, log.read_text().splitlines()

    run.folder = tmp_path
    return run


def asked(log, words):
    return [line for line in log if words in line]


def test_everything_once_and_the_results_are_kept_and_packed(visit):
    code, output, log = visit(RUNS="2")
    assert code == 0, output
    assert len(asked(log, "-m pytest")) == 1
    assert asked(log, "sanitizer") == [
        f"sanitizer {tool} {kernels} caching=1" for kernels in ("triton", "cuda") for tool in ("memcheck", "racecheck")
    ]
    assert asked(log, "cmake") == ["cmake for 80: -S .", f"cmake for : --build {visit.folder}/visit/build-sm80"]
    assert len(asked(log, "rsattn bench --no-compile")) == 2
    assert len(asked(log, "rsattn bench --only overhead")) == 1
    assert asked(log, "bench.tune --dry-run")
    results = visit.folder / "bench" / "results" / "some-gpu"
    assert sorted(path.name for path in results.iterdir()) == ["run-1.json", "run-2.json"]
    with tarfile.open(visit.folder / "visit.tar.gz") as packed:
        assert {"visit/bench-2/results.json", "visit/repeats.log"} <= set(packed.getnames())
    code, output, log = visit(RUNS="2")
    assert code == 0
    assert output.count("passed before") == output.count("==")
    assert not asked(log, "-m pytest") + asked(log, "rsattn bench")


def test_only_the_steps_that_are_named(visit):
    code, output, log = visit("overhead", "memcheck")
    assert code == 0, output
    assert asked(log, "rsattn bench") == ["-m rsattn bench --only overhead --out " + f"{visit.folder}/visit/overhead"]
    assert [line.split()[1] for line in asked(log, "sanitizer")] == ["memcheck", "memcheck"]
    assert not asked(log, "pip install") + asked(log, "-m pytest")


def test_a_step_that_does_not_exist(visit):
    code, output, log = visit("benchmarks")
    assert code == 2
    assert "no step is called benchmarks; they are: install" in output
    assert not log


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


def test_no_step_starts_that_has_no_time(visit):
    code, output, log = visit(SECONDS_LEFT="10")
    assert code == 1
    assert "install: no time left" in output
    assert "FAILED: install environment repeats" in output
    assert not asked(log, "-m pytest")
    assert (visit.folder / "visit.tar.gz").exists()


def test_cuda_kernels_that_are_not_compiled_are_a_failure(visit):
    code, output, _ = visit(kernels="kernels not compiled")
    assert code == 1
    assert "FAILED: environment" in output


def test_a_failed_benchmark_keeps_no_results_but_what_it_had(visit):
    code, output, _ = visit(failing="rsattn bench --no-compile", written=".results.json.7.partial")
    assert code == 1
    assert "FAILED: bench-1" in output
    assert not list((visit.folder / "bench" / "results").rglob("*.json"))
    assert (visit.folder / "visit" / "bench-1" / "unfinished.json").exists()


def test_without_a_gpu_nothing_is_timed(visit):
    code, output, log = visit(gpu="")
    assert code == 1
    assert "no GPU: PyTorch finds none" in output
    assert not asked(log, "rsattn bench") + asked(log, "-m pytest")


def test_without_a_folder_it_says_what_is_missing(visit):
    done = subprocess.run(["bash", str(visit.folder / "bench" / "gpu_visit.sh")], capture_output=True, text=True)
    assert done.returncode
    assert "FOLDER is missing" in done.stderr
