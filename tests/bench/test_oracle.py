"""The oracle that checks a baseline before it is timed is right, and notices wrong results."""

import pytest
import torch

from rsattn import reference
from rsattn.bench import oracle
from rsattn.call import Call


def random(batch=2, heads=3, length=70, head_dim=8, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(batch, heads, length, head_dim, dtype=dtype) for _ in range(4)]


def attention(query, key, value):
    return reference.attention(Call((query, key, value), return_received=True))


def test_one_head_is_the_references_in_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(oracle, "ROWS", 16)  # 70 rows: four blocks and a partial one
    query, key, value, upstream = random()
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    want = attention(*leaves)
    gradients = torch.autograd.grad(want.output, leaves, upstream)
    got = oracle.head(query[1, 2], key[1, 2], value[1, 2], upstream[1, 2])
    # Both are float64 and differ only in the order of sums of 70 terms.
    torch.testing.assert_close(got.output, want.output[1, 2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.received.float(), want.received[1, 2])
    torch.testing.assert_close(got.norm.float(), want.norms[1, 2])
    for mine, theirs in zip(got.gradients, gradients):
        torch.testing.assert_close(mine, theirs[1, 2], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
class TestCheck:
    def results(self, dtype):
        query, key, value, upstream = random(dtype=dtype)
        leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        result = attention(*leaves)
        gradients = torch.autograd.grad(result.output, leaves, upstream)
        held = oracle.Oracle(query, key, value, upstream)
        return held, result.output.detach(), result.norms, list(gradients), result.received

    def test_eager_passes(self, dtype):
        held, output, norms, gradients, received = self.results(dtype)
        held.check("eager", output, norms, tuple(gradients), received)

    @pytest.mark.parametrize("head", [(0, 0), (1, 2)])
    @pytest.mark.parametrize("wrong", ["output", "norm", "dQ", "dK", "dV", "attention received"])
    def test_a_tenth_off_does_not(self, dtype, wrong, head):
        held, output, norms, gradients, received = self.results(dtype)
        tensors = {"output": output, "norm": norms, **dict(zip(("dQ", "dK", "dV"), gradients))}
        tensors["attention received"] = received
        tensors[wrong][head] *= 1.1
        with pytest.raises(AssertionError, match=f"baseline: {wrong} is off by"):
            held.check("baseline", output, norms, tuple(gradients), received)

    def test_nan_does_not(self, dtype):
        held, output, norms, *_ = self.results(dtype)
        output[0, 0, 3, 3] = torch.nan
        with pytest.raises(AssertionError, match="output is off by nan"):
            held.check("baseline", output, norms, ())
