"""The forward kernels against the float64 oracle, and their other guarantees."""

import math

import pytest
import torch
from cases import Case, assert_norms_match, assert_within_budget, clear_winners, for_every_backend, in_dtype
from watching import LargestTensor

from rsattn import reference
from rsattn.call import Call
from rsattn.contract import NORMS

HALF, SINGLE, BF16 = torch.float16, torch.float32, torch.bfloat16
WHOLE_ROW, STREAM = 65, 300

CASES = [
    # Every length and head_dim once, with the options varied.
    Case(queries=1, width=16),
    Case(queries=2, width=40, norm="confidence", mask="bool"),
    Case(queries=63, width=64, dtype=HALF, norm="entrywise", mask="float"),
    Case(queries=65, width=80, scope="batch", mask="padding"),
    Case(queries=111, width=96, dtype=HALF, layout="transposed"),
    Case(queries=197, width=64),
    Case(queries=197, width=64, dtype=HALF, mask="bool", dropout=0.1),
    Case(queries=197, width=128, norm="confidence", layout="plain"),
    Case(queries=257, width=16, mask="padding"),
    Case(queries=257, width=64, dtype=HALF, norm="confidence", scope="batch"),
    Case(queries=300, width=192, norm="induced", layout="transposed"),
    Case(queries=300, width=40, dtype=HALF, mask="float"),
    Case(queries=300, width=64, norm="entrywise", mask="bool"),
    Case(queries=577, width=64, heads=1, batch=1),
    Case(queries=577, width=80, heads=2, batch=1, dtype=HALF, mask="bool", dropout=0.2),
    # The authors' full-width heads: E = D = 768, H = 4.
    Case(queries=65, width=768, heads=4, batch=1, norm="entrywise", scope="batch"),
    Case(queries=65, width=768, heads=4, batch=1, dtype=HALF),
    Case(queries=300, width=768, heads=1, batch=1),
    Case(queries=5, width=1024, heads=2, batch=1),
    # Cross attention with more queries and with more keys, whole-row and streaming.
    Case(queries=65, keys=2, width=16, mask="bool"),
    Case(queries=1, keys=300, width=64, norm="confidence"),
    Case(queries=300, keys=63, width=40, dropout=0.5, norm="entrywise"),
    # One head; more heads than a power of two; a batch whose heads are ranked together.
    Case(queries=20, width=32, heads=1),
    Case(queries=20, width=32, heads=17, batch=3, scope="batch"),
    Case(queries=300, width=32, heads=5, batch=3, scope="batch", norm="entrywise", dropout=0.3),
    # bfloat16: every length and head_dim, each norm at every length.
    *(
        Case(batch=1, heads=2, queries=n, width=e, dtype=BF16, norm=NORMS[(i + j) % 3])
        for i, n in enumerate((1, 65, 197, 300))
        for j, e in enumerate((1, 17, 64, 80))
    ),
    Case(batch=1, queries=65, width=64, dtype=BF16, norm="entrywise", mask="bool", dropout=0.1),
    Case(batch=1, queries=300, width=17, dtype=BF16, norm="confidence", mask="float"),
    Case(batch=1, queries=300, width=768, heads=1, dtype=BF16),
]
LARGE = [
    Case(batch=4, heads=12, queries=n, width=e, dtype=BF16, norm=norm, mask=mask, dropout=p)
    for n in (65, 197, 257, 577, 1025)
    for e in (64, 80, 128, 768)
    for norm, mask, p in (
        ("induced", "none", 0.0),
        ("entrywise", "bool", 0.1),
        ("confidence", "float", 0.0),
    )
]
# Too slow for the interpreter.
COMPILED = [
    Case(queries=n, keys=m, width=e, dtype=dtype, norm=norm, mask=mask, dropout=p, layout=layout)
    for dtype in (BF16, HALF, SINGLE)
    for n, m, e, norm, mask, p, layout in (
        (1, 1, 1, "induced", "none", 0.0, "plain"),
        (7, 300, 17, "entrywise", "float", 0.3, "transposed"),
        (63, 65, 40, "confidence", "padding", 0.0, "plain"),
        (197, None, 64, "induced", "none", 0.0, "packed"),
        (197, None, 64, "entrywise", "bool", 0.1, "packed"),
        (257, None, 80, "induced", "float", 0.2, "transposed"),
        (577, None, 64, "induced", "none", 0.0, "packed"),
        (577, 111, 96, "confidence", "bool", 0.0, "plain"),
        (1370, None, 64, "induced", "padding", 0.0, "packed"),
        (65, None, 768, "induced", "none", 0.1, "packed"),
    )
]


