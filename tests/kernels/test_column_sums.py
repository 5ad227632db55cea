"""The attention received from every kernel, against the float64 oracle: beside the output, and alone."""

import math
from dataclasses import replace

import pytest
import torch
from cases import Case, for_every_backend, in_dtype, norm_error_bound
from watching import LargestTensor

from rsattn import reference
from rsattn.call import Call
from rsattn.contract import NORMS

HALF, SINGLE, BF16 = torch.float16, torch.float32, torch.bfloat16
WHOLE_ROW, STREAM = (65, 65), (70, 300)  # queries and keys

CASES = [
    Case(queries=1, width=16),
    Case(queries=2, width=40, norm="confidence", mask="bool"),
    Case(queries=63, width=64, dtype=HALF, norm="entrywise", mask="float"),
    Case(queries=65, width=80, scope="batch", mask="padding"),
    Case(queries=111, width=96, norm="confidence", layout="transposed"),
    Case(queries=197, width=64, norm="entrywise", dropout=0.1),
    Case(queries=197, width=64, dtype=BF16, mask="bool", dropout=0.1),
    Case(queries=70, keys=257, width=16, heads=2, mask="padding"),
    Case(queries=257, width=64, heads=2, norm="confidence", scope="batch"),
    Case(queries=70, keys=300, width=40, heads=2, dtype=HALF, norm="entrywise", mask="float"),
    Case(queries=130, keys=577, heads=2, batch=1, norm="confidence", dtype=BF16, mask="bool", dropout=0.2),
    Case(queries=65, width=768, heads=2, batch=1, norm="entrywise", scope="batch"),
    Case(queries=100, keys=300, width=768, heads=1, batch=1, norm="confidence"),
    Case(queries=65, keys=2, width=16, mask="bool"),
    Case(queries=1, keys=300, width=64, norm="confidence"),
    Case(queries=300, keys=63, width=40, dropout=0.5, norm="entrywise"),
]
LARGE = [
    Case(batch=4, heads=12, queries=n, width=e, dtype=BF16, norm=norm, mask=mask, dropout=p)
    for n in (65, 197, 577, 1025)
    for e in (64, 128, 768)
    for norm, mask, p in (("induced", "none", 0.0), ("entrywise", "bool", 0.1), ("confidence", "float", 0.0))
]
# Too slow for the interpreter.
COMPILED = [
    Case(queries=n, keys=m, width=e, dtype=dtype, norm=norm, mask=mask, dropout=p, layout=layout)
    for dtype in (BF16, HALF, SINGLE)
    for n, m, e, norm, mask, p, layout in (
        (7, 300, 17, "entrywise", "float", 0.3, "transposed"),
        (63, 65, 40, "confidence", "padding", 0.0, "plain"),
        (577, 111, 96, "confidence", "bool", 0.0, "plain"),
    )
] + [Case(batch=1, heads=1, queries=1370, dtype=dtype, mask="padding") for dtype in (BF16, HALF, SINGLE)]


def asked(call: Call) -> Call:
    call.return_received = True
    return call


def assert_sums(call: Call, got: torch.Tensor, kernels: str) -> None:
    assert got.dtype == torch.float32
    want = reference.attention(asked(in_dtype(call, torch.float64))).received.double()
    # A small sum may come from scores that are far from the largest, whose error is as large as that of the others.
    bound = norm_error_bound(Call(call.inputs), kernels)  # of a column sum: the induced norm is one
    torch.testing.assert_close(got.double(), want, rtol=bound, atol=bound * float(want.max()) if want.numel() else 0.0)


@pytest.mark.parametrize(("kernels", "case"), for_every_backend(CASES, LARGE, COMPILED), indirect=["kernels"])
def test_matches_the_oracle(kernels, case, device, poisoned_memory):
    call = case.call(device)
    plain, got = kernels.forward(call), kernels.forward(asked(case.call(device)))
    assert plain.received is None
    assert_sums(call, got.received, kernels.name)
    # Asking for it changes nothing else.
    assert all(torch.equal(a, b) for a, b in zip(plain[:4], got))


