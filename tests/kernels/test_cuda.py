"""Specific to backend="cuda": its plans, its model of a GPU, the choice of the backward pass, and rejected calls."""

import pytest
import torch
from cases import Case, assert_within_budget, autograd, in_dtype, norm_error_bound, packed, run, upstream
from cuda_model import SHARED_MEMORY, CudaModel, operators
from test_mask_gradient import expected

import rsattn
from rsattn import reference
from rsattn.backends import cuda, dispatch
from rsattn.call import Call, unpacked
from rsattn.slices import walk_of

HALF, BF16 = torch.float16, torch.bfloat16
CPU = torch.device("cpu")
NAMES = ["sm80", "sm90"]


def change(call, **changes):
    """The same call with other attributes."""
    changed = call.on(*call.inputs)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


class TestModel:
    """The model must detect what would be an error on a GPU; otherwise a passing test means little."""

    @pytest.mark.parametrize(
        "rule",
        [
            "a barrier some threads never reach",
            "different instructions in one warp",
            "memory beyond the block's",
            "a misaligned row",
            "a copy to a misaligned tile",
            "a wait for a barrier that was never made",
            "a wait that nothing ends",
            "a barrier with too many arrivals",
            "a descriptor without swizzling",
        ],
    )
    def test_a_broken_rule_is_noticed(self, rule):
        CudaModel("sm90", order=0).operators.broken(rule)
        assert operators().broken(rule) != ""

    def test_nothing_is_noticed_where_nothing_is_broken(self):
        assert CudaModel("sm90", order=0).operators.broken("none") == ""

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("width", [64, 128])
    def test_the_order_of_threads_and_blocks_changes_no_bit(self, name, width):
        """First, last and random order; asynchronous instructions at once and as late as allowed."""
        case = Case(batch=1, heads=2, queries=128, keys=111, width=width, dtype=BF16, mask="float", dropout=0.1)
        call = change(case.call(CPU), return_received=True, mask_gradient=True)
        call.attn_mask = call.attn_mask[:, :1]  # both heads share it
        runs = []
        for order in range(6):
            result, grads = run(CudaModel(name, order), call)
            runs.append((*result, *grads.of_inputs(), grads.mask))
        assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other))


