"""The gated epilogue, Y = projected + gamma * merge(O_h*), and its gradients, against the reference in float64.

The bounds follow from the arithmetic: everything is computed in float32 and rounded once to the result's dtype. The
error of a float32 sum is at most half an epsilon of the sum of the terms' sizes for each addition in its longest chain.
"""

import math

import pytest
import torch
from cuda_model import CudaModel

from rsattn import reference

ONE_CODE_FOR_ALL_GPUS = True  # conftest.py
HALF, BF16, SINGLE = torch.float16, torch.bfloat16, torch.float32
# (batch, heads, length, width, dim). A block of the GPU's kernels has 64 tokens, and 32 or 64 columns.
SHAPES = [
    (2, 3, 65, 64, 192),
    (1, 4, 17, 40, 160),
    (3, 2, 77, 96, 192),
    (2, 4, 5, 48, 48),  # E = D
    (1, 1, 70, 80, 80),
    (3, 5, 40, 20, 100),  # an odd number of repeats
    (200, 3, 1, 16, 48),  # one token each
]
# Dtypes of projected, the attention's output and gamma. The second line is that of autocast.
DTYPES = [(SINGLE, SINGLE, SINGLE), (HALF, HALF, SINGLE), (HALF, HALF, HALF), (SINGLE, HALF, SINGLE)]
MIXED = [(HALF, SINGLE, HALF), (HALF, SINGLE, BF16), (BF16, HALF, SINGLE), (SINGLE, BF16, HALF), (BF16, BF16, BF16)]
# The longest chain of additions for the tokens here: on the CPU about 64, and 256 sums of those.
LONGEST_CHAIN = 512


def merges(shape):
    _, heads, _, width, dim = shape
    return ["tile"] + (["slot"] if dim == heads * width else [])


CASES = [(shape, merge) for shape in SHAPES for merge in merges(shape)]


def tensors(shape, dtypes, device, seed=0):
    """(projected or its gradient, output, best_head, gamma)"""
    batch, heads, length, width, dim = shape
    generator = torch.Generator().manual_seed(seed)

    def random(dtype, *size):
        return torch.randn(*size, generator=generator).to(device, dtype)

    projected = random(dtypes[0], batch, length, dim)
    output = random(dtypes[1], batch, length, heads, width).transpose(1, 2)
    best_head = torch.randint(0, heads, (batch,), generator=generator).to(device)
    return projected, output, best_head, random(dtypes[2], dim)


def eps(dtype):
    return torch.finfo(dtype).eps


def assert_rounded(got, want, dtype, sizes, additions):
    """`got` is `want` up to its own rounding and `additions` float32 additions of terms with total size `sizes`."""
    assert got.dtype == dtype
    finfo = torch.finfo(dtype)
    bound = finfo.eps / 2 * want.abs() + finfo.smallest_normal * finfo.eps + additions * eps(SINGLE) / 2 * sizes
    error = (got.double() - want).abs()
    # In this form NaN fails.
    assert (error <= bound).all(), f"off by up to {(error / bound).max():.2f} times what rounding allows"


def check_forward(got, projected, output, best_head, merge, gamma):
    arguments = (projected.double(), output.double(), best_head, merge, gamma.double())
    want = reference.add_best_head(*arguments)
    sizes = reference.add_best_head(
        projected.double().abs(), output.double().abs(), *arguments[2:4], arguments[4].abs()
    )
    # The product is rounded, and the sum.
    assert_rounded(got, want, projected.dtype, sizes, additions=2)


def merged_and_back(grad, output, best_head, merge, gamma):
    """In float64: merge^T(gamma * grad), and the sum of grad * merge(O_h*)."""
    leaf, gate = output.double().requires_grad_(), gamma.double().requires_grad_()
    joined = reference.add_best_head(grad.double() * 0, leaf, best_head, merge, gate)
    full, grad_gamma = torch.autograd.grad(joined, (leaf, gate), grad.double())
    return full[torch.arange(len(full), device=full.device), best_head], grad_gamma


def check_gradients(got, grad, output, best_head, merge, gamma):
    grad_best, grad_gamma = got
    batch, _, length, width = output.shape
    assert grad_best.is_contiguous()
    assert grad_best.shape == (batch, length, width)
    assert grad_gamma.shape == gamma.shape
    want_best, want_gamma = merged_and_back(grad, output, best_head, merge, gamma)
    sizes = merged_and_back(grad.abs(), output.abs(), best_head, merge, gamma.abs())
    repeats = grad.shape[2] // width if merge == "tile" else 1
    assert_rounded(grad_best, want_best, output.dtype, sizes[0], additions=1 + repeats)
    chain = min(batch * length, LONGEST_CHAIN)
    assert_rounded(grad_gamma, want_gamma, gamma.dtype, sizes[1], additions=1 + chain)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "merge"), CASES, ids=str)
