"""The choices of the Triton launchers."""

from unittest import mock

import pytest
import torch
from cases import Case, assert_within_budget, autograd, in_dtype, upstream
from torch import Tensor

from rsattn import reference
from rsattn.call import Call, empty_forward
from rsattn.kernels import configs, launch, launch_residual
from rsattn.kernels.row_forward import row_forward

HALF, SINGLE = torch.float16, torch.float32


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("queries", [65, 197, 300])
def test_a_samples_results_do_not_depend_on_the_batch_around_it(device, queries):
    call = Case(batch=5, queries=queries, dtype=HALF).call(device)
    alone = call.on(*[tensor[3:4] for tensor in call.inputs])
    for every, one in zip(launch.forward(call)[:4], launch.forward(alone)):
        assert torch.equal(every[3:4], one)


@pytest.mark.parametrize("scale", [-0.7, 0.0, 0.5])
@pytest.mark.parametrize("norm", ["induced", "confidence"])
@pytest.mark.parametrize("queries", [70, 300])
def test_any_scale(device, queries, norm, scale):
    """A negative scale reverses the order of the scores, which a maximum before scaling would miss."""
    call = Case(queries=queries, width=24, norm=norm).call(device)
    call.scale = scale
    got, (grad, _) = launch.forward(call), upstream(call)
    (eager, eager_grads), (want, true_grads) = (
        autograd(call, dtype, got.best_head, grad, None) for dtype in (SINGLE, torch.float64)
    )
    assert_within_budget("output", got.output, eager.output, want.output)
    assert_within_budget("norms", got.norms, eager.norms, want.norms.double())
    for name, *triple in zip(("dQ", "dK", "dV"), launch.backward(call, got, grad, None), eager_grads, true_grads):
        assert_within_budget(name, *triple)


@pytest.mark.parametrize("queries", [70, 300])
def test_confidence_of_rows_that_are_certain(device, queries):
    """Scores of thousands, whose rounding error is 2e-4: a probability of 1 must stay 1.

    Only a GPU fuses a multiplication and an addition, so only there could the peak and the maximum round differently.
    """
    call = Case(queries=queries, width=24).call(device)
    call = Call((1000 * call.key, call.key, call.value), scale=0.2, norm="confidence")  # each row sees only itself
    want, got = reference.attention(in_dtype(call, torch.float64)), launch.forward(call)
    assert (want.norms == 1).all()
    torch.testing.assert_close(got.norms, want.norms, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("width", [16, 256], ids=["blocks_shared", "a_block_each"])
def test_attention_received_from_several_programs_of_a_head(device, width):
    """Beyond 256 queries, or 64 of a wide head, the last program of a sample adds the sums of several."""
    received = []
    for norm in ("induced", "confidence"):
        call = Case(queries=600, keys=40, width=width, norm=norm).call(device)
        call.return_received = True
        result = launch.forward(call)
        received.append(result.received)
        if norm == "induced":
            assert torch.equal(result.received.amax(-1), result.norms)
    assert torch.equal(*received)
    assert torch.equal(launch.received(call), received[0])
    torch.testing.assert_close(received[0].sum(-1), torch.full((2, 3), 600.0, device=device))


@pytest.mark.parametrize("batch", [2, 7])
@pytest.mark.parametrize("most", [1, 5, 10**6], ids=["one_slice", "some", "a_slice_each"])
def test_the_slices_of_a_masks_gradient_add_up(device, batch, most, monkeypatch):
    """However the samples are divided among programs; 7 cannot be divided evenly."""
    call = Case(batch=batch, heads=2, queries=20, width=64).call(device)
    call.attn_mask = torch.randn(1, 2, 20, 20, generator=torch.Generator().manual_seed(0)).to(device)
    call.mask_gradient = True
    grad, _ = upstream(call)
    result = launch.forward(call)
    monkeypatch.setattr("rsattn.slices.ENOUGH", most)
    got = launch.backward(call, result, grad, None).mask
    exact = in_dtype(call, torch.float64)
    exact.attn_mask = exact.attn_mask.detach().requires_grad_()
    (want,) = torch.autograd.grad(reference.attention(exact).output, exact.attn_mask, grad.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "mask"),
    [
        (Case(batch=2, heads=1, queries=260, keys=1000, width=16, dtype=HALF), (2, 1, 1, 1000)),
        (Case(batch=4, heads=1, queries=20, keys=40, dtype=HALF), (1, 1, 20, 40)),
    ],
    ids=["one_row", "every_row"],
)
def test_slices_of_a_masks_gradient_take_no_more_memory_than_the_query(device, case, mask, monkeypatch):
    launched = mock.MagicMock()
    monkeypatch.setattr(launch, "mask_gradient", launched)
    call = case.call(device)
    call.attn_mask = torch.zeros(mask, device=device)
    launch.gradient_of_mask(call, empty_forward(call), *upstream(call))
    sums = launched.__getitem__.return_value.call_args.kwargs["DMASK"]
    assert len(sums) > 1
    assert sums.nbytes <= call.query.nbytes