class TestPlans:
    def launched(self, name, call, **changes):
        model = CudaModel(name, **changes)
        model.forward(call)
        return [line.split()[0] for line in model.launched()]

    @pytest.mark.parametrize("norm", ["induced", "entrywise", "confidence"])
    def test_one_kernel_for_every_norm_where_probabilities_can_be_kept(self, norm):
        call = Case(batch=1, heads=1, queries=70, dtype=HALF, norm=norm).call(CPU)
        assert self.launched("sm90", call) == ["forward"]

    @pytest.mark.parametrize(("name", "wide", "longest"), [("sm80", 464, 1000), ("sm90", 712, 1496)])
    def test_how_many_keys_one_pass_takes(self, name, wide, longest):
        """The limits in csrc/README.md, with 128 and with 64 rows in a block; nothing runs."""

        def plan(length):
            model = CudaModel(name, order=-1)
            model.forward(Call((torch.zeros(1, 1, length, 64, dtype=BF16),) * 3))
            lines = model.launched()
            return len(lines), int(lines[0].split()[4])

        assert [plan(n) for n in (wide, wide + 1, longest, longest + 1)] == [(1, 256), (1, 128), (1, 128), (2, 256)]

    @pytest.mark.parametrize(("mask", "dropout"), [("none", 0.0), ("float", 0.0), ("none", 0.1), ("bool", 0.1)])
    @pytest.mark.parametrize("name", NAMES)
    def test_the_second_pass_computes_the_same_norm(self, name, mask, dropout):
        """A GPU with too little memory to keep the scores recomputes them, and rounds none of them to 16 bits."""
        call = Case(queries=140, keys=200, width=40, dtype=BF16, mask=mask, dropout=dropout).call(CPU)
        assert self.launched(name, call, shared_memory=60_000) == ["forward", "column_sums"]
        result = CudaModel(name, shared_memory=60_000).forward(call)
        oracle = reference.attention(in_dtype(call, torch.float64))
        torch.testing.assert_close(result.norms.double(), oracle.norms.double(), rtol=2e-5, atol=0.0)
        assert torch.equal(result.best_head, CudaModel(name).forward(call).best_head)

    @pytest.mark.parametrize("norm", ["entrywise", "confidence"])
    @pytest.mark.parametrize(("shared_memory", "passes"), [(150_000, 1), (90_000, 1), (60_000, 2)])
    def test_no_norm_changes_where_the_attention_received_changes_the_plan(self, norm, shared_memory, passes):
        """Blocks of 128 rows, of 64 rows, and a second pass; alone, the same launches without values."""
        call = Case(queries=140, keys=290, width=40, dtype=BF16, norm=norm, dropout=0.1).call(CPU)
        model = CudaModel("sm90", shared_memory=shared_memory)
        plain = model.forward(call)
        assert len(model.launched()) == 1
        result = model.forward(change(call, return_received=True))
        lines = model.launched()
        assert [line.split()[0] for line in lines] == ["forward", "column_sums"][:passes]
        assert int(lines[0].split()[4]) == (128 if shared_memory == 90_000 else 256)
        assert all(torch.equal(a, b) for a, b in zip(plain[:4], result))
        assert torch.equal(model.received(call), result.received)  # it has no dropout: other code, the same bits
        assert model.launched() == lines

    def test_no_norm_changes_with_more_tiles_of_rows_than_threads(self):
        call = Case(batch=1, heads=4, queries=25_000, keys=8, width=8, dtype=HALF, norm="confidence").call(CPU)
        model = CudaModel("sm80", order=0, shared_memory=44_000)
        norms, threads = [], []
        for asked in (False, True):
            norms.append(model.forward(change(call, return_received=asked)).norms)
            threads.append(model.launched()[0].split()[4])
        assert threads == ["256", "128"]
        assert torch.equal(*norms)

    @pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
    @pytest.mark.parametrize("name", NAMES)
    def test_any_scale(self, name, scale):
        """A negative scale reverses the order of the scores, which a maximum before scaling would miss."""
        call = change(Case(queries=70, width=24, dtype=HALF).call(CPU), scale=scale)
        result = CudaModel(name).forward(call)
        ones = torch.ones_like(result.output)
        want, true_grads = autograd(call, torch.float64, result.best_head, ones, None)
        # An output has two roundings of float16; the terms of a norm have one.
        eps = torch.finfo(HALF).eps
        torch.testing.assert_close(result.output.double(), want.output, rtol=2 * eps, atol=2 * eps)
        torch.testing.assert_close(result.norms.double(), want.norms.double(), rtol=eps / 2, atol=0.0)
        for got, true in zip(CudaModel(name).backward(call, result, ones, None), true_grads):
            # P, dS, O and the result are rounded to float16. With a scale of 0 the gradient is exactly 0.
            assert (got.double() - true).norm() <= 4 * eps * true.norm()

    @pytest.mark.parametrize("name", NAMES)
    def test_confidence_of_rows_that_are_certain(self, name):
        """Scores of thousands have a rounding error of 1e-4 before the exponential: peak and sum must round alike."""
        call = Case(queries=70, width=24, dtype=HALF).call(CPU)
        result = CudaModel(name).forward(Call((1000 * call.key, call.key, call.value), scale=0.2, norm="confidence"))
        torch.testing.assert_close(result.norms, torch.ones_like(result.norms), rtol=2e-6, atol=0.0)

    @pytest.mark.parametrize("shared_memory", [None, 60_000], ids=["one_pass", "two_passes"])
    @pytest.mark.parametrize("name", NAMES)
    def test_padding_keys_have_no_weight(self, name, shared_memory):
        """Every score is -200: a padding key of zeros would have e^200 times the weight."""
        value = Case(batch=1, heads=2, queries=70, keys=200, dtype=BF16).call(CPU).value
        ones = torch.ones_like(value)
        call = Call((ones[:, :, :70], -ones, value), scale=200 / 64)
        model = CudaModel(name, shared_memory=shared_memory)
        result = model.forward(call)
        assert len(model.launched()) == (1 if shared_memory is None else 2)
        # 70 rows of 1/200 each; bfloat16 rounds terms and mean.
        norm = torch.full((1, 2), 70 / 200)
        torch.testing.assert_close(result.norms, norm, rtol=norm_error_bound(call, "cuda"), atol=0.0)
        mean = value.double().mean(2, keepdim=True).expand_as(result.output)
        torch.testing.assert_close(result.output.double(), mean, rtol=0.0, atol=2 * torch.finfo(BF16).eps)
        if shared_memory is None:
            dq, dk, dv = model.backward(call, result, torch.ones_like(result.output), None).of_inputs()
            assert dq.isfinite().all()
            assert dk.isfinite().all()
            torch.testing.assert_close(
                dv.float(), torch.full(dv.shape, 70 / 200), rtol=2 * torch.finfo(BF16).eps, atol=0.0
            )

    @pytest.mark.parametrize(("first", "stride"), [(1, 64), (0, 65)], ids=["shifted", "odd_rows"])
    @pytest.mark.parametrize("name", NAMES)
    def test_rows_that_begin_anywhere(self, name, first, stride):
        """Rows that are not aligned to 16 bytes are gathered element by element."""
        aligned = Case(batch=1, heads=2, queries=70, dtype=HALF).call(CPU)
        anywhere = []
        for tensor in aligned.inputs:
            storage = torch.zeros(1 + 2 * 70 * stride, dtype=HALF)
            view = storage.as_strided((1, 2, 70, 64), (0, 70 * stride, stride, 1), first)
            anywhere.append(view.copy_(tensor))
        results = [run(CudaModel(name), call) for call in (aligned, aligned.on(*anywhere))]
        for one, other in zip(*results):
            assert all(torch.equal(a, b) for a, b in zip(one, other) if a is not None)

    @pytest.mark.parametrize("kind", [torch.bool, HALF, BF16, torch.float32, torch.float64], ids=str)
    def test_masks_of_every_dtype(self, kind):
        mask = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(3))
        mask = mask > 0.3 if kind == torch.bool else mask.to(kind)
        call = change(Case(queries=40, width=32, dtype=HALF).call(CPU), attn_mask=mask)
        eager, oracle = (reference.attention(in_dtype(call, dtype)) for dtype in (HALF, torch.float64))
        assert_within_budget("output", CudaModel("sm90").forward(call).output, eager.output, oracle.output)


