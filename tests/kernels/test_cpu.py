"""The compiled CPU kernels: every instruction set, any number of threads, memory, and sizes nobody listed."""

import math
import subprocess
import sys

import pytest
import torch
from cases import Call, assert_norms_match, assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st

from rsattn import backend_cpu, reference
from rsattn.backend_cpu import CpuBackend
from rsattn.contract import NORMS, SCOPES
from rsattn.dispatch import kernels_of

HALF, SINGLE, BF16 = torch.float16, torch.float32, torch.bfloat16
REASONS = kernels_of("cpu").missing("cpu")
pytestmark = pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))
VARIANTS = [] if REASONS else backend_cpu.variants()


def forward(backend, call, tensors, seed=None):
    query, key, value, mask = tensors
    if mask is not None:
        mask = mask.expand(*query.shape[:3], key.shape[2])
    return backend.forward(query, key, value, mask, seed, call.dropout, call.scale, call.norm, call.scope)


def backward(backend, call, tensors, result, grad, grad_best, seed=None):
    query, key, value, mask = tensors
    if mask is not None:
        mask = mask.expand(*query.shape[:3], key.shape[2])
    rest = (mask, seed, result.output, result.best_head, result.logsumexp, call.dropout, call.scale)
    return backend.backward(grad, grad_best, query, key, value, *rest)


def both(backend, call, seed=0):
    """Forward and backward with a residual, from inputs that depend on `seed` only."""
    tensors = call.tensors(torch.device("cpu"), seed)
    dropout_seed = call.seed(torch.device("cpu"))
    result = forward(backend, call, tensors, dropout_seed)
    generator = torch.Generator().manual_seed(seed + 1)
    grad = torch.randn(result.output.shape, generator=generator).to(call.dtype)
    grad_best = torch.randn(grad[:, 0].shape, generator=generator).to(call.dtype)
    return tensors, result, grad, grad_best, backward(backend, call, tensors, result, grad, grad_best, dropout_seed)


def check(backend, call, seed=0):
    """Everything against the oracle, within what eager PyTorch's own rounding allows."""
    tensors, result, grad, grad_best, grads = both(backend, call, seed)

    def run(dtype):
        inputs = [t.detach().to(dtype).requires_grad_() for t in tensors[:3]]
        attention = call.reference(*inputs, tensors[3])
        total = grad.to(dtype, copy=True)
        total[torch.arange(len(total)), result.best_head] += grad_best.to(dtype)
        return attention, torch.autograd.grad(attention.output, inputs, total)

    (oracle, oracle_grads), (eager, eager_grads) = run(torch.float64), run(call.dtype)
    assert_norms_match(call, result.norms, oracle.norms.double())
    many = min(call.queries, tensors[1].shape[2], call.width) >= 8
    got = {"output": (result.output, eager.output, oracle.output)}
    got |= {name: triple for name, *triple in zip(("dQ", "dK", "dV"), grads, eager_grads, oracle_grads)}
    for name, (mine, theirs, truth) in got.items():
        if many and mine.numel() >= FEW:
            assert_within_budget(name, mine, theirs, truth)
        else:
            assert (mine - truth).abs().max() <= largest_error(call, name, *tensors[:3], grad, grad_best), name


# Fewer numbers than this, or numbers made of very few probabilities, say little about eager PyTorch's error; and heads
# narrower than 8 have scores larger than the budget's rounding is meant for.
FEW = 512


def largest_error(call, name, query, key, value, grad, grad_best):
    """Four roundings of the largest terms a result could be a sum of, however they cancel."""
    query, key, value, upstream = (t.abs().max().item() for t in (query, key, value, grad))
    upstream = (upstream + grad_best.abs().max().item()) / (1.0 - call.dropout)
    slope = call.scale * call.width * upstream * value
    terms = {
        "output": value / (1.0 - call.dropout),
        "dQ": slope * key,
        "dK": call.queries * slope * query,
        "dV": call.queries * upstream,
    }
    return 4 * torch.finfo(call.dtype).eps * terms[name]


