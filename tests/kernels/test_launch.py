"""What the Triton launchers choose."""

import pytest
import torch
from cases import Case

from rsattn.kernels import configs, launch

HALF, SINGLE = torch.float16, torch.float32


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("queries", [65, 197, 300])
def test_a_samples_results_do_not_depend_on_the_batch_around_it(device, queries):
    call = Case(batch=5, queries=queries, dtype=HALF).call(device)
    alone = call.on(*[tensor[3:4] for tensor in call.inputs])
    for every, one in zip(launch.forward(call), launch.forward(alone)):
        assert torch.equal(every[3:4], one)


def test_tf32_follows_torchs_own_switch():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for switch, wanted in (("ieee", "ieee"), ("tf32", "tf32")):
            torch.backends.cuda.matmul.fp32_precision = switch
            assert launch._precision(SINGLE) == wanted
            assert launch._precision(HALF) == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("arch", ["sm80", "sm90", "sm100", "gfx942", "interpreter", "an unknown one"])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("dropout", [False, True])
def test_every_call_finds_its_kernels(arch, itemsize, dropout):
    for width in (1, 16, 64, 80, 192, 768, 1024):
        for kernel in ("stream_forward", "column_norm", "query_gradient", "key_value_gradient"):
            config = configs.find(kernel, arch, itemsize, width, 0, dropout)
            assert config is not None
            chunk = config.chunk(width)
            assert chunk & (chunk - 1) == 0
            assert chunk >= 16
        assert configs.find("row_forward", arch, itemsize, width, 128, dropout) is not None
        assert configs.find("row_forward", arch, 2, width, 256, dropout) is not None
        assert configs.find("row_forward", arch, itemsize, width, 257, dropout) is None