@pytest.mark.parametrize(("kernels", "case"), for_every_backend(CASES, LARGE, COMPILED), indirect=["kernels"])
def test_matches_the_oracle(kernels, case, device, poisoned_memory):
    call = case.call(device)
    output, norms, best_head, statistics, _ = kernels.forward(call)
    exact = in_dtype(call, torch.float64)
    oracle = reference.attention(exact)
    assert_within_budget("output", output, reference.attention(call).output, oracle.output)
    assert_norms_match(call, norms, oracle.norms, kernels.name)
    clear = clear_winners(call, oracle.norms, kernels.name)
    assert torch.equal(best_head[clear], oracle.best_head[clear])
    scores, mask = (exact.query @ exact.key.mT) * call.scale, exact.attn_mask
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    # An absolute error is a relative error of P. A score of size |q||k| is rounded once for each of its E terms.
    atol = torch.finfo(torch.float32).eps * (case.width + 16) * 8
    largest, log2_sum = statistics.double().unbind(2)
    log2_sum[torch.isinf(log2_sum)] = -math.inf  # rows that see no key
    logsumexp = largest * (call.scale if mask is None else math.log(2)) + log2_sum * math.log(2)
    torch.testing.assert_close(logsumexp, scores.logsumexp(-1), rtol=1e-6, atol=atol)


def test_a_random_size(kernels, device, dtype):
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    drawn = [int(torch.randint(1, most, (1,), generator=generator)) for most in (5, 6, 400, 400, 200)]
    batch, heads, queries, keys, width = drawn
    if kernels.name == "cuda":
        width = 8 * (width % 16 + 1)
    case = Case(batch, heads, queries, keys, width, dtype, mask="bool", dropout=0.1)
    print(case)
    call = case.call(device)
    result, oracle = kernels.forward(call), reference.attention(in_dtype(call, torch.float64))
    assert_within_budget(f"output of {case}", result.output, reference.attention(call).output, oracle.output)
    assert_norms_match(call, result.norms, oracle.norms, kernels.name)


