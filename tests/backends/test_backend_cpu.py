"""If the compiled extension is missing or broken, a message says what to do, and the reference computes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rsattn
from rsattn import BackendError
from rsattn.backends import cpu, dispatch, extension
from rsattn.call import Call
from rsattn.contract import NORMS


@pytest.fixture
def fresh():
    """Clears the cached state of the extension before and after the test."""
    kept = (extension.load, extension.cuda_build)
    for answer in kept:
        answer.cache_clear()
    yield
    for answer in kept:
        answer.cache_clear()


@pytest.fixture
def not_built(fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    without = lambda name, *rest: None if name == "rsattn._C" else real(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    monkeypatch.delenv("RSATTN_EXTENSION", raising=False)


QUERY = torch.ones(1, 2, 5, 8)


def test_not_built(not_built) -> None:
    status = rsattn.backends("cpu")["cpu"]
    assert status.available is False
    for words in ("rsattn/_C.so is not installed", "apt install g++", "--force-reinstall --no-deps --no-binary rsattn"):
        assert words in status.reasons[0]
    assert dispatch.choose(Call((QUERY,) * 3), None).name == "reference"
    with pytest.raises(BackendError, match="no C\\+\\+17 compiler"):
        rsattn.residual_attention(QUERY, QUERY, QUERY, backend="cpu")


@pytest.fixture
def no_imports_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rsattn info` imports all packages in a process of its own, which takes seconds; here it is not about them."""
    monkeypatch.setattr("rsattn.cli.info.faults_apart", lambda packages: {})


def test_info_says_how_to_get_it(not_built, no_imports_apart, capsys: pytest.CaptureFixture[str]) -> None:
    from rsattn.cli import info

    info.run()
    printed = capsys.readouterr().out
    assert "cpu        cannot run" in printed
    assert "apt install g++" in printed
    assert "compiled kernels use" not in printed


def test_a_build_that_cannot_be_loaded(fresh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "_C.so"
    path.write_bytes(b"not a library")
    monkeypatch.setenv("RSATTN_EXTENSION", str(path))
    (reason,) = rsattn.backends("cpu")["cpu"].reasons
    assert str(path) in reason
    assert f"cannot be loaded into PyTorch {torch.__version__}" in reason
    assert "build it again" in reason


def test_the_operators_cannot_be_had_from_it(not_built) -> None:
    """A program that was exported elsewhere looks them up by name."""
    with pytest.raises(RuntimeError, match=r"rsattn/_C\.so is not installed"):
        extension.operators()


def test_other_devices_are_refused_without_loading_anything(fresh) -> None:
    assert dispatch.BACKENDS["cpu"].missing("cuda") == ["runs on CPU tensors, not cuda"]
    assert extension.load.cache_info().currsize == 0


def test_info_names_the_instruction_set(no_imports_apart, capsys: pytest.CaptureFixture[str]) -> None:
    if reasons := rsattn.backends("cpu")["cpu"].reasons:
        pytest.skip("; ".join(reasons))
    from rsattn.cli import info

    info.run()
    assert f"compiled kernels use {cpu.variants()[0]}" in capsys.readouterr().out


def test_what_crosses_to_cpp() -> None:
    """A call passes a norm as a number and no string: PyTorch's stable ABI (2.13) never frees a string argument."""
    if reasons := rsattn.backends("cpu")["cpu"].reasons:
        pytest.skip("; ".join(reasons))
    operators = extension.operators()
    assert tuple(operators.norms().split()) == NORMS
    for name in ("cpu_forward", "cpu_backward", "cpu_add_best_head", "cpu_add_best_head_", "cpu_best_head_gradient"):
        assert "str" not in {str(argument.type) for argument in getattr(operators, name).default._schema.arguments}


def test_no_mask_has_no_gradient() -> None:
    if reasons := rsattn.backends("cpu")["cpu"].reasons:
        pytest.skip("; ".join(reasons))
    kept = QUERY, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, 2, 5)
    mask = torch.zeros(1, 2, 5, 5)
    with pytest.raises(RuntimeError, match="and be the mask"):
        extension.operators().cpu_backward(QUERY, None, *[QUERY] * 3, None, None, *kept, 0.0, 1.0, False, mask, 0)


def test_a_packed_gradient_of_two_lengths_is_refused() -> None:
    """Otherwise a gradient of twice as many keys would be written outside its memory."""
    if reasons := rsattn.backends("cpu")["cpu"].reasons:
        pytest.skip("; ".join(reasons))
    keys = torch.ones(1, 2, 10, 8)
    kept = QUERY, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, 2, 5)
    with pytest.raises(RuntimeError, match="have one length"):
        extension.operators().cpu_backward(QUERY, None, QUERY, keys, keys, None, None, *kept, 0.0, 1.0, True, None, 0)


OUT_OF_MEMORY = """
import resource
import torch
import rsattn

torch.set_num_threads(2)
def call(keys):
    query, key = torch.ones(1, 2, 24, 16), torch.ones(1, 2, 1, 16).expand(-1, -1, keys, -1)
    rsattn.residual_attention(query, key, key, backend="cpu")
call(100)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
# 64 MiB is enough for the rest of the call, but not for a thread's packed keys of more than 128 MiB.
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, -1))
try:
    call(2**21)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as on Linux; run it there")
def test_a_thread_without_memory_says_so() -> None:
    if reasons := rsattn.backends("cpu")["cpu"].reasons:
        pytest.skip("; ".join(reasons))
    ran = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, check=False, timeout=300
    )
    assert "not enough memory" in ran.stdout, ran.stdout + ran.stderr