CALLS = [
    Call(queries=65, width=64, dtype=BF16),
    Call(queries=197, width=40, dtype=BF16, mask="bool", dropout=0.2, norm="entrywise"),
    Call(queries=111, keys=50, width=17, mask="float", dropout=0.1, layout="transposed"),
    Call(queries=63, width=80, dtype=HALF, norm="confidence"),
    Call(queries=300, keys=197, width=96, norm="induced", mask="padding"),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.id)
def test_every_instruction_set(variant, call, poisoned_memory):
    check(CpuBackend(variant), call)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
def test_any_scale(variant, scale):
    """A negative scale turns the order of the scores around, which a maximum taken before scaling would miss."""
    backend = CpuBackend(variant)
    query, key, value, _ = Call(queries=70, width=24).tensors(torch.device("cpu"))
    leaves = [t.double().requires_grad_() for t in (query, key, value)]
    want = reference.attention(*leaves, None, None, 0.0, scale, "induced", "sample")
    got = backend.forward(query, key, value, None, None, 0.0, scale, "induced", "sample")
    torch.testing.assert_close(got.output.double(), want.output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.norms.double(), want.norms.double(), rtol=1e-4, atol=0.0)
    grad = torch.randn_like(got.output)
    rest = (None, None, got.output, got.best_head, got.logsumexp, 0.0, scale)
    for mine, theirs in zip(
        backend.backward(grad, None, query, key, value, *rest),
        torch.autograd.grad(want.output, leaves, grad.double()),
    ):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_confidence_of_rows_that_are_certain(variant):
    """Scores of thousands, rounded by 2e-4 before their exponential: the same rounding has to leave the peak as it
    leaves the sum, or a probability of 1 comes out as 1.0001."""
    _, key, value, _ = Call(queries=70, width=24).tensors(torch.device("cpu"))
    query = 1000 * key  # each sees itself, and nothing else
    want = reference.attention(
        query.double(), key.double(), value.double(), None, None, 0.0, 0.2, "confidence", "sample"
    )
    got = CpuBackend(variant).forward(query, key, value, None, None, 0.0, 0.2, "confidence", "sample")
    assert (want.norms == 1).all()
    torch.testing.assert_close(got.norms, want.norms, rtol=2e-6, atol=0.0)


def test_an_instruction_set_this_processor_lacks():
    with pytest.raises(RuntimeError, match=r"no 'avx1024'; it can run: .*portable"):
        forward(CpuBackend("avx1024"), CALLS[0], CALLS[0].tensors(torch.device("cpu")))


@pytest.mark.parametrize("call", [Call(batch=1, queries=300), Call(batch=6, heads=9, queries=40, dtype=BF16)], ids=str)
def test_the_same_bits_for_any_number_of_threads(call):
    """The first call's heads are cut into parts, in the second whole heads are shared out."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            _, result, _, _, grads = both(CpuBackend(), call)
            results.append((*result, *grads))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_torchs_number_of_threads_is_obeyed():
    """Processor time over elapsed time: about 1 with one thread, however many cores there are."""
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
    assert ratio < 1.2  # the clock's own grain; two threads would give up to 2


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
    query, key, value, _ = Call(queries=20, width=16).tensors(torch.device("cpu"))
    key = key.clone()
    key[:, :, 7] = math.nan
    mask = torch.ones(2, 3, 20, 20, dtype=torch.bool)
    mask[..., 7] = False
    got = CpuBackend().forward(query, key, value, mask, None, 0.0, 0.25, "induced", "sample")
    want = reference.attention(query, key, value, mask, None, 0.0, 0.25, "induced", "sample")
    torch.testing.assert_close(got.output, want.output)
    torch.testing.assert_close(got.norms, want.norms)


SIZES = dict(batch=st.integers(1, 3), heads=st.integers(1, 5), queries=st.integers(1, 150), width=st.integers(1, 100))


@settings(max_examples=200, deadline=None, derandomize=False, print_blob=True)
@given(
    call=st.builds(
        Call,
        **SIZES,
        keys=st.integers(8, 150),  # with fewer dQ may be exactly zero, and then any rounding exceeds its budget
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
def test_sizes_nobody_listed(call, variant, seed):
    check(CpuBackend(variant), call, seed)
