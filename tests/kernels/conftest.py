"""Every test here runs once for each backend that has kernels: the fixture `kernels` is the backend."""

import pytest
import torch

from rsattn.dispatch import kernels_of

GPU = torch.cuda.is_available()


@pytest.fixture(params=["triton", "cpu"])
def kernels(request):
    """The backend named. It may only be missing where its reason tells the reader how to get it."""
    backend = kernels_of(request.param)
    reasons = backend.missing("cuda" if GPU and request.param == "triton" else "cpu")
    if reasons:
        pytest.skip("; ".join(reasons))
    return backend


@pytest.fixture
def device(kernels):
    """The device on which `kernels` runs here; Triton's on a CPU in its interpreter."""
    return torch.device("cuda" if GPU and kernels.name == "triton" else "cpu")
