"""The epilogue kernels, compared bit for bit where there is only one rounding."""

import math

import pytest
import torch

from rsattn import reference

ONE_CODE_FOR_ALL_GPUS = True  # conftest.py
SHAPES = [(2, 3, 65, 64, 192), (1, 4, 17, 40, 160), (3, 2, 7, 96, 192), (2, 4, 5, 48, 48), (2, 1, 1, 16, 16)]


def tensors(shape, dtype, device):
    batch, heads, length, width, dim = shape
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(batch, length, dim, generator=generator).to(device, dtype)
    output = torch.randn(batch, length, heads, width, generator=generator).to(device, dtype).transpose(1, 2)
    best_head = torch.randint(0, heads, (batch,), generator=generator).to(device)
    return projected, output, best_head


def merges(shape):
    _, heads, _, width, dim = shape
    return ["tile"] + (["slot"] if dim == heads * width else [])


CASES = [(shape, merge) for shape in SHAPES for merge in merges(shape)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "merge"), CASES, ids=str)
class TestEpilogue:
    def test_adds_what_the_reference_adds(self, kernels, shape, merge, dtype, device, poisoned_memory):
        projected, output, best_head = tensors(shape, dtype, device)
        before = projected.clone()
        got = kernels.add_best_head(projected, output, best_head, merge)
        assert torch.equal(got, reference.add_best_head(before, output, best_head, merge))
        assert torch.equal(projected, before)
        assert got.is_contiguous()

    def test_in_place(self, kernels, shape, merge, dtype, device):
        projected, output, best_head = tensors(shape, dtype, device)
        want = reference.add_best_head(projected, output, best_head, merge)
        got = kernels.add_best_head(projected, output, best_head, merge, in_place=True)
        assert got is projected
        assert torch.equal(projected, want)

    def test_transpose(self, kernels, shape, merge, dtype, device, poisoned_memory):
        _, heads, _, width, _ = shape
        grad, output, best_head = tensors(shape, dtype, device)
        got = kernels.best_head_gradient(grad, best_head, heads, width, merge)
        leaf = output.double().requires_grad_()
        joined = reference.add_best_head(grad.double() * 0, leaf, best_head, merge)
        (full,) = torch.autograd.grad(joined, leaf, grad.double())
        want = full[torch.arange(len(full)), best_head]
        # Tile sums D/E terms in float32 and rounds once to the dtype; slot copies.
        repeats = grad.shape[2] // width
        atol = torch.finfo(dtype).eps * repeats * grad.abs().max().item() if merge == "tile" else 0.0
        torch.testing.assert_close(got.double(), want, rtol=0.0, atol=atol)


@pytest.mark.parametrize("merge", ["tile", "slot"])
def test_a_nan_in_a_losing_head_goes_nowhere(kernels, merge, device):
    projected, output, best_head = tensors((2, 3, 9, 32, 96), torch.float32, device)
    output = output.clone()
    for b, best in enumerate(best_head.tolist()):
        output[b, [h for h in range(3) if h != best]] = math.nan
    assert kernels.add_best_head(projected, output, best_head, merge).isfinite().all()


def test_strided_projections(kernels, device):
    projected, output, best_head = tensors((2, 3, 9, 32, 96), torch.float32, device)
    strided = torch.stack([projected, torch.full_like(projected, math.nan)], -1)[..., 0]
    assert not strided.is_contiguous()
    got = kernels.add_best_head(strided, output, best_head, "tile")
    assert torch.equal(got, reference.add_best_head(projected, output, best_head, "tile"))
    grads = [kernels.best_head_gradient(g, best_head, 3, 32, "tile") for g in (projected, strided)]
    assert torch.equal(*grads)


def test_empty_batch(kernels, device):
    projected, output, best_head = tensors((0, 3, 9, 32, 96), torch.float32, device)
    joined = kernels.add_best_head(projected, output, best_head, "tile")
    assert joined.shape == (0, 9, 96)
    assert kernels.best_head_gradient(joined, best_head, 3, 32, "tile").shape == (0, 9, 32)


@pytest.mark.parametrize("gated", [False, True], ids=["no_gate", "gate"])
@pytest.mark.parametrize("merge", ["tile", "slot"])
@pytest.mark.parametrize("head", [-1, 3, 2**40])
def test_a_best_head_out_of_range(kernels, head, merge, gated, device):
    """Nothing is read outside a tensor: the CPU raises an error, a GPU gives NaN for the sample and for gamma."""
    projected, output, best_head = tensors((2, 3, 5, 16, 48), torch.float16, device)
    best_head[1] = head
    gamma = torch.randn(48, dtype=torch.float16, device=device) if gated else None

    def backward():
        if gated:
            return kernels.gate_gradients(projected, output, best_head, gamma, merge)
        return (kernels.best_head_gradient(projected, best_head, 3, 16, merge),)

    if kernels.name == "cpu":
        with pytest.raises(RuntimeError, match=f"best_head is {head} for sample 1"):
            kernels.add_best_head(projected, output, best_head, merge, gamma)
        if gated or merge == "slot":  # otherwise the gradient is the same for every head
            with pytest.raises(RuntimeError, match=f"best_head is {head} for sample 1"):
                backward()
        return
    joined = kernels.add_best_head(projected, output, best_head, merge, gamma)
    assert joined[1].isnan().all()
    assert joined[0].isfinite().all()
    gradient, *of_gamma = backward()
    if gated or merge == "slot":
        assert gradient[1].isnan().all()
        assert gradient[0].isfinite().all()
    for grad_gamma in of_gamma:
        assert grad_gamma.isnan().all()