class TestGate:
    def test_adds_what_the_reference_adds(self, kernels, shape, merge, dtypes, device, poisoned_memory):
        projected, output, best_head, gamma = tensors(shape, dtypes, device)
        before = projected.clone()
        got = kernels.add_best_head(projected, output, best_head, merge, gamma)
        assert torch.equal(projected, before)
        assert got.is_contiguous()
        check_forward(got, projected, output, best_head, merge, gamma)
        assert kernels.add_best_head(projected, output, best_head, merge, gamma, in_place=True) is projected
        assert torch.equal(projected, got)

    def test_gradients(self, kernels, shape, merge, dtypes, device, poisoned_memory):
        grad, output, best_head, gamma = tensors(shape, dtypes, device)
        got = kernels.gate_gradients(grad, output, best_head, gamma, merge)
        check_gradients(got, grad, output, best_head, merge, gamma)
        again = kernels.gate_gradients(grad, output, best_head, gamma, merge)
        assert all(torch.equal(a, b) for a, b in zip(got, again))


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_every_tensor_has_its_own_dtype(kernels, merge, dtypes, device):
    projected, output, best_head, gamma = tensors((2, 3, 70, 40, 120), dtypes, device)
    got = kernels.add_best_head(projected, output, best_head, merge, gamma)
    check_forward(got, projected, output, best_head, merge, gamma)
    grads = kernels.gate_gradients(projected, output, best_head, gamma, merge)
    check_gradients(grads, projected, output, best_head, merge, gamma)


@pytest.mark.parametrize(("batch", "length"), [(5, 1001), (3, 5500)])
@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_many_tokens(kernels, merge, batch, length, device, poisoned_memory):
    """More partial sums than are added at once, blocks that end inside a sample, and a partial block."""
    grad, output, best_head, gamma = tensors((batch, 2, length, 8, 16), (HALF, HALF, SINGLE), device)
    got = kernels.gate_gradients(grad, output, best_head, gamma, merge)
    check_gradients(got, grad, output, best_head, merge, gamma)