@pytest.mark.parametrize("length", [WHOLE_ROW, STREAM], ids=["whole_row", "stream"])
class TestGuarantees:
    def test_bitwise_repeatable(self, kernels, length, device):
        call = Case(queries=length, mask="bool", dropout=0.1, dtype=HALF).call(device)
        first = kernels.forward(call)
        for _ in range(250 if device.type == "cuda" else 1):
            assert all(torch.equal(a, b) for a, b in zip(first[:4], kernels.forward(call)))

    @pytest.mark.parametrize("norm", ["induced", "entrywise", "confidence"])
    def test_a_sample_does_not_depend_on_its_batch_mates(self, kernels, length, norm, device, dtype):
        call = Case(batch=3, queries=length, norm=norm, dtype=dtype).call(device)
        together = kernels.forward(call)
        for b in range(3):
            alone = kernels.forward(call.on(*[tensor[b : b + 1] for tensor in call.inputs]))
            assert all(torch.equal(a[b], single[0]) for a, single in zip(together[:4], alone))

    def test_no_head_wins_a_tie_but_the_lowest(self, kernels, length, device, dtype):
        call = Case(queries=length, heads=5, dtype=dtype).call(device)
        query, key = (tensor[:, :1].expand_as(tensor) for tensor in (call.query, call.key))
        result = kernels.forward(call.on(query, key, call.value))
        assert (result.norms == result.norms[:, :1]).all()
        assert (result.best_head == 0).all()

    def test_entrywise_without_dropout_counts_rows_exactly(self, kernels, length, device, dtype):
        call = Case(queries=length, norm="entrywise", mask="bool", dtype=dtype).call(device)
        result = kernels.forward(call)
        assert torch.equal(result.norms, call.attn_mask.any(-1).sum(-1).float())
        assert (result.best_head == 0).all()

    @pytest.mark.parametrize("norm", ["induced", "confidence"])
    @pytest.mark.parametrize("scope", ["sample", "batch"])
    def test_nan_wins_and_stays_in_its_head(self, kernels, length, norm, scope, device, dtype):
        call = Case(queries=length, heads=4, layout="plain", norm=norm, scope=scope, dtype=dtype).call(device)
        call.query[1, 2, length // 2, 3] = math.nan
        call.query[1, 3, 0, 0] = math.nan
        result = kernels.forward(call)
        assert result.norms.isnan().tolist() == [[False] * 4, [False, False, True, True]]
        assert result.best_head[1] == 2
        if scope == "batch":
            assert result.best_head[0] == 2
        assert not result.output[:, :2].isnan().any()

    def test_a_row_that_sees_no_key(self, kernels, length, device, dtype):
        result = kernels.forward(Case(queries=length, mask="bool", norm="confidence", dtype=dtype).call(device))
        blind = length // 2
        assert (result.output[:, :, blind] == 0).all()
        assert (result.statistics[:, :, 1, blind] == math.inf).all()

    @pytest.mark.parametrize("norm", ["induced", "confidence"])
    def test_scores_that_are_all_infinite(self, kernels, length, norm, device, dtype):
        """Without a mask no key is hidden: a row of -inf comes from infinite inputs and is NaN, as in PyTorch."""
        call = Case(batch=1, queries=length, layout="plain", norm=norm, dtype=dtype).call(device)
        call.query[0, 1, 2], call.key[0, 1] = 1.0, -math.inf
        result = kernels.forward(call)
        assert result.output[0, 1, 2].isnan().all()
        assert result.norms.isnan().tolist() == [[False, True, False]]

    def test_no_square_tensor_is_allocated(self, kernels, length, device, dtype):
        case = Case(batch=1, heads=2, queries=length, width=16 if length > 100 else 8, dtype=dtype)
        with LargestTensor() as seen:
            output = kernels.forward(case.call(device)).output
        # The largest tensor is the test's own packed projections, 3 H N E float32 elements.
        assert 0 < seen.nbytes <= 3 * output.numel() * 4 < case.heads * length**2 * output.element_size()

    def test_empty_batch(self, kernels, length, device, dtype):
        result = kernels.forward(Case(batch=0, queries=length, dtype=dtype).call(device))
        assert result.output.shape == (0, 3, length, 64)
        assert result.norms.shape == (0, 3)
        assert result.best_head.shape == (0,)


def test_a_huge_finite_mask_value_is_not_minus_infinity(kernels, device, dtype):
    """A row masked with finfo.min everywhere attends uniformly, like a softmax over equal scores."""
    call = Case(queries=4, width=16, dtype=dtype).call(device)
    mask = torch.full((2, 3, 4, 4), torch.finfo(torch.float32).min, device=device)
    output = kernels.forward(Call((call.query * 0, call.key, call.value), mask, scale=1.0)).output
    # Four terms, each rounded, and the result.
    tolerance = max(1e-5, 2 * torch.finfo(dtype).eps)
    mean = call.value.double().mean(2, keepdim=True).expand_as(output)
    torch.testing.assert_close(output.double(), mean, rtol=tolerance, atol=tolerance)


def test_offsets_pass_32_bits(kernels, device):
    """A stride of 2^27 makes the last rows begin beyond 2^31 elements of one storage."""
    width, length, stride = 16, 20, 2**27
    try:
        storage = torch.empty(length * stride, dtype=torch.float16, device=device)
    except RuntimeError as error:
        pytest.skip(f"needs 5.4 GB of {device.type} memory: {error}")
    query = storage.as_strided((1, 1, length, width), (0, 0, stride, 1))
    query.copy_(torch.randn(1, 1, length, width))
    got, want = (kernels.forward(Call((tensor,) * 3))[:4] for tensor in (query, query.clone()))
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_poisoned_memory_is_poisoned(device, poisoned_memory):
    """Other tests rely on this: the launchers' allocations contain NaN here."""
    like = torch.zeros(3, device=device)
    assert like.new_empty((4, 2)).isnan().all()
    assert torch.empty(5, dtype=torch.float16, device=device).isnan().all()
    assert torch.empty_like(like).isnan().all()