class TestBackward:
    def test_one_tile_of_dS_or_two(self):
        """At this size sm_80 fits one tile and sm_90 two; the sums are the same."""
        call = Case(batch=1, heads=1, queries=250, keys=200, dtype=BF16).call(CPU)
        shared = {}
        for name in NAMES:
            model = CudaModel(name)
            run(model, call)
            shared[name] = int(model.launched()[-1].split()[-2])
        assert shared["sm90"] - shared["sm80"] == 4 * 64 * 128
        assert shared["sm80"] <= SHARED_MEMORY["sm80"]

    @pytest.mark.parametrize(
        ("name", "width", "length"),
        [("sm90", 64, 256), ("sm90", 128, 128), ("sm80", 64, 256), ("sm80", 72, 128), ("sm86", 64, 128)],
    )
    def test_as_long_as_fits_and_no_longer(self, name, width, length):
        model = CudaModel(name)
        assert model.backward_length(width, 0) == length
        run(model, Case(batch=1, heads=1, queries=length, width=width, dtype=BF16).call(CPU))
        for queries, keys in ((length + 1, 8), (8, length + 1)):
            call = Case(batch=1, heads=1, queries=queries, keys=keys, width=width, dtype=BF16).call(CPU)
            with pytest.raises(RuntimeError, match="keep a whole head on chip"):
                run(model, call)


