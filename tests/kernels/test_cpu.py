"""The compiled CPU kernels: every instruction set, any number of threads, memory, and random sizes."""

import math
import subprocess
import sys

import pytest
import torch
from cases import Case, assert_norms_match, assert_within_budget, autograd, in_dtype, run, upstream
from hypothesis import given, settings
from hypothesis import strategies as st
from test_column_sums import asked, assert_sums
from test_mask_gradient import check as check_mask_gradient

from rsattn import reference
from rsattn.backends import cpu, extension
from rsattn.backends.cpu import CpuBackend
from rsattn.backends.dispatch import BACKENDS
from rsattn.call import Call
from rsattn.contract import NORMS, SCOPES

HALF, SINGLE, BF16 = torch.float16, torch.float32, torch.bfloat16
CPU = torch.device("cpu")
REASONS = BACKENDS["cpu"].missing("cpu")
pytestmark = pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))
VARIANTS = [] if REASONS else cpu.variants()


def check(backend, case, seed=0):
    """Compare all results with the oracle, within the budget of eager PyTorch's rounding error."""
    call = case.call(CPU, seed)
    grad, grad_best = upstream(call, seed + 1)
    result = backend.forward(call)
    grads = backend.backward(call, result, grad, grad_best)
    (oracle, oracle_grads), (eager, eager_grads) = (
        autograd(call, dtype, result.best_head, grad, grad_best) for dtype in (torch.float64, case.dtype)
    )
    assert_norms_match(call, result.norms, oracle.norms)
    many = min(case.queries, call.key.shape[2], case.width) >= 8
    got = {"output": (result.output, eager.output, oracle.output)}
    got |= {name: triple for name, *triple in zip(("dQ", "dK", "dV"), grads, eager_grads, oracle_grads)}
    for name, (mine, theirs, truth) in got.items():
        if many and mine.numel() >= FEW:
            assert_within_budget(name, mine, theirs, truth)
        else:
            assert (mine - truth).abs().max() <= largest_error(call, name, grad, grad_best), name


# Results with fewer elements than this, or from very few probabilities, say little about eager PyTorch's error. A
# head_dim below 8 has scores that are too large for the budget.
FEW = 512


def largest_error(call, name, grad, grad_best):
    """Four roundings of the largest possible terms of a result, even if they cancel."""
    query, key, value = (tensor.abs().max().item() for tensor in call.inputs)
    _, _, queries, width = call.query.shape
    total = (grad.abs().max().item() + grad_best.abs().max().item()) / (1.0 - call.dropout_p)
    slope = call.scale * width * total * value
    terms = {
        "output": value / (1.0 - call.dropout_p),
        "dQ": slope * key,
        "dK": queries * slope * query,
        "dV": queries * total,
    }
    return 4 * torch.finfo(call.query.dtype).eps * terms[name]


CASES = [
    Case(queries=65, width=64, dtype=BF16),
    Case(queries=197, width=40, dtype=BF16, mask="bool", dropout=0.2, norm="entrywise"),
    Case(queries=111, keys=50, width=17, mask="float", dropout=0.1, layout="transposed"),
    Case(queries=63, width=80, dtype=HALF, norm="confidence"),
    Case(queries=300, keys=197, width=96, norm="induced", mask="padding"),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_instruction_set(variant, case, poisoned_memory):
    check(CpuBackend(variant), case)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [SINGLE, BF16, HALF], ids=str)
class TestLearnedMasksAndReceivedOfEveryInstructionSet:
    @pytest.mark.parametrize("shape", ["rhnm", "nm", "hm", "m"])
    def test_gradient_of_the_mask(self, variant, dtype, shape, poisoned_memory):
        case = Case(batch=4, heads=2, queries=101, keys=67, width=24, dtype=dtype, dropout=0.2)
        check_mask_gradient(CpuBackend(variant), case, shape, CPU)

    @pytest.mark.parametrize("norm", NORMS)
    def test_received(self, variant, dtype, norm, poisoned_memory):
        case = Case(queries=101, keys=67, width=24, dtype=dtype, norm=norm, mask="float", dropout=0.2)
        backend, call = CpuBackend(variant), asked(case.call(CPU))
        got = backend.forward(call).received
        assert_sums(call, got, "cpu")
        assert torch.equal(got, backend.received(call))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
def test_any_scale(variant, scale):
    """A negative scale reverses the order of the scores, which a maximum before scaling would miss."""
    backend = CpuBackend(variant)
    call = Case(queries=70, width=24).call(CPU)
    call.scale = scale
    got, (grad, _) = backend.forward(call), upstream(call)
    want, want_grads = autograd(call, torch.float64, got.best_head, grad, None)
    torch.testing.assert_close(got.output.double(), want.output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.norms.double(), want.norms.double(), rtol=1e-4, atol=0.0)
    for mine, theirs in zip(backend.backward(call, got, grad, None), want_grads):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_confidence_of_rows_that_are_certain(variant):
    """Scores of thousands have a rounding error of 2e-4 before the exponential. The peak and the sum need the same
    rounding, or a probability of 1 becomes 1.0001."""
    call = Case(queries=70, width=24).call(CPU)
    # Each row attends only to itself.
    call = Call((1000 * call.key, call.key, call.value), scale=0.2, norm="confidence")
    want, got = reference.attention(in_dtype(call, torch.float64)), CpuBackend(variant).forward(call)
    assert (want.norms == 1).all()
    torch.testing.assert_close(got.norms, want.norms, rtol=2e-6, atol=0.0)


