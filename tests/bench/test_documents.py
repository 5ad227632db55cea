"""The tables of the documents match the result files, and say so if there are none."""

import json

import pytest
from made_up_runs import GPU, MACHINE, growing, record, run

from rsattn.bench import plots, report, results
from rsattn.bench.targets import NOT_MEASURED


@pytest.mark.parametrize("document", report.DOCUMENTS, ids=lambda path: path.parent.name + "/" + path.name)
def test_the_documents_tables_are_the_committed_results(document):
    text = document.read_text()
    assert report.MARK.search(text)
    assert report.filled(text) == text, "run python -m bench.report"


def test_every_committed_run_is_of_one_machine_and_a_clean_commit():
    for kind in report.KINDS.values():
        for runs in results.committed(kind).values():
            for found in runs:
                same = ("device", "threads", "torch", "driver")
                assert {k: found.machine.get(k) for k in same} == {k: runs[0].machine.get(k) for k in same}
                assert not found.machine["commit"].endswith("+"), "measured with changes nobody can look up"


def test_written_and_read_again_is_the_same(tmp_path):
    made = run(
        record(
            "attention", (1, 2, 3, 4), {"rsattn": [0.00123, 0.5, 7.0]}, peaks={"rsattn": 5}, left_out={"eager": "no"}
        )
    )
    results.write(tmp_path / "run-1.json", made)
    assert results.read(tmp_path / "run-1.json") == made


class TestFilling:
    text = (
        "before\n<!-- bench cpu heading -->\nold\n<!-- end -->\nbetween\n"
        "<!-- bench gpu targets -->\n<!-- end -->\nafter\n"
    )

    def put(self, monkeypatch, tmp_path, **runs):
        monkeypatch.setattr(results, "FOLDER", tmp_path)
        for name, made in runs.items():
            (tmp_path / name).mkdir(parents=True)
            results.write(tmp_path / name / "run-1.json", made)

    def test_without_results_it_says_so(self, monkeypatch, tmp_path):
        self.put(monkeypatch, tmp_path)
        filled = report.filled(self.text)
        assert filled.count(NOT_MEASURED) == 2
        assert "old" not in filled
        assert filled.startswith("before\n")
        assert "between" in filled
        assert filled.endswith("after\n")

    def test_each_device_gets_its_own(self, monkeypatch, tmp_path):
        gpu = record("attention", (64, 12, 197, 64), {"rsattn": 1.0, "SDPA flash": 2.0}, dtype="bfloat16")
        self.put(monkeypatch, tmp_path, a=run(), b=run(gpu, machine=GPU))
        filled = report.filled(self.text)
        assert "Some CPU" in filled
        assert "| 64,12,197,64: forward / best SDPA | 0.50 | <= 0.9 | yes |" in filled
        assert NOT_MEASURED not in filled
        assert report.filled(filled) == filled

    def test_what_older_runs_lack_is_not_measured_yet(self, monkeypatch, tmp_path):
        text = "<!-- bench cpu overhead -->\n<!-- end -->\n"
        self.put(monkeypatch, tmp_path, a=run())
        assert report.NOT_IN_THESE_RUNS in report.filled(text)
        newer = record("overhead", (1, 2, 5, 8), {"rsattn": 15e-6, "SDPA": 5e-6})
        results.write(tmp_path / "a" / "run-1.json", run(newer))
        assert report.NOT_IN_THESE_RUNS not in report.filled(text)
        assert "| 5.0 | 15.0 | 3.00 |" in report.filled(text)
        results.write(tmp_path / "a" / "run-2.json", run())  # has no case of this kind
        assert "| 5.0 | 15.0 | 3.00 |" in report.filled(text)

    def test_several_machines_are_named(self, monkeypatch, tmp_path):
        """Each machine with the results gets a table. A single machine is named only in the heading."""
        text = "<!-- bench cpu overhead -->\n<!-- end -->\n"
        newer = record("overhead", (1, 2, 5, 8), {"rsattn": 15e-6, "SDPA": 5e-6})
        other = {**MACHINE, "device": "Another CPU"}
        third = {**MACHINE, "device": "C"}
        self.put(monkeypatch, tmp_path, a=run(newer), b=run(newer, machine=other), c=run(machine=third))
        filled = report.filled(text)
        in_order = [filled.index(words) for words in ("Some CPU, family 1 model 2:", "| 5.0 | 15.0 |", "Another CPU:")]
        assert in_order == sorted(in_order)
        assert filled.count("| 5.0 | 15.0 |") == 2
        assert "C:" not in filled
        assert report.NOT_IN_THESE_RUNS not in filled

    def test_in_short_is_one_table_of_all_machines(self, monkeypatch, tmp_path):
        """Training steps only; the fastest SDPA counts, and a machine that lacks a row is left out."""

        def case(length, dtype, ours, train=True):
            times = {"rsattn": ours, "SDPA packed": 6.0, "SDPA contiguous": 4.0, "eager": 8.0}
            return record("attention", (8, 12, length, 64), times, dtype=dtype, train=train, model="ViT")

        steps = [case(197, "float32", 1.0), case(577, "float32", 2.0), case(577, "bfloat16", 4.0)]
        forward = case(197, "float32", 8.0, train=False)
        other = {**MACHINE, "device": "Another CPU"}
        self.put(monkeypatch, tmp_path, a=run(*steps, forward), b=run(*steps[:2], machine=other))
        filled = report.filled("<!-- bench cpu in short -->\n<!-- end -->\n")
        assert "Some CPU, family 1 model 2: SDPA | Some CPU, family 1 model 2: eager PyTorch |" in filled
        assert "| ViT, N = 197, float32 | 4.00 | 8.00 |" in filled
        assert "| ViT, N = 577, float32 | 2.00 | 4.00 |" in filled
        assert "| ViT, N = 577, bfloat16 | 1.00 | 2.00 |" in filled
        assert "Another CPU" not in filled
        self.put(monkeypatch, tmp_path / "empty", a=run())
        assert report.NOT_IN_THESE_RUNS in report.filled("<!-- bench cpu in short -->\n<!-- end -->\n")

    def test_latest_is_not_quoted(self, monkeypatch, tmp_path):
        self.put(monkeypatch, tmp_path, a=run())
        (tmp_path / "a" / "run-1.json").rename(tmp_path / "a" / "latest.json")
        assert "Some CPU" not in report.filled(self.text)