@pytest.mark.parametrize(("kernels", "case"), for_every_backend(CASES, LARGE, COMPILED), indirect=["kernels"])
def test_alone_matches_the_oracle(kernels, case, device, poisoned_memory):
    call = case.call(device)
    call.take((call.query, call.key, torch.full_like(call.value, math.nan)))  # it is not read
    call.seed = None
    got, again = kernels.received(call), kernels.received(call)
    assert_sums(call, got, kernels.name)
    assert torch.equal(got, again)


@pytest.mark.parametrize(("queries", "keys"), [WHOLE_ROW, STREAM], ids=["whole_row", "stream"])
class TestGuarantees:
    def test_bitwise_repeatable_and_the_same_for_every_norm(self, kernels, queries, keys, device):
        case = Case(heads=2, queries=queries, keys=keys, mask="bool", dropout=0.1, dtype=HALF)
        repeats = 250 if device.type == "cuda" else 1
        calls = [asked(replace(case, norm=norm).call(device)) for norm in NORMS]
        first, *others = [kernels.forward(call).received for call in calls for _ in range(repeats)]
        assert all(torch.equal(first, other) for other in others)

    def test_the_largest_is_the_induced_norm(self, kernels, queries, keys, device, dtype):
        result = kernels.forward(asked(Case(queries=queries, keys=keys, dtype=dtype).call(device)))
        assert torch.equal(result.received.amax(-1), result.norms)

    def test_alone_has_the_same_bits(self, kernels, queries, keys, device, dtype):
        call = asked(Case(queries=queries, keys=keys, mask="bool", dtype=dtype).call(device))
        assert torch.equal(kernels.received(call), kernels.forward(call).received)

    def test_a_sample_does_not_depend_on_its_batch_mates(self, kernels, queries, keys, device, dtype):
        call = asked(Case(batch=2, heads=2, queries=queries, keys=keys, norm="confidence", dtype=dtype).call(device))
        together = kernels.forward(call).received
        for b in range(2):
            alone = call.on(*[tensor[b : b + 1] for tensor in call.inputs])
            assert torch.equal(together[b], kernels.forward(alone).received[0])
            assert torch.equal(together[b], kernels.received(alone)[0])

    def test_a_row_that_sees_no_key_adds_nothing(self, kernels, queries, keys, device, dtype):
        call = Case(queries=queries, keys=keys, mask="bool", dtype=dtype).call(device)
        seeing = call.attn_mask.any(-1).sum(-1)
        assert (seeing < queries).any()
        got = kernels.received(call).double().sum(-1)
        torch.testing.assert_close(got, seeing.double(), rtol=2 * norm_error_bound(call, kernels.name), atol=0.0)

    def test_nan_stays_in_its_head(self, kernels, queries, keys, device, dtype):
        call = asked(
            Case(queries=queries, keys=keys, heads=4, layout="plain", norm="confidence", dtype=dtype).call(device)
        )
        call.query[1, 2, queries // 2, 3] = math.nan
        for received in (kernels.forward(call).received, kernels.received(call)):
            assert received[1, 2].isnan().all()
            assert not received[0].isnan().any()
            assert not received[1, [0, 1, 3]].isnan().any()

    def test_no_square_tensor_is_allocated(self, kernels, queries, keys, device, dtype):
        case = Case(batch=1, heads=2, queries=queries, keys=keys, width=16 if keys > 100 else 8, dtype=dtype)
        call = asked(case.call(device))
        with LargestTensor() as seen:
            kernels.forward(call)
            kernels.received(call)
        assert 0 < seen.nbytes < case.heads * queries * keys * call.query.element_size()

    def test_empty_batch(self, kernels, queries, keys, device, dtype):
        call = asked(Case(batch=0, queries=queries, keys=keys, dtype=dtype).call(device))
        assert kernels.forward(call).received.shape == (0, 3, keys)
        assert kernels.received(call).shape == (0, 3, keys)