@pytest.fixture
def launches(monkeypatch):
    """The kernels that are launched while the test runs, with their arguments; none of them runs."""
    found = []

    def record(kernel, grid):
        return lambda **arguments: found.append((kernel, arguments))

    monkeypatch.setattr(type(row_forward), "__getitem__", record)
    return found


def test_attention_received_alone_stores_no_statistics(device, launches):
    launch.received(Case(queries=65).call(device))
    ((_, arguments),) = launches
    assert arguments["STATISTICS"] is None


@pytest.mark.parametrize("keys", [65, 300], ids=["whole_row", "stream"])
@pytest.mark.parametrize("width", [64, 768])
def test_another_batch_compiles_nothing(device, launches, keys, width):
    """Triton compiles a kernel again if an integer becomes divisible by 16, unless it is told not to."""
    merged = torch.zeros(1, keys, 2 * width, device=device)
    for batch in (16, 6):
        call = Case(batch=batch, heads=2, queries=keys, width=width).call(device)
        call.attn_mask = torch.zeros(batch, 1, keys, keys, device=device)
        call.mask_gradient = True
        launch.backward(call, result := launch.forward(call), *upstream(call))
        projected = merged.repeat(batch, 1, 1)
        launch_residual.add_best_head(projected, result.output, result.best_head, "tile", projected)
        launch_residual.best_head_gradient(projected, result.best_head, width, "tile")
        launch_residual.gate_gradients(projected, result.output, result.best_head, projected[0, 0], "tile")
    assert len(launches) >= 12
    assert len(launches) % 2 == 0
    half = len(launches) // 2
    for (kernel, first), (same, other) in zip(launches[:half], launches[half:]):
        assert kernel is same
        options = getattr(kernel, "kwargs", vars(kernel))  # the interpreter keeps them in a dictionary
        free = {*(options["do_not_specialize"] or ()), *(options["do_not_specialize_on_alignment"] or ())}
        changed = {name for name in first if not isinstance(first[name], Tensor) and first[name] != other[name]}
        assert changed <= free, kernel.__name__


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
        for kernel in ("stream_forward", "column_sums", "query_gradient", "key_value_gradient", "mask_gradient"):
            config = configs.find(kernel, arch, itemsize, width, 0, dropout)
            assert config is not None
            chunk = config.chunk(width)
            assert chunk & (chunk - 1) == 0
            assert chunk >= 16
        for keys in (1, 65, 128, 129, 256, 257, 4096):
            first, second = (
                configs.find(f"{kernel}_gradient", arch, itemsize, width, keys, dropout)
                for kernel in ("query", "key_value")
            )
            assert first.block_m % second.block_m == 0  # the second reads the padding of the first without a mask
        assert configs.find("row_forward", arch, itemsize, width, 128, dropout) is not None
        assert configs.find("row_forward", arch, 2, width, 256, dropout) is not None
        assert configs.find("row_forward", arch, itemsize, width, 257, dropout) is None