@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_a_gate_that_is_closed(kernels, merge, device):
    """gamma = 0, the start of LayerScale, from which it must be able to learn."""
    projected, output, best_head, gamma = tensors((2, 3, 65, 32, 96), (HALF, HALF, SINGLE), device)
    gamma.zero_()
    assert torch.equal(kernels.add_best_head(projected, output, best_head, merge, gamma), projected)
    grad_best, grad_gamma = kernels.gate_gradients(projected, output, best_head, gamma, merge)
    assert torch.equal(grad_best, torch.zeros_like(grad_best))
    receives = torch.ones(96, dtype=torch.bool, device=device)
    if merge == "slot":
        receives = torch.isin(torch.arange(96, device=device) // 32, best_head)
    assert torch.equal(grad_gamma != 0, receives)


@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_the_best_heads_number_is_not_rounded_first(kernels, merge, device):
    """1 + 2^-12 rounds to 1 in float16: if it were rounded before the product, the result would be 0."""
    projected = torch.full((1, 3, 16), -(2.0**12), dtype=HALF, device=device)
    output = torch.full((1, 1, 3, 16), 1 + 2.0**-12, device=device)
    best_head, gamma = torch.zeros(1, dtype=torch.int64, device=device), torch.full((16,), 2.0**12, device=device)
    got = kernels.add_best_head(projected, output, best_head, merge, gamma)
    assert torch.equal(got, torch.ones_like(got))


@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_strides(kernels, merge, device):
    """Strided channels of gamma and the gradient, with NaN in the gaps; and stride 0 for gamma."""
    projected, output, best_head, gamma = tensors((2, 3, 70, 32, 96), (HALF, HALF, SINGLE), device)

    def apart(tensor):
        strided = torch.stack([tensor, torch.full_like(tensor, math.nan)], -1)[..., 0]
        assert not strided.is_contiguous()
        return strided

    for gate in (apart(gamma), gamma[:1].expand(96)):
        for given in (projected, apart(projected)):
            grads = kernels.gate_gradients(given, output, best_head, gate, merge)
            check_gradients(grads, projected, output, best_head, merge, gate)
            assert grads[1].is_contiguous()
            got = kernels.add_best_head(given, output, best_head, merge, gate)
            check_forward(got, projected, output, best_head, merge, gate)
            written = projected.clone() if given is projected else given
            kernels.add_best_head(written, output, best_head, merge, gate, in_place=True)
            assert torch.equal(written, got)


@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_a_gradient_that_is_one_number(kernels, merge, device):
    """The gradient of sum(): all strides are 0."""
    _, output, best_head, gamma = tensors((2, 3, 70, 32, 96), (HALF, HALF, SINGLE), device)
    grad = torch.ones((), dtype=HALF, device=device).expand(2, 70, 96)
    got = kernels.gate_gradients(grad, output, best_head, gamma, merge)
    check_gradients(got, grad, output, best_head, merge, gamma)


@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_a_nan_in_a_losing_head_goes_nowhere(kernels, merge, device):
    projected, output, best_head, gamma = tensors((2, 3, 70, 32, 96), (SINGLE, SINGLE, SINGLE), device)
    want = kernels.add_best_head(projected, output, best_head, merge, gamma)
    grads = kernels.gate_gradients(projected, output, best_head, gamma, merge)
    for b, best in enumerate(best_head.tolist()):
        output[b, [h for h in range(3) if h != best]] = math.nan
    assert torch.equal(kernels.add_best_head(projected, output, best_head, merge, gamma), want)
    got = kernels.gate_gradients(projected, output, best_head, gamma, merge)
    assert all(torch.equal(a, b) for a, b in zip(got, grads))


def test_a_slot_is_all_that_a_sample_touches(kernels, device):
    """Non-finite values in other channels of the gate, or of the gradient, do not affect the sample."""
    projected, output, best_head, gamma = tensors((2, 3, 70, 32, 96), (SINGLE, SINGLE, SINGLE), device)
    best_head[:] = torch.tensor([0, 2], device=device)
    own = torch.arange(96, device=device) // 32 == best_head[:, None]
    expected = kernels.add_best_head(projected, output, best_head, "slot", gamma)
    grads = kernels.gate_gradients(projected, output, best_head, gamma, "slot")
    assert torch.equal(grads[1][32:64], torch.zeros(32, device=device))
    gamma[32:64] = math.nan
    grad = projected.masked_fill(~own[:, None], math.nan)
    assert torch.equal(kernels.add_best_head(projected, output, best_head, "slot", gamma), expected)
    got = kernels.gate_gradients(grad, output, best_head, gamma, "slot")
    assert all(torch.equal(a, b) for a, b in zip(got, grads))
    output[0, 0] = math.nan  # which is that of the first sample's own
    got = kernels.gate_gradients(grad, output, best_head, gamma, "slot")
    assert torch.equal(got[0], grads[0])
    assert torch.equal(got[1].isnan(), own[0])
    assert torch.equal(got[1][32:], grads[1][32:])


@pytest.mark.parametrize(("batch", "length"), [(0, 9), (2, 0)])
@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_no_tokens(kernels, merge, batch, length, device, poisoned_memory):
    projected, output, best_head, gamma = tensors((batch, 3, length, 32, 96), (HALF, HALF, SINGLE), device)
    assert kernels.add_best_head(projected, output, best_head, merge, gamma).shape == projected.shape
    grad_best, grad_gamma = kernels.gate_gradients(projected, output, best_head, gamma, merge)
    assert grad_best.shape == (batch, length, 32)
    assert torch.equal(grad_gamma, torch.zeros_like(gamma))


def test_offsets_pass_32_bits(kernels, device):
    """A stride of 2^27 makes the last rows begin beyond 2^31 elements of one storage."""
    length, stride = 20, 2**27
    grad, output, best_head, gamma = tensors((1, 2, length, 16, 32), (HALF, HALF, SINGLE), device)
    try:
        storage = torch.empty(length * stride, dtype=HALF, device=device)
    except RuntimeError as error:
        pytest.skip(f"needs 5.4 GB of {device.type} memory: {error}")
    far_grad = storage.as_strided(grad.shape, (0, stride, 1)).copy_(grad)
    far_output = storage[64:].as_strided(output.shape, (0, 16, stride, 1)).copy_(output)
    want = kernels.add_best_head(grad, output, best_head, "tile", gamma)
    assert torch.equal(kernels.add_best_head(far_grad, far_output, best_head, "tile", gamma), want)
    got = kernels.gate_gradients(far_grad, far_output, best_head, gamma, "tile")
    assert all(map(torch.equal, got, kernels.gate_gradients(grad, output, best_head, gamma, "tile")))


@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_the_order_of_threads_and_blocks_changes_no_bit(merge):
    """On the model of a GPU: first, last and random order."""
    grad, output, best_head, gamma = tensors((3, 5, 50, 40, 200), (HALF, HALF, SINGLE), torch.device("cpu"))
    first, *others = [
        CudaModel("sm80", order).gate_gradients(grad, output, best_head, gamma, merge) for order in range(6)
    ]
    for grads in others:
        assert all(torch.equal(a, b) for a, b in zip(first, grads))
