"""The compiled CPU kernels: every instruction set, any number of threads, memory, and random sizes."""

import math
import subprocess
import sys

import pytest
import torch
from cases import Case, assert_norms_match, assert_within_budget, autograd, in_dtype, run, upstream
from hypothesis import given, settings
from hypothesis import strategies as st

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
        extension.operators().cpu_forward(*call.inputs, None, None, 0.0, 1.0, 3, True, 0)


@pytest.mark.parametrize("case", [Case(batch=1, queries=300), Case(batch=6, heads=9, queries=40, dtype=BF16)], ids=str)
def test_the_same_bits_for_any_number_of_threads(case):
    """The first call divides heads into parts; the second distributes whole heads."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            result, grads = run(CpuBackend(), case.call(CPU))
            results.append((*result, *grads.of_inputs()))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_500_repeats_are_the_same_bits():
    """On more threads than cores, so that the tasks of a thread differ each time."""
    call = Case(batch=6, heads=3, queries=65, dtype=BF16, dropout=0.1).call(CPU)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        first, grads = run(BACKENDS["cpu"], call)
        for _ in range(500):
            result, others = run(BACKENDS["cpu"], call)
            assert all(torch.equal(a, b) for a, b in zip((*first, *grads[:3]), (*result, *others[:3])))
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
    """N = 16384, forward and backward, in a process that may not grow by half of one N x N float32 matrix."""
    code = """if True:
        import resource, torch, rsattn
        length = 16384
        rsattn.backends()
        torch.set_num_threads(2)
        tensors = [torch.randn(1, 1, n, 16, requires_grad=True) for n in (length,) * 3]
        rsattn.residual_attention(*[t[:, :, :64] for t in tensors], backend="cpu").output.sum().backward()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        attention = rsattn.residual_attention(*tensors, backend="cpu")
        attention.output.sum().backward()
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
