"""The choice of the backend for a call, and the error if none can run it, or not the named one."""

from __future__ import annotations

import importlib.util
import re
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from torch import Tensor

import rsattn
from rsattn import BackendError, kernels, residual_attention
from rsattn.backends import dispatch
from rsattn.backends.base import Backend, Limits
from rsattn.call import Call

CPU = torch.device("cpu")


def query(dtype: torch.dtype = torch.float32, width: int = 16) -> Tensor:
    return torch.ones(2, 3, 5, width, dtype=dtype)


def call(query: Tensor, mask: Tensor | None = None) -> Call:
    return Call((query, query, query), mask)


def chosen(query: Tensor, mask: Tensor | None = None, name: str | None = None) -> str:
    return dispatch.choose(call(query, mask), name).name


class Fake(Backend):
    """A backend whose limits and availability a test sets; it never computes."""

    def __init__(self, name: str, limits: Limits, missing: str | None = None, automatic: bool = True) -> None:
        self.name, self.limits = name, limits
        self._missing, self._automatic = missing, automatic

    def missing(self, device_type: str, index: int | None = None) -> list[str]:
        return [self._missing] if self._missing else []

    def automatic(self, device_type: str, index: int | None = None) -> bool:
        return self._automatic

    def never(self, *given: object) -> NoReturn:
        raise AssertionError("asked to compute")

    forward = received = backward = add_best_head = best_head_gradient = gate_gradients = never


NARROW = Limits(dtypes=(torch.float16,), devices=("cuda", "xpu"), max_head_dim=8)
WIDE = Limits(dtypes=(torch.float32,))


def use(monkeypatch: pytest.MonkeyPatch, *fakes: Fake) -> None:
    monkeypatch.setattr(dispatch, "BACKENDS", {fake.name: fake for fake in fakes})


def test_a_call_on_the_cpu_takes_the_compiled_kernels() -> None:
    """Even with TRITON_INTERPRET set: the interpreter only checks kernels and is never chosen automatically."""
    assert chosen(query()) == "cpu"
    assert chosen(query(torch.float64)) == "reference"
    assert chosen(query(), torch.zeros(5, 5, requires_grad=True)) == "cpu"
    assert rsattn.backends("cpu")["triton"].automatic is False
    assert rsattn.backends("cpu")["cpu"].automatic is True
    assert rsattn.backends("cpu")["reference"].automatic is True


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_reference_takes_every_dtype(dtype: torch.dtype) -> None:
    mask = torch.zeros(5, 5, requires_grad=True)
    assert chosen(query(dtype, 2048), mask, "reference") == "reference"
    assert dtype in rsattn.backends()["reference"].dtypes


@pytest.mark.parametrize("name", ["Triton", "eager", ""])
def test_unknown_backend(name: str) -> None:
    entries = [
        lambda: residual_attention(query(), query(), query(), backend=name),
        lambda: rsattn.ResidualSelfAttention(16, 2, backend=name),
    ]
    for entry in entries:
        with pytest.raises(ValueError, match="is not known") as error:
            entry()
        assert all(word in str(error.value) for word in (f"backend={name!r}", "None", "'triton'", "'reference'"))


def test_a_named_backend_never_falls_back() -> None:
    """float64 with backend="triton" is an error that names the dtype, although the reference supports it."""
    inputs = [query(torch.float64)] * 3
    with pytest.raises(BackendError) as error:
        residual_attention(*inputs, backend="triton")
    message = str(error.value)
    for words in (
        "backend='triton' cannot do this call",
        "query (2, 3, 5, 16) torch.float64 on cpu, no mask",
        "takes float16, bfloat16, float32, not float64",
        "backend=None takes the fastest that can",
    ):
        assert words in message
    assert residual_attention(*inputs).output.dtype == torch.float64


def test_the_mask_is_described() -> None:
    with pytest.raises(BackendError, match=re.escape("torch.float32 mask (5, 5)")):
        residual_attention(*[query(torch.float64)] * 3, torch.zeros(5, 5), backend="triton")


def test_onnx_export_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert chosen(query()) == "cpu"  # a graph of another kind
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert chosen(query()) == "reference"
    with pytest.raises(BackendError, match=r"has no ONNX form.*backend=None"):
        chosen(query(), name="cpu")


def test_every_limit_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Fake("narrow", NARROW, "no such card"))
    with pytest.raises(BackendError) as error:
        chosen(query(), name="narrow")
    for reason in (
        "runs on cuda or xpu tensors, not cpu",
        "takes float16, not float32",
        "takes head_dim up to 8, not 16",
        "no such card",
    ):
        assert reason in str(error.value)


def test_when_nothing_fits_every_backend_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Fake("narrow", NARROW), Fake("absent", WIDE, "not built here"))
    with pytest.raises(BackendError) as error:
        residual_attention(query(), query(), query(), torch.ones(5, dtype=torch.bool))
    head, *lines = str(error.value).splitlines()
    assert head == ("no backend can do this call (query (2, 3, 5, 16) torch.float32 on cpu, torch.bool mask (5,)):")
    assert [line.split(":")[0].strip() for line in lines] == ["narrow", "absent"]
    assert "takes float16, not float32" in lines[0]
    assert "not built here" in lines[1]


