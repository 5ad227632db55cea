"""`rsattn compare`: which runs are trained, and the table and the page; the training is fake."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from runs import written

from rsattn.cli.command import CommandError
from rsattn.cli.outputs import LOCK
from rsattn.finetune.auroc_intervals import Score
from rsattn.finetune.compare import Entrant, compare
from rsattn.finetune.comparison import Comparison, Pair, Result, TestSplit, verdict
from rsattn.finetune.comparison_page import dot_plot
from rsattn.finetune.comparison_sentences import headline, p_value, points, sentences
from rsattn.finetune.comparison_table import table
from rsattn.finetune.options import Options
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.statistics import Difference

OPTIONS = Options(
    out="",
    data="images",
    model="vit",
    patch=False,
    norm="induced",
    scope="sample",
    merge="tile",
    full_width=False,
    size="tiny",
    weights="none",
    image_size=32,
    epochs=3,
    patience=0,
    batch_size=8,
    learning_rate=1e-3,
    weight_decay=0.05,
    augment="none",
    seed=0,
    split_seed=None,
    freeze=False,
    class_weights=False,
    groups=None,
    workers=0,
    precision="32-true",
    devices="auto",
    strategy="auto",
    nodes=1,
)
PLAIN = Entrant("vit", OPTIONS)
OTHER = Entrant("resvit", replace(OPTIONS, model="resvit"))
CHANCES = {"vit": 0.7, "resvit": 0.9, "cnn": 0.5}


class FakeTraining:
    """A run's files out of thin air: 40 test images in 20 groups, right as often as `CHANCES` says.

    `faults` maps (model, seed) to what is raised instead.
    """

    def __init__(self, faults: dict[tuple[str, int], BaseException] | None = None, groups: int = 20) -> None:
        self.faults, self.groups = faults or {}, groups
        self.done: list[tuple[str, int]] = []
        self.options: list[Options] = []

    def __call__(self, options: Options, console: Console) -> None:
        self.options.append(options)
        run = RunFolder(Path(options.out))
        run.path.mkdir(parents=True, exist_ok=True)
        run.config.write_text(json.dumps(asdict(options)))
        if fault := self.faults.get((options.model, options.seed)):
            raise fault
        self.done.append((options.model, options.seed))
        rng = np.random.default_rng([options.seed, len(options.model)])
        right = rng.random(2 * self.groups) < CHANCES[options.model]
        with run.predictions.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "group", "label", "predicted", "p_a", "p_b"])
            for index, correct in enumerate(right):
                number = 1000 * options.seed + index
                label, other = "ab" if index < self.groups else "ba"
                writer.writerow([f"a/{number}.png", number // 2, label, label if correct else other, 0.6, 0.4])
        half = int(right[: self.groups].sum()), int(right[self.groups :].sum())
        metrics = {
            "scores": {
                "accuracy": right.mean(),
                "confusion": [[half[0], self.groups - half[0]], [self.groups - half[1], half[1]]],
                "macro": {"precision": 0.5, "recall": 0.25, "f1": 0.75 + options.seed},
            },
            "model": {"name": options.model, "parameters": 1000 * len(options.model)},
            "seconds": 60.0,
        }
        run.metrics.write_text(json.dumps(metrics))
        run.report.write_text("")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def found(out: Path) -> dict[str, Any]:
    comparison: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    return comparison


class Page(HTMLParser):
    """The text that a browser would show, and the files that it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.tags, self.loads = "", [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_model_is_trained_with_every_seed_seed_by_seed(tmp_path: Path) -> None:
    train, console = FakeTraining(), quiet()
    assert compare([PLAIN, OTHER], [0, 3], tmp_path, console, train) == 0
    assert train.done == [("vit", 0), ("resvit", 0), ("vit", 3), ("resvit", 3)]
    assert [options.out for options in train.options] == [
        str(tmp_path / "runs" / label / f"seed-{seed}") for seed in (0, 3) for label in ("vit", "resvit")
    ]
    assert "run 3 of 4: vit, seed 3, about 2.0 min left" in said(console)
    assert said(console).splitlines()[0] == "run 1 of 4: vit, seed 0"


def test_comparison_json_has_the_numbers(tmp_path: Path) -> None:
    compare([PLAIN, OTHER], range(3), tmp_path, quiet(), FakeTraining())
    comparison = found(tmp_path)
    vit, resvit = comparison["results"]
    accuracies = {}
    for label in ("vit", "resvit"):
        rows = [
            list(csv.DictReader((tmp_path / "runs" / label / f"seed-{seed}" / "predictions.csv").open()))
            for seed in range(3)
        ]
        accuracies[label] = [np.mean([row["label"] == row["predicted"] for row in run]) for run in rows]
    assert list(vit["accuracies"].values()) == pytest.approx(accuracies["vit"])
    assert vit["mean"] == pytest.approx(np.mean(accuracies["vit"]))
    assert vit["sd"] == pytest.approx(np.std(accuracies["vit"], ddof=1))
    assert vit["interval"][0] < vit["mean"] < vit["interval"][1]
    assert (vit["precision"], vit["recall"], vit["f1"]) == (0.5, 0.25, 1.75)
    assert (vit["parameters"], resvit["parameters"], vit["seconds"]) == (3000, 6000, 60.0)
    assert resvit["options"]["model"] == "resvit"
    assert not {"seed", "out"} & set(resvit["options"])
    (pair,) = comparison["pairs"]
    gain = np.array(accuracies["resvit"]) - accuracies["vit"]
    assert (pair["label"], pair["baseline"]) == ("resvit", "vit")
    assert pair["difference"]["mean"] == pytest.approx(gain.mean())
    assert pair["difference"]["wins"] == (gain > 0).sum()
    assert pair["adjusted_p"] == pair["difference"]["p"]
    assert (comparison["images"], comparison["groups"]) == (120, 60)
    assert comparison["test_splits"] == {
        str(seed): {"images": 40, "groups": 20, "majority": 0.5, "near_identical": 0, "checksum": None}
        for seed in range(3)
    }
    assert (comparison["seeds"], comparison["runs"], comparison["finished"]) == ([0, 1, 2], 6, 6)
    assert comparison["failures"] == []


def test_what_is_finished_is_not_repeated(tmp_path: Path) -> None:
    compare([PLAIN], [0], tmp_path, quiet(), FakeTraining())
    train, console = FakeTraining(), quiet()
    assert compare([PLAIN, OTHER], [0, 1], tmp_path, console, train) == 0
    assert train.done == [("resvit", 0), ("vit", 1), ("resvit", 1)]
    assert "run 1 of 4: vit, seed 0: already finished" in said(console)
    again = FakeTraining()
    assert compare([PLAIN, OTHER], [0, 1], tmp_path, quiet(), again) == 0
    assert again.done == []
    assert found(tmp_path)["finished"] == 4


def test_a_run_that_was_killed_before_its_report_is_tested_again(tmp_path: Path) -> None:
    compare([PLAIN, OTHER], [0], tmp_path, quiet(), FakeTraining())
    report = tmp_path / "runs" / "vit" / "seed-0" / "report.html"
    report.unlink()
    again = FakeTraining()
    assert compare([PLAIN, OTHER], [0], tmp_path, quiet(), again) == 0
    assert again.done == [("vit", 0)]
    assert report.exists()


def test_the_time_left_is_that_of_what_is_left(tmp_path: Path) -> None:
    """One run of a minute; the two of seed 1 are there."""
    compare([PLAIN, OTHER], [1], tmp_path, quiet(), FakeTraining())
    console = quiet()
    compare([PLAIN, OTHER], [0, 1], tmp_path, console, FakeTraining())
    assert "run 1 of 4: vit, seed 0, about 2.0 min left" in said(console)
    assert "run 2 of 4: resvit, seed 0, about 60 s left" in said(console)


def test_the_time_and_disk_of_all_runs_are_told_first(
    tmp_path: Path, stripes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, other = (replace(one, options=replace(one.options, data=str(stripes))) for one in (PLAIN, OTHER))
    monkeypatch.setattr("rsattn.finetune.estimating.seconds_per_batch", lambda *_: 0.1)
    console = quiet()
    compare([plain, other], [0, 1], tmp_path, console, FakeTraining())
    assert re.match(r"4 runs: about \d+ s on this CPU \(\d threads?\); at least \d+ MB of disk\n", said(console))
    assert re.search(r"\nrun 1 of 4: vit, seed 0, about \d+ s left\n", said(console))
    console = quiet()
    compare([plain, other], [0, 1, 2], tmp_path, console, FakeTraining())
    assert said(console).startswith("2 runs left: about ")
    console = quiet()
    compare([plain, other], [0, 1, 2], tmp_path, console, FakeTraining())
    assert said(console).startswith("run 1 of 6: vit, seed 0: already finished")


def test_runs_that_do_not_fit_on_the_disk_are_refused_first(
    tmp_path: Path, stripes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = replace(PLAIN, options=replace(PLAIN.options, data=str(stripes)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**7))
    train = FakeTraining()
    with pytest.raises(
        CommandError, match=r"the 9 runs need about \d+ MB of disk for checkpoints, and the disk of .* 10 MB"
    ):
        compare([plain], range(9), tmp_path / "out", quiet(), train)
    assert train.options == []


def test_a_model_that_cannot_be_built_is_refused_before_any_training(tmp_path: Path, stripes: Path) -> None:
    train, out = FakeTraining(), tmp_path / "out"
    plain = replace(PLAIN, options=replace(PLAIN.options, data=str(stripes)))
    other = Entrant("resvt", replace(plain.options, model="resvt"))
    with pytest.raises(CommandError, match="unknown model 'resvt'"):
        compare([plain, other], [0], out, quiet(), train)
    assert not train.options
    assert not out.exists()


def test_a_kill_loses_nothing_and_the_same_call_goes_on(tmp_path: Path) -> None:
    train = FakeTraining({("resvit", 1): KeyboardInterrupt("one epoch is kept")})
    with pytest.raises(KeyboardInterrupt, match="finished runs and epochs are kept; repeat the command to continue"):
        compare([PLAIN, OTHER], [0, 1], tmp_path, quiet(), train)
    early = found(tmp_path)
    assert early["finished"] == 3
    assert early["pairs"][0]["difference"]["wins"] == 1  # of the seed that both have
    assert "This report is preliminary: 3 of 4 runs are finished." in Page(tmp_path / "comparison.html").text
    rest = FakeTraining()
    assert compare([PLAIN, OTHER], [0, 1], tmp_path, quiet(), rest) == 0
    assert rest.done == [("resvit", 1)]
    assert "preliminary" not in Page(tmp_path / "comparison.html").text


def test_the_table_is_shown_after_every_seed(tmp_path: Path) -> None:
    console = quiet()
    compare([PLAIN, OTHER], range(3), tmp_path, console, FakeTraining())
    assert said(console).count("AUROC compared with vit") == 3
    assert said(console).rstrip().endswith(f"report: {tmp_path / 'comparison.html'}")


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    train, console = FakeTraining({("resvit", 0): CommandError("the disk [b]is[/b] full")}), quiet()
    assert compare([PLAIN, OTHER], [0, 1], tmp_path, console, train) == 1
    assert train.done == [("vit", 0), ("vit", 1), ("resvit", 1)]
    assert "failed: resvit, seed 0: the disk [b]is[/b] full" in said(console)
    assert found(tmp_path)["failures"] == [{"label": "resvit", "seed": 0, "why": "the disk [b]is[/b] full"}]
    text = " ".join(Page(tmp_path / "comparison.html").text.split())
    assert "1 of 4 runs failed and is missing below. resvit, seed 0: the disk [b]is[/b] full" in text
    assert "preliminary" not in text


def test_nothing_is_reported_where_no_run_finished(tmp_path: Path) -> None:
    fault = CommandError("there is no images")
    with pytest.raises(CommandError, match="none of the 2 runs finished; the first one failed: there is no images"):
        compare([PLAIN], [0, 1], tmp_path, quiet(), FakeTraining({("vit", 0): fault, ("vit", 1): fault}))
    assert not (tmp_path / "comparison.json").exists()


def test_a_comparison_is_marked_and_locked_while_it_works(tmp_path: Path) -> None:
    out, train = tmp_path / "new", FakeTraining()

    def look(options: Options, console: Console) -> None:
        assert (out / LOCK).exists()
        train(options, console)

    compare([PLAIN], [0, 1], out, quiet(), look)
    assert written(out) == [f"comparison.{kind}" for kind in ("csv", "html", "json", "pdf", "svg", "tex")] + ["runs"]


def test_a_comparison_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(options: Options, console: Console) -> None:
        raise CommandError("there is no images")

    with pytest.raises(CommandError, match="none of the 2 runs finished"):
        compare([PLAIN], [0, 1], tmp_path / "a" / "new", quiet(), fail)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_trained_nothing_does_not_block_other_options(tmp_path: Path) -> None:
    fault = CommandError("no network")
    with pytest.raises(CommandError):
        compare([PLAIN], [0], tmp_path, quiet(), FakeTraining({("vit", 0): fault}))
    other = Entrant("vit", replace(OPTIONS, weights="none", learning_rate=0.5))
    assert compare([other], [0], tmp_path, quiet(), FakeTraining()) == 0


def test_a_reference_that_fails_leaves_the_others_without_differences(tmp_path: Path) -> None:
    assert compare([PLAIN, OTHER], [0], tmp_path, quiet(), FakeTraining({("vit", 0): CommandError("no")})) == 1
    comparison = found(tmp_path)
    assert [result["label"] for result in comparison["results"]] == ["resvit"]
    assert comparison["pairs"] == []
    assert "resvit: " in Page(tmp_path / "comparison.html").text


def test_other_faults_are_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        compare([PLAIN], [0], tmp_path, quiet(), FakeTraining({("vit", 0): ZeroDivisionError()}))


def test_a_run_with_other_settings_is_refused_before_any_training(tmp_path: Path) -> None:
    compare([OTHER], [0, 1], tmp_path, quiet(), FakeTraining())
    changed = Entrant("resvit", replace(OTHER.options, epochs=5, norm="confidence"))
    train = FakeTraining()
    with pytest.raises(CommandError, match=r"seed-0 holds a run with other options \(norm 'induced', now 'confidence'"):
        compare([PLAIN, changed], [0, 1], tmp_path, quiet(), train)
    with pytest.raises(CommandError, match="epochs 3, now 5"):
        compare([PLAIN, changed], [0, 1], tmp_path, quiet(), train)
    elsewhere = [Entrant(e.label, replace(e.options, data="others")) for e in (PLAIN, OTHER)]
    with pytest.raises(CommandError, match=r"\(data 'images', now 'others'\)"):
        compare(elsewhere, [0], tmp_path, quiet(), train)
    digits = [Entrant(e.label, replace(e.options, data=None)) for e in (PLAIN, OTHER)]
    with pytest.raises(CommandError, match=r"\(data 'images', now None\)"):
        compare(digits, [0], tmp_path, quiet(), train)
    assert train.options == []


def test_a_run_begun_with_other_settings_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compare([PLAIN], [0], tmp_path, quiet(), FakeTraining({("vit", 0): KeyboardInterrupt()}))
    run = RunFolder(tmp_path / "runs" / "vit" / "seed-0")
    run.checkpoints.mkdir()
    run.last.touch()
    with pytest.raises(CommandError, match="epochs 3, now 5"):
        compare([Entrant("vit", replace(OPTIONS, epochs=5))], [0], tmp_path, quiet(), FakeTraining())


def test_runs_from_before_there_were_gates_are_of_models_without(tmp_path: Path) -> None:
    compare([PLAIN, OTHER], [0], tmp_path, quiet(), FakeTraining())
    for path in (tmp_path / "runs").rglob("config.json"):
        config = json.loads(path.read_text())
        del config["init_values"], config["gate_rate"]
        path.write_text(json.dumps(config))
    train = FakeTraining()
    assert compare([PLAIN, OTHER], [0], tmp_path, quiet(), train) == 0
    assert train.done == []
    gated = Entrant("resvit", replace(OTHER.options, init_values=0.0))
    with pytest.raises(
        CommandError, match=r"None, now 0.0\): .* before, add --init-values none, because that run has no gate, or"
    ):
        compare([PLAIN, gated], [0], tmp_path, quiet(), train)
    longer = Entrant("resvit", replace(OTHER.options, epochs=5))
    with pytest.raises(
        CommandError, match=r"\(epochs 3, now 5\): give the same options as before, or choose another --out"
    ):
        compare([PLAIN, longer], [0], tmp_path, quiet(), train)


def test_gates_are_told_as_other_settings_are(tmp_path: Path) -> None:
    label = "resvit:init-values=0"
    gated = Entrant(label, replace(OTHER.options, init_values=0.0, gate_rate=0.0125))
    assert compare([OTHER, gated], [0], tmp_path, quiet(), FakeTraining()) == 0
    told = {result["label"]: result["options"] for result in found(tmp_path)["results"]}
    assert (told["resvit"]["init_values"], told[label]["init_values"], told[label]["gate_rate"]) == (None, 0.0, 0.0125)
    text = "".join(Page(tmp_path / "comparison.html").text.split())
    assert "init_values\u20130.0" in text
    assert "loggercsv,tensorboard" in text
    assert "gate_rate\u20130.0125" in text


def test_where_and_how_fast_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another path to the same data, and a moved folder, runs resume with the old path."""
    monkeypatch.chdir(tmp_path)
    train = FakeTraining({("vit", 1): CommandError("no")})
    compare([PLAIN], [0, 1], tmp_path / "here", quiet(), train)
    (tmp_path / "here").rename(tmp_path / "there")
    other = replace(OPTIONS, data=str(tmp_path / "x" / ".." / "images"), workers=4, devices="2", strategy="ddp")
    again = FakeTraining()
    assert compare([Entrant("vit", other)], [0, 1], tmp_path / "there", quiet(), again) == 0
    assert again.done == [("vit", 1)]
    assert again.options[0].data == "images"
    assert again.options[0].workers == 4


def test_data_that_moved_is_refused_with_the_command_that_says_so(tmp_path: Path) -> None:
    compare([PLAIN], [0], tmp_path, quiet(), FakeTraining())
    moved = Entrant("vit", replace(OPTIONS, data=str(tmp_path / "new")))
    run = tmp_path / "runs" / "vit" / "seed-0"
    command = f"if its images were moved, first say so with `rsattn finetune --resume {run} --data {tmp_path / 'new'}`"
    with pytest.raises(CommandError, match=re.escape(command)):
        compare([moved], [0], tmp_path, quiet(), FakeTraining())
    with pytest.raises(CommandError, match=r"\(data .*epochs .*\): give the same options as before"):
        compare([replace(moved, options=replace(moved.options, epochs=9))], [0], tmp_path, quiet(), FakeTraining())


def test_models_that_would_not_be_compared_alike_are_refused(tmp_path: Path) -> None:
    train = FakeTraining()
    for name, value in (("data", "elsewhere"), ("groups", "phash"), ("split_seed", 1)):
        entrants = [PLAIN, Entrant("resvit", replace(OTHER.options, **{name: value}))]
        with pytest.raises(CommandError, match=f"the models differ in {name}: "):
            compare(entrants, [0], tmp_path, quiet(), train)
    for label in ("vit", "VIT", "vit/"):
        with pytest.raises(CommandError, match="two of the models are named 'vit', or nearly so"):
            compare([PLAIN, Entrant(label, OTHER.options)], [0], tmp_path, quiet(), train)
    assert train.options == []


def test_a_folder_that_is_no_comparison_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(CommandError, match="it is not a folder"):
        compare([PLAIN], [0], file, quiet(), FakeTraining())
    (tmp_path / "comparison.html").write_text("mine")
    with pytest.raises(CommandError, match="choose another --out"):
        compare([PLAIN], [0], tmp_path, quiet(), FakeTraining())
    assert (tmp_path / "comparison.html").read_text() == "mine"


def test_damaged_files_are_named(tmp_path: Path) -> None:
    compare([PLAIN], [0], tmp_path, quiet(), FakeTraining())
    run = RunFolder(tmp_path / "runs" / "vit" / "seed-0")
    run.metrics.write_text("{")
    with pytest.raises(CommandError, match=r"metrics\.json is damaged: it is not JSON .*delete it"):
        compare([PLAIN], [0], tmp_path, quiet(), FakeTraining())
    run.config.write_text("{")
    with pytest.raises(CommandError, match=r"config\.json is damaged: it is not JSON .*another --out"):
        compare([PLAIN], [0], tmp_path, quiet(), FakeTraining())


def test_test_splits_that_differ_are_named(tmp_path: Path) -> None:
    """For example, images were added between the runs."""
    compare([PLAIN], [0], tmp_path, quiet(), FakeTraining())
    with pytest.raises(
        CommandError,
        match=r"resvit and vit: two runs .* were tested on different images",
    ):
        compare([PLAIN, OTHER], [0], tmp_path, quiet(), FakeTraining(groups=21))


@pytest.mark.parametrize(
    ("label", "folder"),
    [
        ("resvit:norm=confidence,merge=slot", "resvit-norm=confidence-merge=slot"),
        ("vit_small_patch14_dinov2+patch", "vit_small_patch14_dinov2+patch"),
        ("../../etc", "etc"),
        ("a\\b/c d", "a-b-c-d"),
        ("..", "model"),
    ],
)
def test_labels_become_folder_names(tmp_path: Path, label: str, folder: str) -> None:
    compare([Entrant(label, OPTIONS)], [0], tmp_path, quiet(), FakeTraining())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder]


def test_the_page_stands_alone_and_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    assert compare([PLAIN, Entrant(evil, OTHER.options)], [0, 1], tmp_path, quiet(), FakeTraining()) == 0
    page = Page(tmp_path / "comparison.html")
    assert evil in page.text
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert page.loads
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert "url(" not in (tmp_path / "comparison.html").read_text()


def test_the_page_shows_the_numbers_of_the_json(tmp_path: Path) -> None:
    entrants = [PLAIN, OTHER, Entrant("cnn", replace(OPTIONS, model="cnn"))]
    console = quiet()
    compare(entrants, range(3), tmp_path, console, FakeTraining())
    comparison, text = found(tmp_path), Page(tmp_path / "comparison.html").text
    for shown in (text, said(console)):
        for result in comparison["results"]:
            low, high = result["interval"]
            assert f"{100 * result['mean']:.1f} \u00b1 {100 * result['sd']:.1f}" in shown
            assert f"{100 * low:.1f} to {100 * high:.1f}" in shown
        for pair in comparison["pairs"]:
            low, high = pair["difference"]["interval"]
            assert f"{points(low)} to {points(high)}" in shown
            assert (
                f"p {p_value(pair['difference']['p'])}; p {p_value(pair['adjusted_p'])} adjusted for 2 comparisons)"
                in shown
            )
        assert " ".join(shown.split()).count("adjusted") >= 3  # a column, and both sentences
        assert "With 2 comparisons, a difference by chance is more likely" in shown
    ps = sorted(pair["difference"]["p"] for pair in comparison["pairs"])
    assert sorted(pair["adjusted_p"] for pair in comparison["pairs"]) == [min(1, 2 * ps[0]), max(2 * ps[0], ps[1])]


def test_with_one_seed_there_is_no_standard_deviation(tmp_path: Path) -> None:
    console = quiet()
    compare([PLAIN, OTHER], [7], tmp_path, console, FakeTraining())
    assert [result["sd"] for result in found(tmp_path)["results"]] == [None, None]
    text = Page(tmp_path / "comparison.html").text
    for shown in (text, said(console)):
        assert "\u00b1" not in shown
        assert "Each model was trained only once, which says little about chance in training" in shown
        assert "Tested on 40 images in 20 groups." in shown
        assert "adjusted" not in shown


def pair(
    mean: float, interval: tuple[float, float], p: float, adjusted: float | None = None, wins: int = 3, losses: int = 1
) -> Pair:
    return Pair("resvit", "vit", Difference(mean, interval, p, wins, losses, 1), p if adjusted is None else adjusted)


def of(*pairs: Pair) -> Comparison:
    options = {"model": "vit", "groups": None}
    result = Result("vit", {0: 0.9, 1: 0.8}, 0.85, 0.07, (0.8, 0.9), 0.8, 0.8, 0.8, 10, 1.0, options)
    split = TestSplit(40, 20, 0.6)
    return Comparison([0, 1], 2, 2, 80, 40, {0: split, 1: split}, [result], list(pairs), [])


NONE = pair(-0.003, (-0.021, 0.013), 0.7)
SHOWN = pair(0.021, (0.004, 0.039), 0.0123)
OPEN = pair(0.021, (0.001, 0.039), 0.03, adjusted=0.09)


def test_an_interval_that_holds_nothing_shows_nothing() -> None:
    assert verdict(NONE) == "none"
    assert headline(of(NONE)) == "No significant difference between resvit and vit"
    assert sentences(of(NONE))[0] == (
        "No significant difference between resvit and vit: \u22120.3 percentage points of accuracy (95 % interval "
        "\u22122.1 to +1.3, p = 0.70). With this number of test images, a difference below about 1.7 points cannot be "
        "detected. Over 5 seeds, resvit was better in 3, worse in 1 and equal in 1."
    )
    assert verdict(pair(0.02, (0.0, 0.04), 0.01)) == verdict(pair(-0.02, (-0.04, 0.0), 0.01)) == "none"


def test_a_difference_that_was_shown_is_said_with_its_direction() -> None:
    assert verdict(SHOWN) == "shown"
    assert headline(of(SHOWN)) == "In these runs, resvit was more accurate than vit"
    assert sentences(of(SHOWN))[0] == (
        "In these runs, resvit was more accurate than vit: +2.1 percentage points of accuracy (95 % interval +0.4 "
        "to +3.9, p = 0.012). Over 5 seeds, resvit was better in 3, worse in 1 and equal in 1."
    )
    worse = pair(-0.021, (-0.039, -0.004), 0.0002)
    assert headline(of(worse)) == "In these runs, resvit was less accurate than vit"
    assert "less accurate than vit: \u22122.1" in sentences(of(worse))[0]
    assert "p < 0.001)" in sentences(of(worse))[0]


def test_a_difference_the_adjusted_test_does_not_confirm_stays_open() -> None:
    assert verdict(OPEN) == "open"
    assert headline(of(OPEN)) == "It is unclear whether resvit and vit differ"
    assert "The interval excludes 0, but the permutation test is not significant." in sentences(of(OPEN))[0]
    assert headline(of(OPEN, NONE)) == "2 models compared with vit: no significant differences"
    assert headline(of(OPEN, SHOWN)) == "2 models compared with vit: 1 significant difference"
    assert "p = 0.030; p = 0.090 adjusted for 2 comparisons)" in sentences(of(OPEN, NONE))[0]


def test_few_trainings_are_a_caution() -> None:
    """`of` has two seeds; five need no caution."""
    assert any("trained only twice" in sentence for sentence in sentences(of(SHOWN)))
    results = [replace(of().results[0], accuracies=dict.fromkeys(range(seeds), 0.9)) for seeds in (4, 5)]
    for result, cautioned in zip(results, (True, False)):
        splits = dict.fromkeys(result.accuracies, TestSplit(40, 20, 0.6))
        comparison = replace(of(SHOWN), results=[result], test_splits=splits)
        assert any("trained only 4 times" in sentence for sentence in sentences(comparison)) is cautioned


def test_the_tables_fit_a_terminal() -> None:
    """A terminal of 80 columns and the longest possible numbers; only long labels are folded."""
    label = "resvit:norm=confidence,merge=slot,init-values=0.5"
    score, change = Score(0.9, (0.81, 0.95)), Score(-0.1234, (-0.2, -0.1111))
    results = [replace(of().results[0], label=name, interval=(0.8, 1.0), auroc=score) for name in ("vit", label)]
    pairs = [replace(pair(-0.1234, (-0.2, -0.1111), 0.0001), label=name, auroc=change) for name in (label, "cnn")]
    console = quiet()
    console.width = 80
    console.print(table(replace(of(*pairs), results=results)))
    lines = said(console).splitlines()
    assert max(map(len, lines)) <= 80
    starts = [line.split() for line in lines if line.strip() and "\u2500" not in line]
    assert starts[0] == ["model", "accuracy,", "%", "95", "%", "interval", "AUROC", "F1"]
    assert starts[1] == ["vit", "85.0", "\u00b1", "7.0", "80.0", "to", "100.0", "0.900", "0.800"]
    assert starts[4] == [
        "accuracy",
        "compared",
        "with",
        "vit",
        "difference",
        "95",
        "%",
        "interval",
        "p",
        "p,",
        "adjusted",
    ]
    assert starts[5][1:] == ["\u221212.3", "\u221220.0", "to", "\u221211.1", "<", "0.001", "<", "0.001"]
    assert starts[5][0] + starts[6][0] == label
    assert starts[8] == ["AUROC", "compared", "with", "vit", "difference", "95", "%", "interval"]
    assert starts[-1] == ["cnn", "\u22120.123", "\u22120.200", "to", "\u22120.111"]


def test_what_was_tested_is_said() -> None:
    assert (
        "Tested on 40 images with each of 2 seeds; over all seeds, on 80 different images in 40 groups."
        in sentences(of(SHOWN))
    )
    uneven = replace(of(SHOWN), test_splits={0: TestSplit(40, 20, 0.6), 1: TestSplit(43, 20, 0.6)})
    assert any("Tested on 40 to 43 images with each of 2 seeds" in sentence for sentence in sentences(uneven))


def test_the_most_frequent_class_and_the_models_that_are_not_better_are_said() -> None:
    """The interval of vit begins at 80 %."""
    always = "Always answering the most frequent class of the test images is right for {} % of them."
    assert always.format("60.0") in sentences(of(SHOWN))
    splits = {0: TestSplit(40, 20, 0.8), 1: TestSplit(40, 20, 0.82)}
    expected = f"{always.format('81.0')} vit is not shown to be better than that: see the 95 % intervals."
    assert expected in sentences(replace(of(SHOWN), test_splits=splits))
    three = [replace(of().results[0], label=label) for label in ("vit", "resvit", "cnn")]
    (said,) = (one for one in sentences(replace(of(SHOWN), test_splits=splits, results=three)) if "Always" in one)
    assert said.endswith(" vit, resvit and cnn are not shown to be better than that: see the 95 % intervals.")
    one_class = replace(of(SHOWN), test_splits={0: TestSplit(40, 20, 1.0)})
    assert not any("Always" in sentence for sentence in sentences(one_class))


def test_test_images_that_look_like_training_images_are_a_caution() -> None:
    splits = {0: TestSplit(40, 20, 0.6, 3), 1: TestSplit(43, 20, 0.6, 4)}
    assert (
        "7 of 83 test images, over all seeds, look the same as a training image, so the accuracies are too high; "
        "--groups phash prevents this."
    ) in sentences(replace(of(SHOWN), test_splits=splits))
    result = replace(of().results[0], options={"model": "vit", "groups": "patients.csv"})
    one = {0: TestSplit(40, 20, 0.6), 1: TestSplit(40, 20, 0.6, 1)}
    assert (
        "1 of 80 test images, over all seeds, looks the same as a training image; if they are copies, the accuracies "
        "are too high: give them one group in patients.csv."
    ) in sentences(replace(of(SHOWN), test_splits=one, results=[result]))
    assert not any("look the same" in sentence for sentence in sentences(of(SHOWN)))


@pytest.mark.parametrize(
    ("write", "values"),
    [
        (points, {0.021: "+2.1", -0.021: "\u22122.1", 0.0: "0.0", -0.0004: "0.0", 0.00051: "+0.1"}),
        (p_value, {0.0004: "< 0.001", 0.001: "= 0.001", 0.0496: "= 0.050", 0.1: "= 0.10", 1.0: "= 1.00"}),
    ],
)
def test_numbers_in_words(write: Callable[[float], str], values: dict[float, str]) -> None:
    assert {value: write(value) for value in values} == values


def test_the_plot_has_a_dot_for_each_seed_and_the_mean_with_its_interval() -> None:
    first = of().results[0]
    second = replace(first, label="resvit" * 20, accuracies={1: 0.95}, mean=0.95, sd=None, interval=(0.91, 0.97))
    figure = dot_plot(replace(of(), results=[first, second]))
    (axes,) = figure.axes
    lines = [np.round(np.column_stack(line.get_data()).astype(float), 2).tolist() for line in axes.lines]
    assert [[across for across, _ in line] for line in lines] == [[90], [80, 95], [80, 90], [85], [91, 97], [95]]
    assert lines[3:] == [[[85, 0]], [[91, 1], [97, 1]], [[95, 1]]]
    figure.draw_without_rendering()
    left, right = axes.get_xlim()
    unseen = [tick.label1 for tick in axes.xaxis.get_major_ticks() if not left <= tick.get_loc() <= right]
    texts = [text for text in figure.findobj(lambda thing: hasattr(thing, "get_text")) if text.get_text()]
    texts = [text for text in texts if text not in unseen]
    for text in texts:
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text.get_text()
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text.get_text()
    assert "resvit" * 7 + "r\u2026" in {text.get_text() for text in texts}
