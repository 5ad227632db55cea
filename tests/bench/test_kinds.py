"""Every kind of case at a small size: all its variants run and agree with the oracle."""

import gc
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import rsattn
from rsattn.backends.cpu import CpuBackend
from rsattn.bench import baselines, clock, kinds, measure
from rsattn.bench.cases import Case
from rsattn.bench.kinds import attention, bias, epilogue, gate, overhead, packed, received
from rsattn.bench.kinds.ranking import NO_RANKING
from rsattn.bench.shapes import MODELS, Shape

CPU = torch.device("cpu")
SMALL = Shape(2, 3, 33, 16)
SMALL_PACKED = [
    Case("packed", SMALL, dtype, True, detail=detail)
    for detail in (packed.ALONE, packed.PROJECTED)
    for dtype in ("float32", "bfloat16")
]
SMALL_RECEIVED = [
    Case("received", SMALL, dtype, detail=detail)
    for detail in (received.COST, received.RECOMPUTED)
    for dtype in ("float32", "bfloat16")
]
# A square of 4 x 4 patches and a class token, the windows of two images, and a cube of 3 x 3 x 3 patches.
SMALL_BIAS = [
    Case("bias", Shape(batch, 3, length, 16), dtype, True, detail=library)
    for library, batch, length in ((bias.BEIT, 2, 17), (bias.SWIN, 128, 4), (bias.SABLOCK, 2, 27))
    for dtype in ("float32", "bfloat16")
]
# All except `add_best_head`, which runs no attention.
SMALL_OVERHEAD = [
    Case("overhead", SMALL, "float32", train, detail=detail)
    for detail, train in (("", False), (overhead.RECORDED, False), ("", True))
]


def title(case):
    return case.title


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(clock, "MOST", 3)
    # Each case collects garbage, which would visit the objects of all imported libraries: 0.3 s.
    gc.freeze()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", ["attention", "length", "width", "ranking", "block"])
def test_all_variants_run(kind, train, dtype):
    if kind == "ranking":
        train = False  # this kind has only forward cases
    case = Case(kind, SMALL, dtype, train)
    record = measure.measure(case, CPU)
    assert list(record.seconds) == kinds.names(case, CPU)
    assert record.left_out == {}
    assert {len(times) for times in record.seconds.values()} == {3}
    assert all(time > 0 for times in record.seconds.values() for time in times)
    assert set(record.peaks) == (set(record.seconds) if kind in ("length", "block") else set())


@pytest.mark.parametrize("shape", [SMALL, Shape(1, 2, 5, 768)])
def test_epilogue(shape):
    record = measure.measure(Case("epilogue", shape, "bfloat16"), CPU)
    assert set(record.seconds) == {baselines.RSATTN, baselines.EAGER}


def test_bytes_of_the_epilogue():
    # 2 * 33 rows: 48 channels read and written, 16 of the best head read, 4 bytes each.
    assert epilogue.moved(Case("epilogue", SMALL, "float32")) == 66 * (48 + 48 + 16) * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("train", [False, True])
def test_gate(train, dtype):
    record = measure.measure(Case("gate", SMALL, dtype, train), CPU)
    assert list(record.seconds) == kinds.names(record.case, CPU) == ["rsattn", gate.UNGATED, "eager"]
    assert record.left_out == {}


@pytest.mark.parametrize("case", SMALL_PACKED, ids=title)
def test_packed(case):
    record = measure.measure(case, CPU)
    alone = ["eager"] if case.detail == packed.ALONE else []
    assert list(record.seconds) == kinds.names(case, CPU) == ["rsattn", packed.UNPACKED, "SDPA packed", *alone]
    assert record.left_out == {}


@pytest.mark.parametrize("case", SMALL_RECEIVED, ids=title)
def test_received(case):
    record = measure.measure(case, CPU)
    ours = ["rsattn", received.WITHOUT, received.ALONE]
    theirs = ["rsattn", "SDPA packed", "SDPA contiguous", received.EAGER_ALONE]
    assert list(record.seconds) == kinds.names(case, CPU) == (ours if case.detail == received.COST else theirs)
    assert record.left_out == {}