def test_show_prints_every_table_of_a_file(monkeypatch, tmp_path, capsys):
    made = run(*growing(False, "rsattn with the residual"), *growing(True, "rsattn"))
    results.write(tmp_path / "results.json", made)
    monkeypatch.setattr("sys.argv", ["bench.report", "--show", str(tmp_path / "results.json")])
    report.main()
    printed = capsys.readouterr().out
    assert "## length" in printed
    assert "## slopes" in printed
    assert "2.00 (2.00 to 2.00)" in printed
    assert "## attention" not in printed  # it has none


class TestPlots:
    def lines(self, figure):
        (axes,) = figure.axes
        return {line.get_label(): dict(zip(*line.get_data())) for line in axes.get_lines()}

    def test_time(self):
        figure = plots.time([run(*growing(False, "rsattn with the residual"))])
        lines = self.lines(figure)
        assert lines["rsattn: norms, best head and residual included"][4096] == pytest.approx(4096**2 * 1e-6)
        assert lines["PyTorch's SDPA, without norms"][64] == pytest.approx(2 * 64**2 * 1e-6)
        assert set(lines["eager PyTorch, norms included"]) == {64, 512, 1024, 2048, 4096}

    def test_memory(self):
        lines = self.lines(plots.memory([run(*growing(True, "rsattn"))]))
        assert lines["rsattn: norms and best head included"][512] == 512
        assert lines["PyTorch's SDPA, without norms"][512] == 256

    def test_labels_of_close_lines_do_not_overlap(self):
        apart = plots._apart([((4096, 100.0), "a"), ((4096, 110.0), "b"), ((4096, 900.0), "c")])
        assert [(color, up) for _, color, up in apart] == [("a", -5.0), ("b", 5.0), ("c", 0.0)]

    def test_no_plot_without_numbers(self, tmp_path):
        made = run(*growing(True, "rsattn"))
        for found in made.records:
            found.peaks.clear()
        assert plots.write([made], tmp_path / "new") == []
        assert not (tmp_path / "new").exists()


def test_results_are_plain_json(tmp_path):
    results.write(tmp_path / "r.json", run(record("length", (1, 2, 3, 4), {"eager": 1.0})))
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["records"][0]["case"]["shape"] == {"batch": 1, "heads": 2, "length": 3, "width": 4}
