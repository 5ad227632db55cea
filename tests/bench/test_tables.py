"""Tables from raw times: each cell has the right number."""

import pytest
from made_up_runs import GPU, MACHINE, growing, record, run

from rsattn.bench import fits, floors, kinds, report, tables, targets
from rsattn.bench.kinds import bias, gate, overhead, packed, received
from rsattn.bench.results import same_cases

VIT = (8, 12, 197, 64)


def cells(table, row=0):
    """Column name -> cell of one row."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return dict(zip(lines[0], lines[2 + row]))


def attention(ours, packed, contiguous, eager, **more):
    seconds = {"rsattn": ours, "SDPA packed": packed, "SDPA contiguous": contiguous, "eager": eager}
    return record("attention", VIT, seconds, model="ViT-B/16 at 224", **more)


def test_attention_is_in_multiples_of_ours_with_the_best_sdpa():
    row = cells(tables.attention([run(attention([0.002, 0.5, 0.001], 0.006, 0.003, 0.010))]))
    assert row["rsattn, ms"] == "2.00"  # the median, without the outlier
    assert row["SDPA"] == "1.50"
    assert row["eager"] == "5.00"
    assert row["pass"] == "forward"
    assert "compiled" not in row  # no record has it


def test_several_runs_are_ranges():
    runs = [run(attention(0.002, 0.003, 0.004, 0.008)), run(attention(0.002, 0.005, 0.003, 0.010))]
    row = cells(tables.attention(runs))
    assert (row["SDPA"], row["eager"], row["rsattn, ms"]) == ("1.50", "4.00 to 5.00", "2.00")


def test_a_case_that_one_run_lacks_is_not_shown():
    both = attention(0.002, 0.003, 0.004, 0.008)
    other = record("attention", (1, 2, 65, 64), {"rsattn": 1.0, "SDPA packed": 1.0, "eager": 1.0})
    assert len(tables.attention([run(both, other), run(both)]).splitlines()) == 3


def test_a_gpus_best_kernel_is_named_and_norms_are_added_to_it():
    seconds = {"rsattn": 0.002, "SDPA flash": 0.003, "SDPA cuDNN": 0.001, "flash-colreduce, norms alone": 0.004}
    row = cells(tables.attention([run(record("attention", VIT, seconds), machine=GPU)]))
    assert row["SDPA"] == "0.50 (cuDNN)"
    assert row["SDPA + norms"] == "2.50"


def test_length_and_what_ranking_adds():
    forward, train = growing(False, "rsattn with the residual"), growing(True, "rsattn")
    row = cells(tables.length([run(*forward, *train)]), row=4)
    assert row["N"] == "4096"
    assert row["rsattn with the residual, ms"] == "16.78"  # 4096^2 nanoseconds
    assert row["SDPA, ms"] == "33.55"
    assert row["peak memory of a training step, MB: rsattn"] == "4096.0"


def test_slopes_of_exact_powers():
    runs = [run(*growing(False, "rsattn with the residual", exponent=2.0, factor=f)) for f in (1.0, 1.0)]
    row = cells(tables.slopes(runs))
    assert row["rsattn"] == "2.00 (2.00 to 2.00)"
    assert row["eager"] == "2.50 (2.50 to 2.50)"


def test_slopes_leave_short_sequences_out():
    records = growing(False, "rsattn with the residual")
    records[0].seconds["rsattn with the residual"] = [1.0] * 3  # N = 64, where the start of a call takes all the time
    assert cells(tables.slopes([run(*records)]))["rsattn"] == "2.00 (2.00 to 2.00)"


def test_the_slopes_interval_holds_the_truth_as_often_as_it_says():
    import numpy as np

    rng = np.random.default_rng(0)
    sizes = [512, 1024, 2048, 4096]
    inside = 0
    for _ in range(400):
        found = fits.slope(sizes, [n**1.9 * np.exp(rng.normal(0, 0.1)) for n in sizes])
        inside += found.low <= 1.9 <= found.high
    assert 0.92 < inside / 400 < 0.98  # 95 % within three standard errors


def test_roofline_takes_the_larger_of_two_floors():
    # 10 GFLOP/s and 2^28 * 2 bytes in 0.5368 s, 1 GB/s: N = 197 forward is 95 ms of products, 19 ms of bytes.
    ceilings = record("ceilings", (1, 1, 1000, 1000), {"matrix product": 0.2, "copy": 0.536870912})
    row = cells(tables.roofline([run(ceilings, attention(0.19072, 3, 3, 3))]))
    work = 4 * 8 * 12 * 197**2 * 64
    assert row["GFLOP"] == f"{work / 1e9:.2f}" == "0.95"
    assert row["MB"] == f"{4 * 8 * 12 * 197 * 64 * 4 / 1e6:.1f}"
    assert row["bound by"] == "products"
    assert row["floor, ms"] == f"{1e3 * work / 10e9:.2f}"
    assert row["floor / rsattn"] == "50 %"
    slow_copy = record("ceilings", (1, 1, 1000, 1000), {"matrix product": 0.2e-3, "copy": 536.870912})
    assert cells(tables.roofline([run(slow_copy, attention(1.0, 3, 3, 3))]))["bound by"] == "memory"


def test_no_roofline_without_ceilings():
    only_other_dtype = record("ceilings", (1, 1, 9, 9), {"matrix product": 1.0, "copy": 1.0}, dtype="bfloat16")
    assert tables.roofline([run(attention(1.0, 3, 3, 3))]) == ""
    assert tables.roofline([run(only_other_dtype, attention(1.0, 3, 3, 3))]) == ""


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_run_of_one_kind_alone_has_a_report(kind):
    """Kinds that `--only` excludes have no table."""
    names = ["rsattn", "rsattn with the residual", "rsattn without norms", "matrix product", "copy"]
    names += [f"{what}, {threads}" for what in ("rsattn", "matrix product") for threads in ("1 thread", "all threads")]
    made = run(record(kind, VIT, dict.fromkeys(names, 1.0)))
    assert tables.heading([made]) in report.everything([made])
    assert report.summary([made]).startswith(tables.heading([made]))


def test_block_and_model():
    seconds = {"rsattn": 0.100, "SDPA packed": 0.110, "eager": 0.2}
    peaks = {"rsattn": 2_000_000, "SDPA packed": 1_000_000, "eager": 8_000_000}
    row = cells(tables.block([run(record("block", VIT, seconds, peaks=peaks))]))
    assert (row["SDPA"], row["eager"]) == ("1.0", "8.0")  # two columns have this name; the second is memory
    whole = record("model", (1, 12, 577, 64), {"rsattn": 1.02, "SDPA": 1.0, "eager": 2.0}, peaks=peaks)
    row = cells(tables.model([run(whole)]))
    assert (row["patched / on SDPA"], row["patched / the library's own"]) == ("1.02", "0.51")


def test_ranking_is_relative_to_attention_and_to_the_block():
    pair = record("ranking", VIT, {"rsattn with the residual": 0.012, "rsattn without norms": 0.010}, model="ViT")
    row = cells(tables.ranking([run(pair, record("block", VIT, {"rsattn": 0.050}))]))
    assert (row["added"], row["share of the block"]) == ("20.0 %", "4.0 %")
    assert "share of the block" not in cells(tables.ranking([run(pair)]))


def test_threads():
    seconds = {"rsattn, 1 thread": 3.0, "rsattn, all threads": 1.5, "matrix product, 1 thread": 1.8}
    seconds["matrix product, all threads"] = 1.0
    row = cells(tables.threads([run(record("threads", VIT, seconds))]))
    assert list(row.values())[2:] == ["2.00", "1.80"]


def test_a_gate_is_compared_with_none_and_with_eager():
    seconds = {"rsattn": 105e-6, gate.UNGATED: 100e-6, "eager": 840e-6}
    made = record("gate", VIT, seconds, train=True, model="ViT-B/16 at 224")
    row = list(cells(tables.gate([run(made)])).values())
    assert row == [
        "ViT-B/16 at 224",
        "8,12,197,64",
        "float32",
        "forward + backward",
        "105",
        "1.05",
        "<= 1.10",
        "8.00",
    ]


def of_received(ours=0.010, without=0.008, alone=0.004, **others):
    """Records of both cases of the kind "received" at one shape."""
    seconds = {"rsattn": ours, received.WITHOUT: without, received.ALONE: alone}
    cost = record("received", VIT, seconds, detail=received.COST, model="ViT")
    times = {"rsattn": 0.012, "SDPA packed": 0.020, "SDPA contiguous": 0.018, received.EAGER_ALONE: 0.042, **others}
    return cost, record("received", VIT, times, detail=received.RECOMPUTED, model="ViT")


def test_received_is_compared_within_its_own_case():
    cost, recomputed = of_received(**{received.COLREDUCE: 0.006})
    row = list(cells(tables.received([run(cost, recomputed)])).values())
    # 10 / 8; 4 / 8; (18 + 42) / 12; (18 + 6) / 12
    assert row == ["ViT", "8,12,197,64", "float32", "10.00", "1.25", "0.50", "5.00", "2.00"]
    assert list(cells(tables.received([run(cost)])).values()) == row[:6]
    assert tables.received([run(recomputed)]) == ""


def test_a_learned_bias_beside_the_librarys():
    seconds = {"rsattn": 0.010, bias.LIBRARY: 0.015, "FlexAttention": 0.020}
    peaks = {"rsattn": 2_000_000, bias.LIBRARY: 6_000_000, "FlexAttention": 3_000_000}
    made = record("bias", VIT, seconds, train=True, detail=bias.BEIT, model="BEiT", peaks=peaks)
    header, _, line = tables.bias([run(made)]).splitlines()
    assert line.split(" | ")[4:] == ["10.00", "1.50", "2.00", "2.0", "6.0", "3.0 |"]
    titles = [title.strip() for title in header.split("|")[1:-1]]
    assert len(set(titles)) == len(titles)
    del seconds["FlexAttention"], peaks["FlexAttention"]
    left = record("bias", VIT, seconds, train=True, detail=bias.BEIT, peaks=peaks, left_out={"FlexAttention": "no"})
    (line,) = tables.bias([run(left)]).splitlines()[2:]
    assert line.split(" | ")[4:] == ["10.00", "1.50", "cannot run", "2.0", "6.0 |"]
    assert tables.bias([run(record("bias", VIT, {}, train=True, left_out={"FlexAttention": "no timm"}))]) == ""


class TestOverhead:
    shape = (1, 2, 5, 8)

    def test_microseconds_and_the_target_of_that_call(self):
        made = [
            record("overhead", self.shape, {"rsattn": [15e-6, 1.0, 14e-6], "SDPA": 4e-6}),
            record("overhead", self.shape, {"rsattn": 60e-6, "SDPA": 24e-6}, train=True),
            record("overhead", self.shape, {"rsattn": 24e-6, "SDPA": 5e-6}, detail=overhead.RECORDED),
            record("overhead", self.shape, {"rsattn": 6.6e-6, overhead.SUM: 1.1e-6}, detail=overhead.JOIN),
        ]
        rows = [list(cells(tables.overhead([run(*made)]), row).values())[2:] for row in range(4)]
        assert rows == [
            ["forward", "SDPA", "4.0", "15.0", "3.75", "<= 4.0"],
            ["forward + backward", "SDPA", "24.0", "60.0", "2.50", "<= 2.0"],
            ["forward, gradients recorded", "SDPA", "5.0", "24.0", "4.80", "<= 5.0"],
            ["add_best_head", "projected + other", "1.1", "6.6", "6.00", "<= 8.0"],
        ]

    def test_the_targets_are_a_cpus(self):
        made = record("overhead", self.shape, {"rsattn": 80e-6, "SDPA": 20e-6}, dtype="bfloat16")
        row = cells(tables.overhead([run(made, machine=GPU)]))
        assert row["rsattn / PyTorch"] == "4.00"
        assert "target" not in row


def test_packed_is_in_multiples_of_packed():
    seconds = {"rsattn": 0.010, packed.UNPACKED: 0.011, "SDPA packed": 0.016, "eager": 0.020}
    alone = record("packed", VIT, seconds, train=True, detail=packed.ALONE, model="ViT-B/16 at 224")
    del seconds["eager"]
    whole = record("packed", VIT, seconds, train=True, detail=packed.PROJECTED, model="ViT-B/16 at 224")
    rows = [list(cells(tables.packed([run(alone, whole)]), row).values())[2:] for row in range(2)]
    assert rows == [
        ["float32", "attention alone", "10.00", "1.10", "1.60", "2.00"],
        ["float32", "through the projection", "10.00", "1.10", "1.60", "-"],
    ]


def test_left_out_variants_are_listed():
    left = attention(0.002, 0.003, 0.004, 0.008, left_out={"FlexAttention": "no backward pass"})
    row = cells(tables.left_out([run(left)]))
    assert list(row.values()) == [left.case.title, "FlexAttention", "no backward pass"]
    assert tables.left_out([run(attention(0.002, 0.003, 0.004, 0.008))]) == ""


@pytest.mark.parametrize(("machine", "words"), [(GPU, "driver 777, CUDA 13.0"), (None, "threads: 4, fast")])
def test_heading(machine, words):
    runs = [run(machine=machine)] if machine else [run(), run()]
    text = tables.heading(runs)
    assert words in text
    assert "commit abc1234" in text
    assert ("one run." in text) == (machine is not None)
    assert ("2 runs" in text) == (machine is None)


def test_heading_of_an_installed_package():
    assert "torch 9.9, rsattn 1.2.3; one run." in tables.heading([run(machine={**MACHINE, "commit": ""})])


def test_a_run_of_other_kinds_takes_nothing_from_a_table():
    of_attention = attention(0.002, 0.003, 0.004, 0.008)
    of_gate = record("gate", (2, 3, 5, 8), {"rsattn": 0.001})
    both = run(of_attention), run(of_gate)
    assert same_cases(both, "attention") == [[of_attention]]
    assert same_cases(both, "gate") == [[of_gate]]
    assert same_cases(both, "length") == []
    assert tables.heading(both).endswith("shown as ranges, of the runs that have the case.")
    assert tables.heading((run(of_gate), run(of_gate))).endswith("shown as ranges.")


class TestTargets:
    shape = (64, 12, 197, 64)

    def rows(self, *records, machine=GPU, which=targets.GPU):
        table = targets.table([run(*records, machine=machine)], which)
        return {words: rest for words, *rest in ([c.strip() for c in r.split("|")[1:-1]] for r in table.splitlines())}

    def attention(self, ours, shape=shape, dtype="bfloat16", train=False, **others):
        return record("attention", shape, {"rsattn": ours, **others}, dtype=dtype, train=train)

    def test_met(self):
        others = {"SDPA flash": 1.0, "SDPA cuDNN": 1.2, "flash-colreduce, norms alone": 0.5}
        rows = self.rows(self.attention(0.8, **others))
        assert rows["64,12,197,64: forward / best SDPA"] == ["0.80", "<= 0.9", "yes"]
        assert rows["64,12,197,64: (best SDPA + flash-colreduce) / forward"] == ["1.88", ">= 1.8", "yes"]

    def test_missed(self):
        rows = self.rows(self.attention(1.1, train=True, **{"SDPA flash": 1.0}))
        assert rows["64,12,197,64: forward + backward / best SDPA's"] == ["1.10", "<= 1.0", "no"]

    def test_not_measured_is_not_missed(self):
        rows = self.rows(self.attention(0.8, **{"SDPA flash": 1.0}))
        assert rows["64,12,257,64: forward / best SDPA"] == ["not measured", "<= 0.95", ""]
        assert rows["16,4,65,768: eager / forward"] == ["not measured", ">= 3.0", ""]

    def test_in_some_runs(self):
        runs = [run(self.attention(time, **{"SDPA flash": 1.0}), machine=GPU) for time in (0.8, 1.0)]
        line = targets.table(runs, targets.GPU[:1]).splitlines()[-1]
        assert line == "| 64,12,197,64: forward / best SDPA | 0.80 to 1.00 | <= 0.9 | in some runs |"

    def test_what_ranking_adds(self):
        ranked = {"rsattn with the residual": 0.24, "rsattn without norms": 0.20}
        rows = self.rows(
            record("block", (32, 12, 577, 64), {"rsattn": 1.0}, dtype="bfloat16"),
            record("ranking", (32, 12, 577, 64), ranked, dtype="bfloat16", model="ViT-B/16 at 384"),
            record("ranking", (4, 12, 577, 64), dict.fromkeys(ranked, 9.0), dtype="bfloat16"),
        )
        assert rows["N = 577: norms, best head and residual, of the attention block"] == ["0.04", "<= 0.05", "yes"]
        ranked = {"rsattn with the residual": 1.1, "rsattn without norms": 1.0}
        rows = self.rows(record("ranking", VIT, ranked, model="ViT"), machine=MACHINE, which=targets.CPU)
        name = "N = 197: float32, what norms, best head and residual add to attention alone"
        assert rows[name] == ["0.10", "<= 0.05", "no"]

    def test_what_a_call_costs_the_host(self):
        small = (1, 2, 5, 8)
        rows = self.rows(
            record("overhead", small, {"rsattn": 16e-6, "SDPA": 4e-6}),
            record("overhead", small, {"rsattn": 30e-6, "SDPA": 4e-6}, detail=overhead.RECORDED),
            record("overhead", small, {"rsattn": 45e-6, "SDPA": 30e-6}, train=True),
            record("overhead", small, {"rsattn": 9e-6, overhead.SUM: 1e-6}, detail=overhead.JOIN),
            machine=MACHINE,
            which=targets.CPU,
        )
        assert rows["host time, forward: rsattn / SDPA"] == ["4.00", "<= 4.0", "yes"]
        assert rows["host time, forward, gradients recorded: rsattn / SDPA"] == ["7.50", "<= 5.0", "no"]
        assert rows["host time, forward + backward: rsattn / SDPA"] == ["1.50", "<= 2.0", "yes"]
        assert rows["host time, add_best_head: rsattn / projected + other"] == ["9.00", "<= 8.0", "no"]

    def test_what_a_gate_costs(self):
        rows = self.rows(
            record("gate", VIT, {"rsattn": 1.05, gate.UNGATED: 1.0}),
            record("gate", VIT, {"rsattn": 1.2, gate.UNGATED: 1.0}, train=True, dtype="bfloat16"),
            machine=MACHINE,
            which=targets.CPU,
        )
        assert rows["N = 197: float32 forward of the residual, gated / ungated"] == ["1.05", "<= 1.1", "yes"]
        assert rows["N = 197: bfloat16 forward + backward of the residual, gated / ungated"] == ["1.20", "<= 1.1", "no"]

    def test_what_received_costs(self):
        rows = self.rows(*of_received(), machine=MACHINE, which=targets.CPU)
        words = "N = 197: float32 forward"
        assert rows[f"{words}, with attention received / without"] == ["1.25", "<= 1.03", "no"]
        assert rows[f"{words}, attention received alone / without"] == ["0.50", "<= 0.7", "yes"]
        assert rows[f"{words}, (SDPA + eager attention received) / with"] == ["5.00", ">= 3.0", "yes"]
        assert rows["N = 577: bfloat16 forward, with attention received / without"] == ["not measured", "<= 1.03", ""]
        assert "N = 577: bfloat16 forward, attention received alone / without" in self.rows()  # on a GPU too

    def test_packed(self):
        seconds = {"rsattn": 0.010, "SDPA packed": 0.016, "eager": 0.012}
        rows = self.rows(
            record("packed", VIT, {**seconds, "rsattn": 9.0}, train=True, detail=packed.PROJECTED),
            record("packed", VIT, seconds, train=True, detail=packed.ALONE),
            record("packed", VIT, seconds, train=True, detail=packed.ALONE, dtype="bfloat16"),
            machine=MACHINE,
            which=targets.CPU,
        )
        assert rows["N = 197, packed: float32 forward + backward, SDPA / rsattn"] == ["1.60", ">= 1.5", "yes"]
        assert rows["N = 197, packed: bfloat16 forward + backward, eager / rsattn"] == ["1.20", ">= 1.3", "no"]

    def test_rates_over_the_ceilings_of_the_run(self):
        ceiling = record("ceilings", (1, 1, 100, 100), {"matrix product": 1.0, "copy": 1.0}, dtype="bfloat16")
        moved = 4 * 64 * 12 * 197 * 64 * 2
        rows = self.rows(ceiling, self.attention(moved / 2**29 / 0.7))  # a copy reads and writes 2^28 bytes
        assert rows["N = 197: bytes moved forward, rate / a large copy's"] == ["0.70", ">= 0.6", "yes"]
        ceiling = record("ceilings", (1, 1, 100, 100), {"matrix product": 1.0, "copy": 1.0})
        work = 4 * 4 * 12 * 577**2 * 64
        long = self.attention(work / 2e6 / 0.9, shape=(4, 12, 577, 64), dtype="float32")
        rows = self.rows(ceiling, long, machine=MACHINE, which=targets.CPU)
        assert rows["N = 577: float32 forward, rate / a large matrix product's"] == ["0.90", ">= 1.0", "no"]

    def test_memory_saved_in_sizes_of_the_probabilities(self):
        saved = 12 * (32 * 12 * 577**2) * 2
        peaks = {"rsattn": 1000, "SDPA": 900, "eager": 1000 + 2 * saved}
        whole = record(
            "model", (32, 12, 577, 64), {"rsattn": 1.0, "SDPA": 1.0}, dtype="bfloat16", train=True, peaks=peaks
        )
        rows = self.rows(whole)
        assert rows["ViT-B/16 at 384: memory that eager needs more, in sizes of P"] == ["2.00", ">= 1.0", "yes"]
        assert rows["ViT-B/16 at 384: training step, patched / on SDPA"] == ["1.00", "<= 1.03", "yes"]


def test_floors_are_the_counts():
    row = next(line for line in floors.table().splitlines() if line.startswith("| 64,12,197,64"))
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    heads, n, e = 64 * 12, 197, 64
    expected = [4 * heads * n * e * 2 / 3.0e6, 4 * heads * n * n * e / 798e6, heads * n * n / (16 * 132 * 1.98e3)]
    assert cells == [*(f"{time:.0f}" for time in expected), "bytes", "-"]
