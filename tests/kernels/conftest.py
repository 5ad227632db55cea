"""Every test here runs once for each backend that has kernels: the fixture `kernels` is the backend."""

import pytest
import torch
from cuda_model import CudaModel

from rsattn.backends.dispatch import BACKENDS

GPU = torch.cuda.is_available()
# Without a GPU: Triton's interpreter with bfloat16, and a model of two GPUs.
NAMES = ["triton", "cpu", "cuda"] if GPU else ["triton", "cpu", "cuda-sm80", "cuda-sm90"]
# With a GPU nothing runs in the interpreter, and ml_dtypes is not needed.
collect_ignore = ["test_interpreter_bfloat16.py"] if GPU else []


def pytest_generate_tests(metafunc):
    """A module with ONE_CODE_FOR_ALL_GPUS tests what does not depend on the architecture, so one model is enough."""
    chosen = any("kernels" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "kernels" in metafunc.fixturenames and not chosen:
        one = getattr(metafunc.module, "ONE_CODE_FOR_ALL_GPUS", False)
        metafunc.parametrize("kernels", [name for name in NAMES if not (one and name == "cuda-sm90")], indirect=True)


@pytest.fixture
def kernels(request):
    """The backend of that name. If it is missing, the reason says how to install it."""
    if request.param.startswith("cuda-"):
        yield CudaModel(request.param.removeprefix("cuda-"))
        return
    backend = BACKENDS[request.param]
    reasons = backend.missing("cuda" if GPU and request.param != "cpu" else "cpu")
    if reasons:
        pytest.skip("; ".join(reasons))
    if request.param == "triton" and not GPU:
        import interpreter_bfloat16

        with interpreter_bfloat16.enabled():
            yield backend
    else:
        yield backend


@pytest.fixture(autouse=True)
def memory_given_back():
    """Several test processes may share a GPU, and the memory that PyTorch caches in one is missing in another."""
    yield
    if GPU:
        torch.cuda.empty_cache()


@pytest.fixture
def device(kernels):
    """The device on which `kernels` runs; on a CPU, Triton's run in its interpreter."""
    return torch.device("cuda" if GPU and kernels.name != "cpu" else "cpu")


@pytest.fixture
def dtype(kernels):
    """The most exact dtype that `kernels` supports."""
    return torch.float32 if torch.float32 in kernels.limits.dtypes else torch.float16
