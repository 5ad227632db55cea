"""Every test here runs once for each backend that has kernels: the fixture `kernels` is the backend."""

import pytest
import torch
from cuda_model import CudaModel

from rsattn.backends.dispatch import BACKENDS

GPU = torch.cuda.is_available()
# Without a GPU, Triton's interpreter, taught bfloat16, and a model of two GPUs.
NAMES = ["triton", "cpu", "cuda"] if GPU else ["triton", "cpu", "cuda-sm80", "cuda-sm90"]
# With a GPU, nothing runs in the interpreter, and ml_dtypes need not be there.
collect_ignore = ["test_interpreter_bfloat16.py"] if GPU else []


@pytest.fixture(params=NAMES)
def kernels(request):
    """The backend named. It may only be missing where its reason tells the reader how to get it."""
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
    """Several test processes may share a GPU: what PyTorch keeps for later in one is missing in another."""
    yield
    if GPU:
        torch.cuda.empty_cache()


@pytest.fixture
def device(kernels):
    """The device on which `kernels` runs here; Triton's on a CPU in its interpreter."""
    return torch.device("cuda" if GPU and kernels.name != "cpu" else "cpu")


@pytest.fixture
def dtype(kernels):
    """The most exact one that `kernels` computes in."""
    return torch.float32 if torch.float32 in kernels.limits.dtypes else torch.float16