class TestMaskGradient:
    def setup(self, model, **changes):
        """A call whose samples share two masks, its forward pass and its gradients."""
        call = Case(**{"batch": 4, "heads": 2, "queries": 70, "dtype": BF16, "mask": "float"} | changes).call(CPU)
        call.attn_mask = call.attn_mask[:2]
        return call, model.forward(call), *upstream(call)

    @pytest.mark.parametrize("name", NAMES)
    def test_calls_of_any_length(self, name):
        """Backward passes of this length, with the mask's gradient, are Triton's, but this kernel has no limit."""
        model = CudaModel(name)
        call, result, grad, grad_best = self.setup(model, batch=2, queries=270, keys=300, width=40)
        assert model.backward_length(40, 0) < 270
        found = model.mask_gradient(call, result, grad, grad_best)
        eager, oracle = (expected(call, dtype, result.best_head, grad, grad_best) for dtype in (BF16, torch.float64))
        assert_within_budget("the mask's gradient", found, eager, oracle)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(("rows", "slices"), [(1, {1: 1, 10: 5, 512: 9}), (130, {1: 1, 6: 2, 512: 3})])
    def test_any_number_of_slices(self, name, rows, slices, monkeypatch):
        """Of a mask that all heads share: three heads of each sample or of both, with three tiles of queries."""
        call, _, grad, grad_best = self.setup(CudaModel(name), batch=2, heads=3, queries=130, keys=40)
        call.attn_mask = call.attn_mask[:, :1, :1] if rows == 1 else call.attn_mask[:1, :1]
        result = CudaModel(name).forward(call)
        want = expected(call, torch.float64, result.best_head, grad, grad_best)
        eager = expected(call, BF16, result.best_head, grad, grad_best)
        for enough, count in slices.items():
            monkeypatch.setattr("rsattn.slices.ENOUGH", enough)
            assert walk_of(call, 3, 1).slices == count
            first, *runs = [CudaModel(name, order).mask_gradient(call, result, grad, grad_best) for order in range(3)]
            assert all(torch.equal(first, other) for other in runs)
            assert_within_budget("the mask's gradient", first, eager, want)

    def test_how_many_blocks(self):
        model = CudaModel("sm90", order=-1)
        call, result, grad, grad_best = self.setup(model, queries=130, keys=200)
        for mask, blocks in (
            (call.attn_mask, 2 * 2 * 3 * 4),
            (call.attn_mask[:1, :1], 3 * 4),
            (call.attn_mask[:, :, :1], 6 * 2 * 2 * 4),  # a slice for each tile of queries of two samples
        ):
            model.mask_gradient(change(call, attn_mask=mask), result, grad, grad_best)
            assert model.launched()[0].startswith(f"mask_gradient {blocks} blocks of 128 threads")

    @pytest.mark.parametrize(
        ("query", "mask", "slices"),
        [
            ((8 * 64, 3, 49, 32), (1, 3, 49, 49), 128),  # Swin-T's first stage, in windows
            ((8 * 64, 3, 49, 32), (64, 3, 49, 49), 2),  # shifted: windows at the same place share an entry
            ((64, 12, 197, 64), (1, 12, 197, 197), 3),
            ((64, 12, 197, 64), (64, 12, 197, 197), 1),  # nothing is shared
            ((64, 12, 197, 64), (1, 1, 1, 197), 128),
            ((1, 2, 65536, 64), (1, 2, 1, 65536), 1),  # enough blocks; each walks over all queries
            ((1, 2, 65536, 64), (1, 2, 1, 256), 64),
            ((0, 3, 49, 32), (1, 3, 49, 49), 1),
        ],
    )
    def test_slices_of_real_sizes(self, query, mask, slices):
        """At least 512 blocks, as far as there is something to divide, and no more memory than Q."""
        query, mask = torch.empty(query, dtype=BF16, device="meta"), torch.empty(mask, device="meta")
        tiles = [-(-length // cuda.TILE) for length in (query.shape[2], mask.shape[3])]
        assert walk_of(Call((query,) * 3, mask), *tiles).slices == slices
        assert slices == 1 or slices * mask.nbytes <= query.nbytes

    def test_a_result_of_another_shape_is_refused(self):
        model = CudaModel("sm90")
        call, *others = self.setup(model)
        arguments = cuda._of_backward(call, *others)
        for shape in ((3, 2, 70, 70), (0, 2, 70, 70), (2, 3, 70, 70), (2, 2, 2, 70), (4, 2, 70, 71)):
            with pytest.raises(RuntimeError, match="the gradient of the mask must be"):
                model.operators.cuda_mask_gradient(*arguments, torch.empty(shape))

    def test_a_boolean_mask_has_none(self):
        model = CudaModel("sm90")
        call, *others = self.setup(model)
        with pytest.raises(RuntimeError, match="only a float mask has a gradient"):
            model.mask_gradient(change(call, attn_mask=call.attn_mask > 0), *others)


GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")


@pytest.fixture
def modeled(monkeypatch):
    """backend="cuda": on a GPU if there is one, otherwise the model."""
    if not GPU:
        monkeypatch.setitem(dispatch.BACKENDS, "cuda", CudaModel("sm90"))
    elif reasons := dispatch.BACKENDS["cuda"].missing("cuda"):
        pytest.skip("; ".join(reasons))


class TestDispatch:
    def call(self, length):
        return Case(batch=1, heads=2, queries=length, width=16, dtype=HALF).call(DEVICE)

    @pytest.mark.parametrize("form", ["three", "packed"])
    @pytest.mark.parametrize(("length", "heir"), [(100, "cuda"), (260, "triton")])
    def test_long_backward_passes_are_tritons(self, length, heir, form, modeled, monkeypatch):
        did = []
        for name in ("cuda", "triton"):
            kernels = dispatch.BACKENDS[name]
            real = kernels.backward
            monkeypatch.setattr(kernels, "backward", lambda *a, real=real, name=name: did.append(name) or real(*a))
        call = self.call(length)
        grad, _ = upstream(call)
        leaves = [tensor.detach().requires_grad_() for tensor in (packed(call) if form == "packed" else call).inputs]
        entry = rsattn.residual_attention_qkvpacked if form == "packed" else rsattn.residual_attention
        result = entry(*leaves, backend="cuda")
        got = torch.autograd.grad(result.output, leaves, grad)
        assert did == [heir]
        got = unpacked(*got) if form == "packed" else got
        (_, eager), (_, oracle) = (autograd(call, t, result.best_head, grad, None) for t in (HALF, torch.float64))
        for name, *triple in zip(("dQ", "dK", "dV"), got, eager, oracle):
            assert_within_budget(name, *triple)

    def test_without_triton_a_long_call_that_trains_is_refused(self, modeled, monkeypatch):
        monkeypatch.setattr(type(dispatch.BACKENDS["triton"]), "missing", lambda *_: ["is not installed"])
        query, key, value = self.call(260).inputs
        rsattn.residual_attention(query, key, value, backend="cuda")
        leaf = value.detach().requires_grad_()
        words = "leaves the backward pass of 260 queries and 260 keys to backend='triton', which is not installed"
        with pytest.raises(rsattn.BackendError, match=words):
            rsattn.residual_attention(query, key, leaf, backend="cuda")
        with torch.no_grad():
            rsattn.residual_attention(query, key, leaf, backend="cuda")

    def test_the_module_trains_on_it(self, modeled):
        torch.manual_seed(0)
        ours = rsattn.ResidualSelfAttention(48, 3, backend="cuda", device=DEVICE, dtype=HALF)
        same = rsattn.ResidualSelfAttention(48, 3, backend="reference", device=DEVICE, dtype=torch.float64)
        same.load_state_dict(ours.state_dict())
        x = torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(1)).to(DEVICE, HALF)
        for module in (ours, same):
            module(x.to(module.proj.weight.dtype)).square().sum().backward()
        for (name, got), want in zip(ours.named_parameters(), same.parameters()):
            # About ten roundings of float16 lie between an input and a gradient.
            error = (got.grad.double() - want.grad).norm() / want.grad.norm()
            assert error < 10 * torch.finfo(HALF).eps, name

    def test_opcheck(self, modeled):
        inputs = [tensor.detach().requires_grad_() for tensor in self.call(20).inputs]
        arguments = (*inputs, None, None, 0.0, 0.25, "induced", "sample", True, "cuda", True)
        torch.library.opcheck(torch.ops.rsattn.attention, arguments)

    def test_compiled_without_a_break(self, modeled):
        query, key, value = self.call(20).inputs

        def attend(*tensors):
            return rsattn.residual_attention(*tensors, backend="cuda")[:3]

        want = attend(query, key, value)
        got = torch.compile(attend, fullgraph=True, backend="aot_eager")(query, key, value)
        assert all(torch.equal(a, b) for a, b in zip(want, got))

    @pytest.mark.parametrize(
        ("width", "dtype", "reason"),
        [
            (20, HALF, "takes head_dim that is a multiple of 8, not 20"),
            (136, HALF, "takes head_dim up to 128, not 136"),
            (64, torch.float32, "takes float16, bfloat16, not float32"),
        ],
    )
    def test_what_it_does_not_take(self, width, dtype, reason, modeled):
        query = torch.ones(1, 1, 5, width, dtype=dtype, device=DEVICE)
        with pytest.raises(rsattn.BackendError, match=reason):
            rsattn.residual_attention(query, query, query, backend="cuda")


class TestWrongCallers:
    """The operators also reject what the contract rejects, before they read or write anything."""

    def call(self, norm=0, **changes):
        tensors = {name: torch.zeros(1, 1, 5, 16, dtype=HALF) for name in ("query", "key", "value", "output")}
        query, key, value, output = (tensors | changes).values()
        results = (output, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 2, 5), None)
        CudaModel("sm90").operators.cuda_forward(query, key, value, None, None, 0.0, 1.0, norm, True, *results)

    def test_a_valid_call(self):
        self.call()

    @pytest.mark.parametrize("name", ["key", "value", "output"])
    def test_two_dtypes(self, name):
        with pytest.raises(RuntimeError, match="share one dtype"):
            self.call(**{name: torch.zeros(1, 1, 5, 16, dtype=BF16)})

    def test_an_unknown_norm(self):
        with pytest.raises(RuntimeError, match="numbered 0 to 2"):
            self.call(norm=3)

    def test_an_output_that_cannot_be_written_in_pairs(self):
        with pytest.raises(RuntimeError, match="write an output whose rows are contiguous"):
            self.call(output=torch.zeros(1, 1, 16, 5, dtype=HALF).transpose(2, 3))

    def test_a_head_dim_that_is_no_multiple_of_8(self):
        odd = torch.zeros(1, 1, 5, 12, dtype=HALF)
        with pytest.raises(RuntimeError, match="a multiple of 8"):
            self.call(query=odd, key=odd, value=odd, output=odd)