def test_the_first_that_can_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    use(
        monkeypatch,
        Fake("narrow", NARROW),
        Fake("absent", WIDE, "not built here"),
        Fake("slow", WIDE, automatic=False),
        Fake("good", WIDE),
        Fake("late", WIDE),
    )
    assert chosen(query()) == "good"
    assert chosen(query(), name="slow") == "slow"  # it can be named
    assert chosen(query(), name="late") == "late"
    status = rsattn.backends("cpu")
    assert list(status) == ["narrow", "absent", "slow", "good", "late"]
    assert [s.available for s in status.values()] == [True, False, True, True, True]
    assert [s.automatic for s in status.values()] == [True, False, False, True, True]
    assert status["absent"].reasons == ("not built here",)
    assert status["narrow"].max_head_dim == 8


def test_triton_says_that_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    without = lambda name, *rest: None if name == "triton" else real(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    status = rsattn.backends("cpu")["triton"]
    assert status.available is False
    assert "Triton is not installed" in status.reasons[0]
    assert "pip install triton" in status.reasons[0]
    with pytest.raises(BackendError, match="Triton is not installed"):
        residual_attention(*[query()] * 3, backend="triton")
    assert residual_attention(*[query()] * 3).best_head.tolist() == [0, 0]


def test_the_environment_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read three times in one process, with the variable set and unset in between."""
    kernels.interpreted()  # imports the kernels before the variable changes
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: SimpleNamespace(name=name))
    triton = dispatch.BACKENDS["triton"]
    unset = "runs on CUDA tensors (for tests also on a CPU, slowly, with TRITON_INTERPRET=1)"
    bfloat16 = "interpreter computes bfloat16 wrongly"
    for value, asked in ((None, False), ("1", True), ("0", False)):
        if value is None:
            monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        else:
            monkeypatch.setenv("TRITON_INTERPRET", value)
        reasons = triton.refusals(call(query(torch.bfloat16)))
        assert (unset in reasons) is not asked
        assert any(bfloat16 in reason for reason in reasons) is asked


def test_no_cuda_device_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: SimpleNamespace(name=name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert rsattn.backends("cuda")["triton"].reasons == ("no CUDA device is available",)
    assert rsattn.backends("mps")["triton"].reasons == ("runs on CUDA tensors, not mps",)


def test_default_device_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Asked(Fake):
        def missing(self, device_type: str, index: int | None = None) -> list[str]:
            asked.append(device_type)
            return []

    use(monkeypatch, Asked("asked", WIDE))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for available, kind in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=available: answer)
        asked.clear()
        rsattn.backends()
        assert set(asked) == {kind}
    asked.clear()
    rsattn.backends(torch.device("cuda:1"))
    assert set(asked) == {"cuda"}


def test_backends_are_known_by_their_names() -> None:
    assert list(dispatch.BACKENDS) == ["cuda", "triton", "cpu", "reference"]
    assert all(backend.name == name for name, backend in dispatch.BACKENDS.items())


@pytest.mark.parametrize(
    "lacking", ["missing", "forward", "received", "backward", "add_best_head", "best_head_gradient"]
)
def test_a_backend_has_every_function(lacking: str) -> None:
    functions = {name for name in vars(Backend) if getattr(getattr(Backend, name), "__isabstractmethod__", False)}
    made_up = type("MadeUp", (Backend,), dict.fromkeys(functions - {lacking}, Fake.never))
    with pytest.raises(TypeError, match=f"abstract method '?{lacking}"):
        made_up()


class Heir(Fake):
    """Delegates backward passes of more than four keys to "good"."""

    def backward_by(self, call: Call) -> str:
        return "good" if call.key.shape[2] > 4 else self.name


def test_a_backward_pass_can_be_left_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Heir("first", WIDE), Fake("good", WIDE))
    first = dispatch.BACKENDS["first"]
    for keys, name in ((4, "first"), (5, "good")):
        key = torch.ones(2, 3, keys, 16)
        assert dispatch.for_backward(first, Call((query(), key, key))).name == name


@pytest.mark.parametrize("leaf", [0, 1, 2, 3], ids=["query", "key", "value", "mask"])
def test_an_heir_that_cannot_is_a_reason_where_a_gradient_is_wanted(leaf: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Heir("first", WIDE), Fake("good", WIDE, "not built here"))
    inputs, mask = [query(), query(), query()], torch.zeros(5, 5)
    assert dispatch.choose(Call(tuple(inputs), mask), "first").name == "first"
    [*inputs, mask][leaf].requires_grad_()
    words = r"leaves the backward pass of 5 queries and 5 keys to backend='good', which not built here"
    with pytest.raises(BackendError, match=words):
        dispatch.choose(Call(tuple(inputs), mask), "first")
    packed = torch.ones(2, 5, 3, 3, 16, requires_grad=True)
    with pytest.raises(BackendError, match=words):
        dispatch.choose(Call((packed,)), "first")
    with torch.no_grad():
        assert dispatch.choose(Call(tuple(inputs), mask), "first").name == "first"
