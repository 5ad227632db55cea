"""The paper's own claims, and what becomes of them: what the L1 norm of a head can and cannot choose.

Sharma & Verma (arXiv 2306.01594) rank heads by the L1 norm of their attention maps. Rows of a softmax sum to
one, so the entrywise norm is N for every head; these tests show what chooses the head then.
"""

from __future__ import annotations

import pytest
import torch
from oracle import make_inputs, naive_attention, normal, philox_keep, seed_after
from torch import Tensor

import rsattn
from rsattn import ResidualSelfAttention, residual_attention


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_entrywise_norms_tie_exactly_without_dropout(scope: str, dtype: torch.dtype) -> None:
    """Every head's norm is N to the last bit, at every precision, so the rule for ties chooses: head 0."""
    inputs = make_inputs(4, 12, 197, 197, 64, dtype=dtype)
    result = residual_attention(*inputs, norm="entrywise", scope=scope, backend="reference")
    assert torch.equal(result.norms, torch.full((4, 12), 197.0))
    assert result.best_head.tolist() == [0, 0, 0, 0]


def test_a_float_sum_chooses_a_head_by_rounding(capsys: pytest.CaptureFixture[str]) -> None:
    """Sum P in float32, as the paper's words read, and the winner is not the one float64 finds.

    In exact arithmetic the heads tie. Were the two roundings unrelated they would disagree in 11 of 12 samples;
    a rule that measured anything about the heads would disagree about never. The bound, half, lies between. The
    samples are seeded; only the order in which a machine sums can move the count, which is printed.
    """
    samples, flips = 60, 0
    for sample in range(samples):
        query, key, _ = make_inputs(1, 12, 197, 197, 64, seed=sample, dtype=torch.float32)
        scores = query[0] @ key[0].transpose(1, 2) / 8.0
        single = scores.softmax(dim=-1).sum(dim=(1, 2))
        double = scores.double().softmax(dim=-1).sum(dim=(1, 2))
        # What is ranked is rounding noise: every head is N up to it, 2^-20 of 197 in float32 and 2^-45 in float64.
        assert float((single - 197).abs().max()) < 197 * 2**-20
        assert float((double - 197).abs().max()) < 197 * 2**-45
        flips += int(single.argmax()) != int(double.argmax())
    with capsys.disabled():
        print(f"\n  float32 and float64 sums of P choose different heads in {flips} of {samples} samples")
    assert flips > samples / 2


def test_the_induced_norm_does_not_depend_on_rounding() -> None:
    """The same samples, the same comparison: float32 and float64 choose the same head in every one."""
    for sample in range(20):
        inputs = make_inputs(1, 12, 197, 197, 64, seed=sample, dtype=torch.float32)
        single = residual_attention(*inputs, backend="reference")
        double = residual_attention(*(t.double() for t in inputs), backend="reference")
        assert int(single.best_head) == int(double.best_head)


def authors_module(dim: int = 16, heads: int = 4, drop: float = 0.4) -> ResidualSelfAttention:
    """Their setting: full-width heads, post-dropout probabilities summed over the batch, one head for all."""
    torch.manual_seed(0)
    return ResidualSelfAttention(
        dim, heads, head_dim=dim, attn_drop=drop, norm="entrywise", scope="batch", dtype=torch.float64
    )


def authors_loops(module: ResidualSelfAttention, x: Tensor, keep: Tensor | None) -> tuple[Tensor, list[float], int]:
    """The authors' code as an independent computation: head by head, each head as wide as the tokens."""
    batch, length, dim = x.shape
    heads = module.num_heads
    q, k, v = (
        torch.stack([x @ w.T + b for w, b in zip(weight.split(dim), bias.split(dim))], dim=1)
        for weight, bias in zip(module.qkv.weight.detach().chunk(3), module.qkv.bias.detach().chunk(3))
    )
    naive = naive_attention(q, k, v, keep=keep, dropout_p=module.attn_drop)
    sums = []
    for h in range(heads):
        dropped = naive.probs[:, h]
        if keep is not None:
            dropped = dropped * keep[:, h] / (1 - module.attn_drop)
        sums.append(float(dropped.abs().sum()))
    best = sums.index(max(sums)) if keep is not None else 0  # in exact arithmetic: all tie, the first is taken
    joined = torch.cat([naive.output[:, h] for h in range(heads)], dim=2)
    projected = joined @ module.proj.weight.detach().T + module.proj.bias.detach()
    return projected + naive.output[:, best], sums, best


@pytest.mark.parametrize("seed", range(4))
def test_authors_semantics_in_training(seed: int) -> None:
    module, x = authors_module(), normal(3, 9, 16, seed=seed)
    keep = philox_keep(seed_after(seed), module.attn_drop, (3, 4, 9, 9))
    expected, sums, best = authors_loops(module, x, keep)
    with rsattn.record(module) as record:
        torch.manual_seed(seed)
        got = module(x)
    assert record.best_head.tolist() == [[best] * 3]
    assert record.norms[0].sum(0).tolist() == pytest.approx(sums, rel=3e-7)  # float32 norms: 2^-23 and a sum of 3
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # float64 sums


def test_authors_semantics_in_evaluation() -> None:
    """No dropout: all heads tie, head 0 wins, whatever the input."""
    module = authors_module().eval()
    for seed in range(5):
        x = normal(3, 9, 16, seed=seed)
        expected, sums, _ = authors_loops(module, x, None)
        with rsattn.record(module) as record:
            got = module(x)
        assert sums == pytest.approx([27.0] * 4, rel=1e-14)
        assert torch.equal(record.norms, torch.full((1, 3, 4), 9.0))
        assert record.best_head.tolist() == [[0, 0, 0]]
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)  # float64 sums


def test_in_training_the_dropout_noise_chooses_the_authors_head() -> None:
    """One input, one set of weights: 24 seeds of the dropout choose every one of the four heads."""
    module, x = authors_module(), normal(3, 9, 16)
    with rsattn.record(module) as record:
        for seed in range(24):
            torch.manual_seed(seed)
            module(x)
    # Were the choice a property of the heads, one would appear. By chance one of four is missing in 0.4 % of runs.
    assert set(record.best_head.flatten().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("norm", ["induced", "confidence"])
def test_the_norms_before_dropout_tell_heads_apart_and_agree_in_training_and_evaluation(norm: str) -> None:
    torch.manual_seed(0)
    module = ResidualSelfAttention(48, 4, attn_drop=0.5, norm=norm)
    with torch.no_grad():
        module.qkv.weight.mul_(6.0)  # scores of spread 1 and more, as trained models have; fresh weights give 0.03
    x = normal(8, 33, 48, dtype=torch.float32)
    with rsattn.record(module) as training:
        for _ in range(3):
            module.train()(x)
    with rsattn.record(module) as evaluation:
        module.eval()(x)
    chosen = evaluation.best_head[0]
    assert training.best_head[0].tolist() == chosen.tolist() * 3
    assert torch.equal(training.norms[0], evaluation.norms[0].repeat(3, 1))
    assert len(set(chosen.tolist())) > 1  # samples differ in their best head
    norms = evaluation.norms[0]
    # A thousand roundings apart (2^-23 each), so the order of the heads is no rounding.
    first, second = norms.topk(2, dim=1).values.unbind(1)
    assert float(((first - second) / first).min()) > 1000 * 2**-23