def test_an_instruction_set_this_processor_lacks():
    with pytest.raises(RuntimeError, match=r"no 'avx1024'; it can run: .*portable"):
        CpuBackend("avx1024").forward(CASES[0].call(CPU))


def test_an_unknown_norm():
    call = CASES[0].call(CPU)
    with pytest.raises(RuntimeError, match="numbered 0 to 2"):
        extension.operators().cpu_forward(*call.inputs, None, None, 0.0, 1.0, 3, True, False, 0)


def every_result(backend, case, mask):
    """All tensors that the passes of a call with a learned mask of that shape return."""
    call = asked(case.call(CPU))
    call.attn_mask = torch.randn(mask, generator=torch.Generator().manual_seed(3))
    call.mask_gradient = True
    result, grads = run(backend, call)
    return (*result, backend.received(call), *grads.of_inputs(), grads.mask)


@pytest.mark.parametrize(
    ("case", "mask"),
    [
        (Case(batch=1, queries=300), (1, 1, 300, 300)),
        (Case(batch=6, heads=9, queries=40, dtype=BF16), (3, 9, 40, 40)),
        (Case(batch=2, heads=2, queries=197, dropout=0.1), (1, 2, 197, 197)),
        (Case(batch=2, queries=300, width=24), (1, 1, 1, 300)),
        (Case(batch=4, queries=65, norm="confidence"), (2, 3, 1, 65)),
        # With more threads than heads, the mask's gradient is a pass of its own.
        (Case(batch=3, heads=2, queries=60, keys=50, dropout=0.1), (1, 2, 60, 50)),
        (Case(batch=3, heads=2, queries=60, keys=50, dtype=BF16), (1, 2, 60, 50)),
    ],
    ids=str,
)
def test_the_same_bits_for_any_number_of_threads(case, mask):
    """The first call divides heads into parts; the second distributes whole heads."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4, 7):
            torch.set_num_threads(threads)
            results.append(every_result(CpuBackend(), case, mask))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_500_repeats_are_the_same_bits():
    """On more threads than cores, so that the tasks of a thread differ each time."""
    case, mask = Case(batch=6, heads=3, queries=65, dtype=BF16, dropout=0.1), (1, 3, 65, 65)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        first = every_result(BACKENDS["cpu"], case, mask)
        for _ in range(500):
            assert all(torch.equal(a, b) for a, b in zip(first, every_result(BACKENDS["cpu"], case, mask)))
    finally:
        torch.set_num_threads(before)


def test_torchs_number_of_threads_is_obeyed():
    """Processor time over elapsed time: about 1 with one thread on any number of cores."""
    code = """if True:
        import time, torch, rsattn
        torch.set_num_threads(1)
        tensors = [torch.randn(4, 12, 577, 64) for _ in range(3)]
        rsattn.residual_attention(*tensors, backend="cpu")
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(5):
            rsattn.residual_attention(*tensors, backend="cpu")
        print((time.process_time() - cpu) / (time.perf_counter() - wall))
    """
    ratio = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert ratio < 1.2  # allows for the clock's resolution; two threads would give up to 2


def test_memory_stays_far_below_one_square(tmp_path):
    """N = 16384, forward and backward with a learned mask of one row, in a process that may not grow by a tenth of one
    N x N float32 matrix."""
    code = """if True:
        import resource, torch, rsattn
        length = 16384
        rsattn.backends()
        torch.set_num_threads(2)
        tensors = [torch.randn(1, 1, n, 16, requires_grad=True) for n in (length,) * 3]
        mask = torch.zeros(length, requires_grad=True)

        def call(length):
            inputs = [t[:, :, :length] for t in tensors]
            attention = rsattn.residual_attention(*inputs, mask[:length], backend="cpu", return_received=True)
            attention.output.sum().backward()
            rsattn.attention_received(*inputs[:2], mask[:length], backend="cpu")

        call(64)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call(length)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(grown / (4 * length**2))
    """
    grown = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < 0.1


def test_a_nan_key_hidden_by_a_bool_mask_stays_hidden():
    call = Case(queries=20, width=16).call(CPU)
    key = call.key.clone()
    key[:, :, 7] = math.nan
    mask = torch.ones(2, 3, 20, 20, dtype=torch.bool)
    mask[..., 7] = False
    call = Call((call.query, key, call.value), mask)
    got, want = CpuBackend().forward(call), reference.attention(call)
    torch.testing.assert_close(got.output, want.output)
    torch.testing.assert_close(got.norms, want.norms)


SIZES = dict(batch=st.integers(1, 3), heads=st.integers(1, 5), queries=st.integers(1, 150), width=st.integers(1, 100))


@settings(max_examples=200, deadline=None, derandomize=False, print_blob=True)
@given(
    case=st.builds(
        Case,
        **SIZES,
        keys=st.integers(8, 150),  # with fewer, dQ may be exactly zero, and any rounding error would exceed the budget
        dtype=st.sampled_from([SINGLE, BF16, HALF]),
        norm=st.sampled_from(NORMS),
        scope=st.sampled_from(SCOPES),
        mask=st.sampled_from(["none", "bool", "padding", "float"]),
        dropout=st.sampled_from([0.0, 0.3]),
        layout=st.sampled_from(["packed", "plain", "transposed"]),
    ),
    variant=st.sampled_from(VARIANTS or ["none"]),
    seed=st.integers(0, 1000),
)
def test_random_sizes(case, variant, seed):
    check(CpuBackend(variant), case, seed)