@pytest.mark.parametrize("case", SMALL_BIAS, ids=title)
def test_bias(case):
    record = measure.measure(case, CPU)
    assert list(record.seconds) == list(record.peaks) == ["rsattn", bias.LIBRARY]
    assert list(record.left_out) == [baselines.FLEX]
    assert "does not support backward on CPU" in record.left_out[baselines.FLEX]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", SMALL_BIAS[::2], ids=title)
def test_flex_attention_gets_the_librarys_bias(monkeypatch, case):
    """Forward, because on a CPU FlexAttention has no backward pass; compilation changes no number."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    block = bias.BLOCKS[case.detail](case.shape, {"dtype": torch.float32, "device": CPU})
    x = torch.randn(case.shape.batch, case.shape.length, case.shape.dim)
    with torch.no_grad():
        got, want = bias.flex_attention_block(block, block.module)(x), block.module(x, **block.options)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)  # a layer of float32 sums of up to 48 numbers below 10


@pytest.mark.parametrize("case", overhead.cases(CPU), ids=title)
def test_overhead_is_of_many_calls_in_a_row_on_one_thread(monkeypatch, case):
    every, threads, calls = torch.get_num_threads(), set(), 0
    torch.set_num_threads(2)
    try:
        setup = kinds.setup(case, CPU)
        monkeypatch.setattr(kinds, "setup", lambda *_: setup)
        noted = {}
        for name, variant in setup.variants.items():

            def call(index, inner=variant.call):
                nonlocal calls
                calls += 1
                threads.add(torch.get_num_threads())
                return inner(index)

            noted[name] = replace(variant, call=call)
        setup.variants.update(noted)
        record = measure.measure(case, CPU, seconds=0.0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(every)
    assert list(record.seconds) == kinds.names(case, CPU) == ["rsattn", overhead.baseline(case)]
    assert threads == {1, 2}  # two while results are checked
    assert calls == 2 * (1 + 3 * overhead.CALLS)


def test_threads_are_put_back(monkeypatch):
    every = torch.get_num_threads()
    for seed in range(4):  # whichever variant is last
        monkeypatch.setattr(clock, "SEED", seed)
        record = measure.measure(Case("threads", SMALL, "float32"), CPU)
        assert torch.get_num_threads() == every
    assert set(record.seconds) == set(kinds.names(record.case, CPU))


def test_ceilings():
    record = measure.measure(Case("ceilings", Shape(1, 1, 64, 64), "float32"), CPU)
    assert set(record.seconds) == {"matrix product", "copy"}


def test_the_whole_model_at_its_smallest(monkeypatch):
    configs = pytest.importorskip("pytorch_pretrained_vit.configs", reason="pip install 'rsattn[bench]'")
    # One of the twelve blocks, which are all alike, at the longer of the two lengths, where P is most of the memory.
    one_block = configs.get_b16_config() | {"num_layers": 1}
    monkeypatch.setitem(configs.PRETRAINED_MODELS["B_16_imagenet1k"], "config", one_block)
    record = measure.measure(Case("model", Shape(1, 12, 577, 64), "float32"), CPU, seconds=0.0)
    assert list(record.seconds) == [baselines.RSATTN, baselines.SDPA, baselines.EAGER]
    assert record.left_out == {}
    # Eager stores P: twelve heads of 577 x 577 in float32, 16 MB. The allocator reuses some of it: in 50 measurements
    # eager needed at least 12.7 MB more.
    assert record.peaks[baselines.EAGER] > record.peaks[baselines.RSATTN] + 12 * 577 * 577 * 4 / 2


def make_kernels_wrong(monkeypatch):
    """Makes outputs and gradients of backend="cpu" a tenth too large."""
    forward, backward = CpuBackend.forward, CpuBackend.backward

    def wrong_forward(self, *args):
        found = forward(self, *args)
        return found._replace(output=found.output.mul_(1.1))

    def wrong_backward(self, *args):
        found = backward(self, *args)
        for gradient in found.of_inputs():
            gradient.mul_(1.1)
        return found

    monkeypatch.setattr(CpuBackend, "forward", wrong_forward)
    monkeypatch.setattr(CpuBackend, "backward", wrong_backward)


class TestWrong:
    """A wrong baseline is named and not timed; an error in rsattn stops the command."""

    case = Case("attention", SMALL, "float32")

    def test_a_baseline(self, monkeypatch):
        eager = baselines.eager
        monkeypatch.setattr(baselines, "eager", lambda q, k, v: (eager(q, k, v)[0] * 1.01, None))
        record = measure.measure(self.case, CPU)
        assert "eager: output is off by 1.0e-02 of its size" in record.left_out["eager"]
        assert "eager" not in record.seconds
        assert baselines.RSATTN in record.seconds

    def test_a_baseline_that_cannot(self, monkeypatch):
        def fails(query, key, value):
            raise RuntimeError("No available kernel.\nAborting")

        monkeypatch.setattr(baselines, "eager", fails)
        assert measure.measure(self.case, CPU).left_out == {"eager": "No available kernel."}

    @pytest.mark.parametrize("kind", ["attention", "length", "ranking", "block", "epilogue"])
    @pytest.mark.parametrize("train", [False, True])
    def test_rsattn(self, monkeypatch, kind, train):
        if kind == "epilogue":
            right = rsattn.add_best_head
            monkeypatch.setattr(rsattn, "add_best_head", lambda *args: right(*args) * 1.01)
        else:
            make_kernels_wrong(monkeypatch)
        with pytest.raises(AssertionError):
            measure.measure(Case(kind, SMALL, "float32", train), CPU)

    @pytest.mark.parametrize("case", SMALL_PACKED + SMALL_OVERHEAD, ids=title)
    def test_rsattn_packed_and_on_the_host(self, monkeypatch, case):
        make_kernels_wrong(monkeypatch)
        with pytest.raises(AssertionError):
            measure.measure(case, CPU)

    @pytest.mark.parametrize("case", SMALL_RECEIVED, ids=title)
    def test_the_attention_received(self, monkeypatch, case):
        forward = CpuBackend.forward

        def wrong(self, call):
            found = forward(self, call)
            return found._replace(received=found.received * 1.1) if call.return_received else found

        monkeypatch.setattr(CpuBackend, "forward", wrong)
        with pytest.raises(AssertionError, match="rsattn: attention received is off by"):
            measure.measure(case, CPU)

    def test_the_attention_received_alone(self, monkeypatch):
        alone = CpuBackend.received
        monkeypatch.setattr(CpuBackend, "received", lambda self, call: alone(self, call) * 1.1)
        with pytest.raises(AssertionError, match="rsattn, received alone: attention received is off by"):
            measure.measure(SMALL_RECEIVED[0], CPU)

    @pytest.mark.parametrize("case", SMALL_BIAS, ids=title)
    def test_the_gradient_of_a_bias(self, monkeypatch, case):
        backward = CpuBackend.backward

        def wrong(self, *args):
            found = backward(self, *args)
            return found._replace(mask=found.mask * 1.1)

        monkeypatch.setattr(CpuBackend, "backward", wrong)
        with pytest.raises(AssertionError, match=r"rsattn: the gradient of .* is off by"):
            measure.measure(case, CPU)

    def test_the_head_that_is_added_on_the_host(self, monkeypatch):
        right = rsattn.add_best_head
        monkeypatch.setattr(rsattn, "add_best_head", lambda *args: right(*args) * 1.01)
        with pytest.raises(AssertionError):
            measure.measure(Case("overhead", SMALL, "float32", detail=overhead.JOIN), CPU)

    @pytest.mark.parametrize("which", [0, 1])
    def test_a_gradient_of_the_gate(self, monkeypatch, which):
        right = CpuBackend.gate_gradients

        def wrong(*args):
            grads = right(*args)
            grads[which].mul_(1.01)
            return grads

        monkeypatch.setattr(CpuBackend, "gate_gradients", wrong)
        with pytest.raises(AssertionError):
            measure.measure(Case("gate", SMALL, "float32", True), CPU)

    @pytest.mark.parametrize("gated", [False, True])
    def test_a_sum_with_or_without_a_gate(self, monkeypatch, gated):
        right = CpuBackend.add_best_head

        def wrong(self, projected, output, best_head, merge, gamma=None, in_place=False):
            joined = right(self, projected, output, best_head, merge, gamma, in_place)
            return joined.mul_(1.01 if (gamma is not None) == gated else 1.0)

        monkeypatch.setattr(CpuBackend, "add_best_head", wrong)
        with pytest.raises(AssertionError):
            measure.measure(Case("gate", SMALL, "float32"), CPU)

    @pytest.mark.parametrize("case", SMALL_PACKED, ids=title)
    def test_a_packed_gradient_in_the_wrong_order(self, monkeypatch, case):
        def key_before_query(packed):
            return rsattn.residual_attention_qkvpacked(packed[:, :, [1, 0, 2]])

        monkeypatch.setattr(packed, "rsattn", SimpleNamespace(residual_attention_qkvpacked=key_before_query))
        with pytest.raises(AssertionError, match=r"rsattn: .* is off by"):
            measure.measure(case, CPU)

    @pytest.mark.parametrize("detail", ["", overhead.RECORDED])
    def test_gradients_recorded_or_not_contrary_to_the_case(self, detail):
        other = {"": overhead.RECORDED, overhead.RECORDED: ""}[detail]
        check = kinds.setup(Case("overhead", SMALL, "float32", detail=detail), CPU).check
        calls = kinds.setup(Case("overhead", SMALL, "float32", detail=other), CPU).variants
        for name in (baselines.RSATTN, baselines.SDPA):
            with pytest.raises(AssertionError, match=f"{name}: gradients are"):
                check(name, calls[name].call(0))

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("train", [False, True])
    def test_rsattns_choice_of_head(self, monkeypatch, train, dtype):
        forward = CpuBackend.forward

        def second_best(self, *args):
            found = forward(self, *args)
            found.best_head.copy_(found.norms.argsort(1)[:, -2])
            return found

        monkeypatch.setattr(CpuBackend, "forward", second_best)
        with pytest.raises(AssertionError, match="rsattn is off by"):
            measure.measure(Case("block", SMALL, dtype, train), CPU)

    def test_a_residual_that_was_not_added(self, monkeypatch):
        from rsattn.bench.kinds import ranking

        monkeypatch.setattr(ranking, "attend_and_join", lambda call, project, *rest: project(call.query))
        for kind in ("length", "ranking"):
            with pytest.raises(AssertionError):
                measure.measure(Case(kind, SMALL, "float32"), CPU)


@pytest.mark.parametrize("installed", [False, True])
def test_a_case_whose_library_cannot_be_imported_is_left_out(monkeypatch, installed):
    monkeypatch.setattr(bias, "is_installed", lambda package: installed)
    monkeypatch.setitem(sys.modules, "timm.models.beit", None)
    record = measure.measure(SMALL_BIAS[0], CPU)
    assert record.seconds == {}
    assert list(record.left_out) == kinds.names(SMALL_BIAS[0], CPU)
    says = "timm cannot be imported: timm" if installed else "timm is not installed: pip install timm"
    assert all(reason.startswith(says) for reason in record.left_out.values())


def test_without_norms_there_are_none():
    output, norms = kinds.setup(Case("ranking", SMALL, "float32"), CPU).variants[NO_RANKING].call(0)
    assert norms is None
    assert output.shape == (2, 3, 33, 16)


class TestTheSuite:
    """The cases that the benchmarks cover on a CPU and on a GPU, without running them."""

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_names_are_known_beforehand_and_titles_differ(self, device):
        cases = kinds.cases(torch.device(device))
        assert len({case.title for case in cases}) == len(cases)
        assert all(len(set(names)) == len(names) > 1 for names in (kinds.names(c, torch.device(device)) for c in cases))

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_every_real_shape_forward_and_backward(self, device):
        cases = [case for case in kinds.cases(torch.device(device)) if case.kind == "attention"]
        assert {case.model for case in cases} == set(MODELS)
        assert {case.model for case in cases if case.train} == set(MODELS) - {"16384 tokens"}
        lengths = {case.shape.length for case in cases}
        assert lengths == {65, 197, 257, 577, 1025, 1370, 4096, 16384}

    def test_overhead_and_packed_on_either_device(self):
        for device, dtypes in (("cpu", ["float32", "bfloat16"]), ("cuda", ["bfloat16"])):
            cases = kinds.cases(torch.device(device))
            small = [case for case in cases if case.kind == "overhead"]
            assert [(case.detail, case.train) for case in small] == list(overhead.AT_MOST)
            assert {case.dtype for case in small} == {dtypes[0]}
            assert [(c.detail, c.dtype) for c in cases if c.kind == "packed"] == [
                (detail, dtype) for detail in (packed.ALONE, packed.PROJECTED) for dtype in dtypes
            ]

    def test_the_gate_at_both_lengths_of_a_vit_and_with_full_width_heads(self):
        for device, dtypes in (("cpu", ["float32", "bfloat16"]), ("cuda", ["bfloat16"])):
            cases = [case for case in kinds.cases(torch.device(device)) if case.kind == "gate"]
            assert [(case.shape.length, case.dtype, case.train) for case in cases] == [
                (length, dtype, train) for length in (197, 577, 65) for dtype in dtypes for train in (False, True)
            ]

    def test_received_and_a_learned_bias_on_either_device(self):
        for device, dtypes in (("cpu", ["float32", "bfloat16"]), ("cuda", ["bfloat16"])):
            cases = kinds.cases(torch.device(device))
            found = [(c.shape.length, c.dtype, c.detail) for c in cases if c.kind == "received"]
            details = (received.COST, received.RECOMPUTED)
            assert found == [(n, dtype, detail) for n in (197, 577) for dtype in dtypes for detail in details]
            blocks = ((197, bias.BEIT), (577, bias.BEIT), (49, bias.SWIN), (512, bias.SABLOCK))
            assert [(c.shape.length, c.detail, c.dtype) for c in cases if c.kind == "bias"] == [
                (length, library, dtype) for length, library in blocks for dtype in dtypes
            ]
        names = kinds.names(Case("received", SMALL, "bfloat16", detail=received.RECOMPUTED), torch.device("cuda"))
        assert {"SDPA flash", "SDPA cuDNN", "SDPA efficient", received.COLREDUCE} < set(names)

    def test_a_gpu_has_every_kernel_of_sdpa(self):
        names = baselines.names(Case("attention", Shape(32, 12, 577, 64), "bfloat16", True), torch.device("cuda"))
        assert {"SDPA flash", "SDPA cuDNN", "SDPA efficient", "eager", "compiled eager", "FlexAttention"} < set(names)

    def test_the_cuda_kernels_take_part_where_their_head_dim_allows(self):
        def names_for(head_dim):
            return baselines.names(Case("attention", Shape(1, 1, 65, head_dim), "bfloat16"), torch.device("cuda"))

        assert baselines.CUDA in names_for(64)
        assert baselines.CUDA not in names_for(768)
        # A wrong or missing CUDA kernel is left out and named, as a baseline is; other rsattn errors stop the command.
        assert not baselines.CUDA.startswith(baselines.RSATTN)

    def test_lengths_reach_from_64_to_4096(self):
        cases = [case for case in kinds.cases(CPU) if case.kind == "length" and not case.train]
        assert [case.shape.length for case in cases] == [64, 128, 256, 512, 1024, 2048, 4096]
        assert len({(case.shape.batch, case.shape.heads, case.shape.head_dim) for case in cases}) == 1

    def test_a_cpus_largest_probabilities_fit_a_laptop(self):
        assert max(case.shape.probabilities(4) for case in kinds.cases(CPU) if case.kind != "ceilings") < 1.5e9


def test_flops_and_bytes():
    shape = Shape(1, 1, 2, 3)
    # Q K^T and P V: 2 x 2 results of 3 products and 3 sums, and 2 x 3 of 2.
    assert shape.flops(train=False) == 2 * 2 * 2 * 3 + 2 * 2 * 3 * 2
    assert shape.flops(train=True) == 3.5 * shape.flops(train=False)
    assert shape.bytes(train=False, itemsize=2) == 4 * 6 * 2
    assert attention.dtypes(CPU) == ("float32", "bfloat16")
