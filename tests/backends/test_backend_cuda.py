"""When the CUDA kernels can be used, and the reasons when they cannot. tests/kernels checks their results."""

from __future__ import annotations

import pytest
import torch

import rsattn
from rsattn.backends import cuda as backend_cuda
from rsattn.backends import dispatch, extension
from rsattn.backends.cuda import CudaBackend
from rsattn.call import Call
from rsattn.cli import info


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU of compute capability 9.0 whose kernels are compiled and run."""
    operators = torch.ops.rsattn_C
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(extension, "load", lambda: "")
    monkeypatch.setattr(extension, "cuda_build", lambda: "13.0 80;90a")
    monkeypatch.setattr(operators, "cuda_missing", lambda device: "", raising=False)


def reasons() -> list[str]:
    return CudaBackend().missing("cuda")


def test_other_devices() -> None:
    assert CudaBackend().missing("cpu") == ["runs on CUDA tensors, not cpu"]
    assert CudaBackend().caveat("cpu") == ""


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reasons() == ["no CUDA device is available"]


def test_everything_is_there(a_gpu: None) -> None:
    assert reasons() == []


def test_another_vendor(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert reasons() == ["runs on NVIDIA GPUs, and this PyTorch is built for ROCm"]


def test_no_extension(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "load", lambda: "it is broken")
    assert reasons() == ["it is broken"]


def test_an_extension_without_them(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "cuda_build", lambda: None)
    (reason,) = reasons()
    for words in ("without CUDA kernels", "no nvcc", "CUDACXX", "--force-reinstall --no-deps --no-binary rsattn"):
        assert words in reason


def test_a_gpu_they_were_not_built_for(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.rsattn_C, "cuda_missing", lambda device: f"not for GPU {device}")
    assert reasons() == ["not for GPU 0"]


def test_never_chosen_by_itself_where_no_gpu_has_verified_it(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_cuda, "VERIFIED", frozenset({(8, 0)}))
    monkeypatch.setattr(backend_cuda, "FASTEST", frozenset({(8, 0)}))
    status = rsattn.backends("cuda")["cuda"]
    assert (status.available, status.automatic) == (True, False)
    assert status.caveat == "never verified on this architecture"
    assert next(iter(rsattn.backends("cuda"))) == "cuda"  # it comes first once it can be chosen


def test_not_chosen_where_it_is_right_but_slower(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_cuda, "VERIFIED", frozenset({(9, 0)}))
    monkeypatch.setattr(backend_cuda, "FASTEST", frozenset())
    status = rsattn.backends("cuda")["cuda"]
    assert (status.available, status.automatic) == (True, False)
    assert status.caveat == "not faster than backend='triton' on this architecture"


def test_the_device_that_is_asked_about_counts(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the current one, which may be another GPU of the machine."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((9, 0), (7, 5))[device or 0])
    monkeypatch.setattr(torch.ops.rsattn_C, "cuda_missing", lambda device: ("", "not for this GPU")[device])
    assert rsattn.backends("cuda:0")["cuda"].reasons == ()
    assert rsattn.backends("cuda:1")["cuda"].reasons == ("not for this GPU",)
    assert {status.reasons for status in rsattn.backends("cuda:2").values()} == {("there is no cuda:2",)}
    assert dispatch.BACKENDS["triton"].missing("cuda", 0) == []
    assert dispatch.BACKENDS["triton"].missing("cuda", 1) == ["needs compute capability (8, 0), this GPU has (7, 5)"]


def test_chosen_where_it_is_the_fastest(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_cuda, "VERIFIED", frozenset({(9, 0)}))
    monkeypatch.setattr(backend_cuda, "FASTEST", frozenset({(9, 0)}))
    status = rsattn.backends("cuda")["cuda"]
    assert status.automatic is True
    assert status.caveat == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (8, 0))
    assert rsattn.backends("cuda")["cuda"].automatic is False


def test_info_says_so(a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_cuda, "VERIFIED", frozenset())
    (line,) = [line for line in info._backends("cuda") if line.strip().startswith("cuda ")]
    assert "runs only with backend='cuda'; never verified on this architecture" in line
    assert "float16, bfloat16; head_dim up to 128" in line


@pytest.mark.parametrize(
    ("build", "verified", "words"),
    [
        ("13.0 80;90a", frozenset(), "compiled by CUDA 13.0 for sm_80, sm_90a; verified on no architecture yet"),
        ("12.4 80", frozenset({(9, 0), (8, 0)}), "compiled by CUDA 12.4 for sm_80; verified on sm_80, sm_90"),
        (None, frozenset(), "kernels not compiled: rsattn was installed from a wheel, or without a suitable nvcc"),
    ],
)
def test_info_has_the_builds_stamp(
    build: str | None, verified: frozenset[tuple[int, int]], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info, "cuda_build", lambda: build)
    monkeypatch.setattr(info, "VERIFIED", verified)
    (line,) = [line for line in info._versions() if line.startswith("CUDA C++")]
    assert words in line


def test_the_stamp_is_the_librarys() -> None:
    build = extension.cuda_build()
    if build is None:
        pytest.skip("the extension was installed without CUDA kernels; with nvcc on PATH, install it again")
    version, architectures = build.split()
    assert float(version) >= 11.8
    assert architectures


def test_without_a_gpu_the_library_says_so_and_does_not_crash() -> None:
    """Called directly, without the check in Python."""
    if extension.cuda_build() is None or torch.cuda.is_available():
        pytest.skip("needs CUDA kernels (nvcc on PATH when installing) and no GPU")
    assert torch.ops.rsattn_C.cuda_missing(0) != ""


def test_by_name_it_never_falls_back() -> None:
    query = torch.ones(1, 1, 5, 16, dtype=torch.float16)
    with pytest.raises(rsattn.BackendError, match=r"backend='cuda' cannot do this call.*runs on cuda tensors, not cpu"):
        rsattn.residual_attention(query, query, query, backend="cuda")
    assert dispatch.choose(Call((query,) * 3), None).name != "cuda"
