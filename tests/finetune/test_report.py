"""report.html of fabricated runs, compared with the files of the run."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from fabricated import CLASSES, fabricate
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import binomtest

from rsattn.cli import drawing
from rsattn.cli.command import CommandError
from rsattn.finetune import report
from rsattn.finetune.report import write_report
from rsattn.finetune.run_folder import RunFolder

DASH = "\u2013"
LOADS = {"src", "srcset", "poster", "data", "action", "background"}
EMPTY = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """The tags of a page with their attributes, the text and tables of each section by id, and the definitions."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.defined: dict[str, list[str]] = {}
        self.term = ""
        self.section, self.words, self.styles = "", "", ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.tables[self.section][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles += data
            return
        if self.open and self.open[-1] == "dt":
            self.term = data
        if self.open and self.open[-1] == "dd":
            self.defined.setdefault(self.term, []).append(data)
        self.words += data
        self.sections[self.section] = self.sections.get(self.section, "") + data
        if "td" in self.open or "th" in self.open:
            self.tables[self.section][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words.split())

    def part(self, section: str) -> str:
        return " ".join(self.sections.get(section, "").split())

    def images(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [base64.b64decode(source.partition(",")[2], validate=True) for source in sources]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that need the real figures of the report."""
    monkeypatch.setattr(report, "save_vector", drawing.save_vector)


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests skip drawing, which takes most of the time."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(report, "_save", lambda figure, path: Image.new("RGB", (2, 2)).save(path))


def report_of(run: Path, **made: Any) -> Page:
    fabricate(run, **made)
    return Page(write_report(run))


def cautions(page: Page) -> str:
    """The sentences before the first score."""
    return page.part("cautions").partition(" balanced accuracy")[0]


def metrics_of(run: Path) -> Any:
    return json.loads(RunFolder(run).metrics.read_text())


def percent(share: float | None) -> str:
    return DASH if share is None else f"{100 * share:.1f} %"


def test_the_result_is_one_sentence_at_the_top(tmp_path: Path) -> None:
    run = tmp_path / "run"
    page = report_of(run)
    found = metrics_of(run)["scores"]
    right = sum(found["confusion"][i][i] for i in range(4))
    low, high = metrics_of(run)["intervals"]["accuracy"]
    assert (low, high) == pytest.approx(binomtest(right, 120).proportion_ci(method="wilson"))
    assert 100 < right < 120
    assert (
        f"resvit classified {right} of 120 test images correctly: {percent(found['accuracy'])} "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    ) in page.text
    assert "not for diagnosis" in page.part("")
    assert "Wilson" in page.part("")


def test_where_groups_hold_several_images_the_interval_is_over_groups(tmp_path: Path) -> None:
    run = tmp_path / "run"
    page = report_of(run, per_group=5)
    low, high = metrics_of(run)["intervals"]["accuracy"]
    assert f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)" in page.text
    assert "a Wilson interval with the design effect of the 24 groups of the test split" in page.text


def test_a_model_with_one_answer_is_said_to_have_one(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run", never=("glioma", "meningioma", "no tumour"))
    assert cautions(page) == (
        "Every test image was classified as pituitary, so the model does not tell the classes apart: its accuracy is "
        "the share of pituitary among the test images."
    )
    assert page.tables["classes"][1] == ["glioma", "0.0 %", DASH, "0.0 %", "30"]
    assert "A dash: no image was predicted as this class" in page.part("classes")
    assert "Always answering glioma, the most frequent class: 25.0 %" in page.text


def test_a_class_that_is_never_predicted_is_named(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run", never=("meningioma",))
    assert cautions(page) == "No test image was classified as meningioma."
    assert [row[2] == DASH for row in page.tables["classes"][1:5]] == [False, True, False, False]


@pytest.mark.parametrize(
    ("right", "words"), [(0.05, "not shown to be better than"), (0.9, None)], ids=["no better", "better"]
)
def test_a_model_that_is_no_better_than_a_constant_answer_is_said_so(
    tmp_path: Path, right: float, words: str | None
) -> None:
    run = tmp_path / "run"
    page = report_of(run, right=right)
    if words is None:
        assert cautions(page) == ""
        return
    low, high = (100 * end for end in metrics_of(run)["intervals"]["accuracy"])
    assert cautions(page) == (
        f"The model is {words} always answering glioma, which is right for 25.0 % of the test images: the 95 % "
        f"interval of its accuracy is {low:.1f} to {high:.1f} %."
    )


def test_a_test_split_of_one_class_has_no_constant_answer_to_beat(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run", absent=CLASSES[1:], never=CLASSES[1:])
    assert cautions(page) == ""


def test_groups_by_hash_are_said_not_to_be_patients(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run", groups="phash")
    assert "not patients: two slices of one patient can look different" in page.part("caveats")
    assert "were not grouped" not in page.part("caveats")


def test_the_augmentation_is_described(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run", augment="flip")
    assert "Augmentation: rotation up to 15 degrees, shift up to 12.5 % of the side" in page.part("training")
    assert "flips left to right." in page.part("training")


@pytest.mark.parametrize("absent", [(), ("no tumour",)])
def test_the_scores_are_those_of_metrics_json(tmp_path: Path, absent: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    page = report_of(run, absent=absent)
    found = metrics_of(run)["scores"]
    expected = [["class", "recall", "precision", "F1", "images"]]
    for name, each in found["per_class"].items():
        expected.append([name, *(percent(each[k]) for k in ("recall", "precision", "f1")), str(each["images"])])
    macro = [percent(found["macro"][k]) for k in ("recall", "precision", "f1")]
    assert page.tables["classes"] == [*expected, ["mean over classes", *macro, str(found["images"])]]
    assert page.defined["balanced accuracy"][0] == percent(found["balanced_accuracy"])
    assert page.defined["macro F1"][0] == percent(found["macro"]["f1"])
    assert page.defined["AUROC"][0] == f"{found['auroc']:.3f}"
    assert page.defined["log loss"][0] == f"{found['log_loss']:.3f}"
    bars = [attributes["style"] for tag, attributes in page.tags if attributes.get("class") == "recall"]
    recalls = [each["recall"] for each in found["per_class"].values() if each["recall"] is not None]
    assert bars == [f"--share: {recall:.4f}" for recall in recalls]


def test_many_classes_are_folded(tmp_path: Path) -> None:
    """The worst classes and the most frequent confusions are shown; the long tables can be opened."""
    run, classes = tmp_path / "run", [f"{number:03}.bird" for number in range(40)]
    page = report_of(run, classes=classes, per_class=5, right=0.6, absent=classes[:9])
    found = metrics_of(run)["scores"]
    rows = page.tables["classes"]
    lowest = rows[1:11]
    recalls = sorted(each["recall"] for each in found["per_class"].values() if each["recall"] is not None)
    assert rows[0] == ["no.", "class", "recall", "precision", "F1", "images"]
    assert [row[2] for row in lowest] == [percent(recall) for recall in recalls[:10]]
    assert all(classes[int(row[0]) - 1] == row[1] for row in lowest)
    assert rows[11][1] == "mean over all classes"
    assert [row[1] for row in rows[13:53]] == classes
    counts = np.array(found["confusion"]) * (1 - np.eye(40, dtype=int))
    (start,) = [index for index, row in enumerate(rows) if row[:2] == ["true", "predicted"]]
    confusions = rows[start + 1 :]
    assert [int(row[2]) for row in confusions] == sorted(counts.ravel().tolist(), reverse=True)[:10]
    for true, predicted, images, share in confusions:
        assert counts[classes.index(true), classes.index(predicted)] == int(images)
        assert share == percent(int(images) / 5)
    assert [row[0] for row in page.tables["data"][:3]] == ["", "images", "groups"]
    assert [tag for tag, _ in page.tags].count("details") == 6  # with two of the checklists
    assert "No test images of 000.bird, 001.bird" in page.part("caveats")
    assert "007.bird and 1 more: the averages are over the other classes." in page.part("caveats")


def test_a_score_that_is_undefined_is_a_dash(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run", absent=CLASSES[1:])
    assert page.defined["AUROC"][0] == DASH


@pytest.mark.parametrize("residual", [True, False])
def test_every_image_is_inside_the_page(tmp_path: Path, residual: bool) -> None:
    run = tmp_path / "run"
    page = report_of(run, residual=residual)
    of_the_run = ["looks", "head_choices", "norms"] if residual else ["samples"]
    files = [
        RunFolder(run).figures / f"{name}.png" for name in ("confusion", "roc_pr", "reliability", *of_the_run, "curves")
    ]
    assert page.images() == [file.read_bytes() for file in files]
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run")
    assert not {"script", "iframe", "object", "embed", "link", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert name not in LOADS or (value or "").startswith("data:image/png;base64,")
            assert not name.startswith("on")
            assert name != "href"
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    assert not re.search("https?:|//", re.sub('base64,[^"]*', "", page.source).replace(str(tmp_path), ""))
    assert page.open == []


def test_it_is_made_for_phones_dark_rooms_and_paper(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run")
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    for rule in ("@media (prefers-color-scheme: dark)", "@media print", "@media (max-width:"):
        assert rule in page.styles


def test_residual_models_say_how_to_read_where_they_look(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run")
    assert "the attention that each patch receives from all tokens in the best head of the last block" in page.part(
        "looks"
    )
    assert "Neither attention nor Grad-CAM explains the decision." in page.part("looks")
    assert "and draw where the model looks" in page.part("use")


@pytest.mark.parametrize("at_the_end", [True, False])
def test_windows_are_not_called_images(tmp_path: Path, at_the_end: bool) -> None:
    """In each block but perhaps the last, the images have four windows each, which choose their own heads."""
    run = tmp_path / "run"
    assert "percentages of the test images. " in report_of(run).part("looks")
    heads = RunFolder(run).heads
    first, last = json.loads(heads.read_text()).items()
    windows = [4 * chosen for chosen in first[1]]
    heads.write_text(json.dumps({first[0]: windows, last[0]: windows if at_the_end else last[1]}))
    page = Page(write_report(run))
    said = page.part("looks")
    assert "percentages of the test images' windows: each window chooses a head of its own. " in said
    assert "averaged over the test images' windows. " in said
    assert ("a window has no attention map of the whole image" in said) == at_the_end
    assert ("that each patch receives" not in page.source) == at_the_end
    assert ("Neither attention nor Grad-CAM" not in page.text) == at_the_end


def test_other_models_show_samples_and_claim_no_looks(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run", residual=False)
    assert "attention maps" not in page.text.lower()
    assert "Test images at the size of the model's input" in page.part("looks")


@pytest.mark.full_figures
def test_what_the_gates_became_is_shown_with_how_to_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    figures = {}
    original = report._save
    monkeypatch.setattr(
        report, "_save", lambda figure, path: (figures.setdefault(path.name, figure), original(figure, path))
    )
    page = report_of(run, gates=(0.5, -0.25), init_values=0.0, gate_rate=5e-3)
    became, start = figures["gates.png"].axes[0].get_lines()
    assert became.get_ydata().tolist() == [0.5, 0.25]
    assert set(start.get_ydata()) == {0.0}
    assert (RunFolder(run).figures / "gates.png").read_bytes() in page.images()
    said = page.part("gates")
    assert (
        "multiplies the output of its best head by the gate, which has one value per channel, before it adds it."
        in said
    )
    assert "Where a gate stays near zero, the residual of the block has little effect." in said
    assert "not trained" not in said
    assert "whose output is added as the residual, times the gate. The numbers" in page.part("looks")
    assert "gates" not in page.part("caveats")
    assert page.defined["init values"] == ["0.0"]
    assert page.defined["gate rate"] == ["0.005"]


@pytest.mark.parametrize("residual", [True, False])
def test_without_gates_nothing_is_said_of_them(tmp_path: Path, residual: bool) -> None:
    run = tmp_path / "run"
    page = report_of(run, residual=residual)
    assert "gates" not in page.sections
    assert "times the gate" not in page.text
    assert not (RunFolder(run).figures / "gates.png").exists()
    without(RunFolder(run).metrics, "gates")
    assert Page(write_report(run)).source == page.source  # as of runs from before there were gates


def test_gates_that_stayed_at_0_change_how_to_read_the_result(tmp_path: Path) -> None:
    said = "The gates stayed at 0{}: the residual adds nothing, and the model equals the plain one."
    frozen = report_of(tmp_path / "frozen", gates=(0.0, 0.0), freeze=True)
    assert said.format(" (--freeze trains only the classifier)") in frozen.part("caveats")
    assert (
        "Where a gate is near zero, the residual of the block has little effect. The gates were not trained."
        in frozen.part("gates")
    )
    assert said.format("") in report_of(tmp_path / "trained", gates=(0.0, 0.0)).part("caveats")
    assert "the plain one" not in report_of(tmp_path / "open", gates=(0.5, 0.0), freeze=True).part("caveats")


def test_added_epochs_attention_without_a_residual_and_random_features_are_limits(tmp_path: Path) -> None:
    run = tmp_path / "run"
    report_of(run, freeze=True, restarts=(20,))
    metrics = metrics_of(run)
    metrics["model"]["without_residual"] = {"pool.attn": "pools the tokens", "fusion.attn": "is of another class"}
    RunFolder(run).metrics.write_text(json.dumps(metrics))
    said = Page(write_report(run)).part("caveats")
    assert "The learning rate rose and fell again after epoch 20, as it does when epochs are added" in said
    assert "There is no residual in 2 attention modules of the model: is of another class, pools the tokens." in said
    assert "Only the classifier was trained: the features are those of random weights." in said


def test_what_changes_how_to_read_the_result_is_said_first(tmp_path: Path) -> None:
    page = report_of(
        tmp_path / "run",
        absent=("pituitary",),
        left_out=7,
        notes=["the folder old/ was left out: it is not one of the class folders", "3 links to nowhere left out."],
        damaged={"glioma/17.png": "it is not an image"},
    )
    said = page.part("caveats")
    for sentence in (
        "The images were not grouped. If several images show the same patient, slide or photograph",
        "Left out of training: 7 images, because images of the same group are in the test or validation split.",
        "No test images of pituitary: the averages are over the other classes.",
        "The folder old/ was left out: it is not one of the class folders. 3 links to nowhere left out.",
        "1 damaged image left out",
    ):
        assert sentence in said
    assert ".." not in said
    assert page.tables["caveats"] == [["file", "reason"], ["glioma/17.png", "it is not an image"]]
    assert "details" in [tag for tag, _ in page.tags]
    assert list(page.sections)[1] == "caveats"


def test_an_early_end_is_said_with_its_reason(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run", epochs=11, stopped="early stopping")
    said = page.part("caveats")
    assert "stopped early, after epoch 11 of at most 30: the validation loss had not improved for 8 epochs" in said


def test_where_there_is_nothing_to_warn_of_there_is_no_warning(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run", per_group=2)
    assert "caveats" not in page.sections
    assert "Left out" not in page.text


def test_the_most_confident_mistakes_come_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    page = report_of(run, right=0.5)
    with RunFolder(run).predictions.open(newline="") as file:
        wrong = [row for row in csv.DictReader(file) if row["label"] != row["predicted"]]
    wrong.sort(key=lambda row: -float(row[f"p_{row['predicted']}"]))
    assert len(wrong) > 10
    assert page.tables["mistakes"][1:] == [
        [row["file"], row["label"], row["predicted"], percent(float(row[f"p_{row['predicted']}"]))]
        for row in wrong[:10]
    ]
    assert f"10 of {len(wrong)} wrong predictions" in page.part("mistakes")


def test_equally_confident_mistakes_are_in_the_order_of_their_files(tmp_path: Path) -> None:
    """As in the figure of mistakes."""
    run = RunFolder(tmp_path / "run")
    report_of(run.path, right=0.95, seed=1)
    with run.predictions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {f"p_{name}": "0.9" if name == row["predicted"] else "0.05" for name in CLASSES}
    with run.predictions.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["file"], reverse=True))
    write_report(run.path)
    files = [row[0] for row in Page(run.report).tables["mistakes"][1:]]
    assert len(files) > 1
    assert files == sorted(files)


def test_few_mistakes_are_all_shown_and_none_is_said(tmp_path: Path) -> None:
    page = report_of(tmp_path / "few", right=0.95, seed=1)
    shown = len(page.tables["mistakes"]) - 1
    assert 1 < shown < 10
    assert f"All {shown} wrong predictions" in page.part("mistakes")
    page = report_of(tmp_path / "none", right=1.0, per_class=3)
    assert "mistakes" not in page.tables
    assert "None: all test images were classified correctly." in page.part("mistakes")


def test_the_data_are_counted_by_split_and_class(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run", classes=("a", "b"), per_class=10, left_out=3, absent=("b",))
    assert page.tables["data"] == [
        ["class", "training", "validation", "test", "left out"],
        ["a", "40", "10", "10", "3"],
        ["b", "40", "10", "0", "0"],
        ["images", "80", "20", "10", "3"],
        ["groups", "80", "20", "10", "3"],
    ]
    assert "each image is its own group" in page.part("data")
    assert str(tmp_path / "images") in page.part("data")


def test_every_setting_and_version_is_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    page = report_of(run, seed=5, freeze=True, learning_rate=3e-4)
    metrics = metrics_of(run)
    expected = {name.replace("_", " "): [setting(value)] for name, value in metrics["options"].items()}
    expected |= {"split seed": ["5"], "device": [metrics["device"]], "training time": ["1 min 2 s"]}
    expected |= {package: [version] for package, version in metrics["versions"].items()}
    assert expected.items() <= page.defined.items()
    assert page.defined["learning rate"] == ["0.0003"]
    assert page.defined["freeze"] == ["yes"]
    assert page.defined["groups"] == [DASH]
    assert page.defined["logger"] == ["csv, tensorboard"]
    assert "5 epochs in 1 min 2 s; epoch 3 had the lowest validation loss" in page.part("training")
    assert "5,400,000 of 5,500,000 parameters were trained" in page.part("training")


def setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return DASH if value is None else str(value)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.25, "0.2 s"), (59.4, "59.4 s"), (59.8, "1 min 0 s"), (3725, "1 h 2 min")]
)
def test_times_are_for_people(tmp_path: Path, seconds: float, words: str) -> None:
    run = tmp_path / "run"
    fabricate(run)
    changed(RunFolder(run).metrics, seconds=seconds)
    assert f"5 epochs in {words};" in Page(write_report(run)).text


def test_its_commands_can_be_pasted(tmp_path: Path) -> None:
    run = tmp_path / "a run's folder"
    page = report_of(run)
    quoted = "'" + str(run).replace("'", "'\"'\"'") + "'"
    assert f"rsattn predict {quoted} IMAGES" in page.part("use")
    assert f"rsattn finetune --resume {quoted}" in page.part("use")
    assert "write this report again" in page.part("use")


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    attribute = '" onload="x'
    run = tmp_path / "<b>run"
    page = report_of(
        run,
        classes=(evil, attribute, "&amp;"),
        right=0.3,
        absent=("&amp;",),
        notes=[f"odd: {evil}"],
        damaged={f"{evil}.png": f"why {evil}"},
        weights=f"{evil}.pt",
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert [tag for tag, _ in page.tags].count("b") == 1  # the page's own
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert [row[0] for row in page.tables["classes"][1:4]] == [evil, attribute, "&amp;"]
    assert evil in page.part("caveats")
    assert page.tables["caveats"][1] == [f"{evil}.png", f"why {evil}"]
    assert "".join(page.defined["weights"]) == f"{evil}.pt"
    assert any(row[0].startswith(evil) for row in page.tables["mistakes"])


def test_names_of_other_writings_and_broken_bytes(tmp_path: Path) -> None:
    page = report_of(
        tmp_path / "run", classes=("Übelkeit", "b\nc", "\udcfe"), right=0.3, damaged={"a/\udcff.png": "damaged"}
    )
    assert page.tables["caveats"][1][0] == "a/\\udcff.png"
    assert [row[0] for row in page.tables["classes"][1:4]] == ["Übelkeit", "b\\nc", "\\udcfe"]
    assert any(row[0].startswith("\\udcfe/") for row in page.tables["mistakes"])


def test_a_class_may_be_called_like_a_method(tmp_path: Path) -> None:
    page = report_of(tmp_path / "run", classes=("items", "values", "images"), per_class=4)
    assert [row[:1] + row[-1:] for row in page.tables["classes"][1:4]] == [
        ["items", "4"],
        ["values", "4"],
        ["images", "4"],
    ]
    assert page.tables["data"][1] == ["items", "16", "4", "4"]


@pytest.mark.full_figures
def test_its_own_figures_are_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    fabricate(run)
    figures = {}
    monkeypatch.setattr(report, "_save", lambda figure, path: figures.setdefault(path.name, figure))
    monkeypatch.setattr(report, "_data_uri", lambda folder, path: "")
    write_report(run)
    counts = np.array(metrics_of(run)["scores"]["confusion"])
    shares = figures["confusion.png"].axes[0].images[0].get_array()
    np.testing.assert_allclose(shares, counts / counts.sum(1, keepdims=True))
    training, _, best = figures["curves.png"].axes[0].get_lines()
    assert training.get_ydata().tolist() == [1.4 / epoch for epoch in range(1, 6)]
    assert list(best.get_xdata()) == [3, 3]


@pytest.mark.usefixtures("drawn")
@pytest.mark.full_figures
def test_its_own_figures_are_sharp_on_fine_screens_and_kept_when_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    fabricate(run)
    write_report(run)
    folder = RunFolder(run).figures
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert Image.open(folder / "curves.png").width == 9 * 160  # inches, dots per inch

    def full(figure: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(CommandError, match=r"cannot write .*confusion\.png: No space left on device"):
        write_report(run)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.full_figures
@pytest.mark.usefixtures("drawn")
def test_its_own_figures_are_vector_graphics_too(tmp_path: Path) -> None:
    """The text of a figure stays text, with the font in the PDF file as TrueType, which journals ask for."""
    run = tmp_path / "run"
    page = report_of(run, gates=(0.1, 0.2), init_values=0.0)
    assert "has confusion, curves, gates, reliability, roc_pr as vector" in page.part("figures")
    words = {
        "confusion": "no tumour",
        "curves": "Loss",
        "gates": "block",
        "reliability": "Calibration",
        "roc_pr": "ROC",
    }
    for name, word in words.items():
        stem = RunFolder(run).figures / name
        svg = ElementTree.parse(stem.with_suffix(".svg"))
        assert word in {element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")}
        pdf = stem.with_suffix(".pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert b"/Type0" in pdf


@pytest.mark.usefixtures("drawn")
def test_it_is_written_anew_over_an_older_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fabricate(run)
    before = set(files(run))
    first = write_report(run).read_bytes()
    assert write_report(run) == RunFolder(run).report
    assert RunFolder(run).report.read_bytes() == first
    drawn = ("confusion", "reliability", "roc_pr", "curves")
    figures = {run / "figures" / f"{name}.{kind}" for name in drawn for kind in ("png", "svg", "pdf")}
    assert set(files(run)) == before | figures | {run / "report.html", run / "checklist.csv"}


def files(run: Path) -> list[Path]:
    return [path for path in run.rglob("*") if path.is_file()]


def test_checkpoints_may_be_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fabricate(run)
    for path in RunFolder(run).checkpoints.iterdir():
        path.unlink()
    write_report(run)


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fabricate(run)
    RunFolder(run).metrics.unlink()
    (RunFolder(run).figures / "looks.png").unlink()
    with pytest.raises(CommandError) as raised:
        write_report(run)
    said = str(raised.value)
    assert f"{run} lacks metrics.json, {os.path.join('figures', 'looks.png')}, which the report needs" in said
    assert f"rsattn finetune --resume {run}" in said
    assert "data.json" not in said
    assert not RunFolder(run).report.exists()


@pytest.mark.parametrize("name", ["metrics.json", "data.json", "history.csv", "predictions.csv", "figures/samples.png"])
def test_each_file_is_needed(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    fabricate(run, residual=False)
    (run / name).unlink()
    with pytest.raises(CommandError, match=f"lacks {re.escape(name)},"):
        write_report(run)


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def without(path: Path, key: str) -> None:
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "half_json": ("metrics.json", lambda path: path.write_text(path.read_text()[:50]), ""),
    "a_number": ("metrics.json", lambda path: path.write_text("5"), "it is 5, expected"),
    "no_options": ("metrics.json", lambda path: without(path, "options"), "it lacks options"),
    "no_notes": ("data.json", lambda path: without(path, "notes"), "it lacks notes"),
    "bytes": ("data.json", lambda path: path.write_bytes(b"\xff\xfe\x00"), ""),
    "empty_history": ("history.csv", lambda path: path.write_text(""), "rows with the columns epoch"),
    "words": ("history.csv", lambda path: replaced(path, "1.4", "many"), "could not convert"),
    "short_row": ("history.csv", lambda path: path.write_text(path.read_text() + "6,0.1\n"), "columns epoch"),
    "lost_epoch": ("history.csv", lambda path: path.write_text(path.read_text().rsplit("5,", 1)[0]), "4 epochs, .* 5"),
    "no_class": ("predictions.csv", lambda path: replaced(path, "p_glioma", "p_other"), "columns .*p_glioma"),
    "other_class": ("predictions.csv", lambda path: replaced(path, "pituitary,glioma", "pituitary,other"), "p_other"),
    "open_quote": ("predictions.csv", lambda path: path.write_text(path.read_text() + '"'), "unexpected end of data"),
    "no_heads": ("heads.json", lambda path: path.write_text('{"blocks.0.attn": 5}'), "5"),
    "no_png": ("figures/norms.png", lambda path: path.write_bytes(b""), "not a PNG"),
}


@pytest.mark.parametrize(("name", "damage", "says"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_with_the_reason(
    tmp_path: Path, name: str, damage: Callable[[Path], Any], says: str
) -> None:
    run = tmp_path / "run"
    fabricate(run, right=0.3)
    write_report(run)
    before = RunFolder(run).report.read_bytes()
    damage(run / name)
    with pytest.raises(CommandError, match=f"{re.escape(str(run / name))} is damaged: .*{says}.*(--resume|--config)"):
        write_report(run)
    assert RunFolder(run).report.read_bytes() == before


def test_a_disk_that_refuses_leaves_the_older_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    fabricate(run)
    before = write_report(run).read_bytes()

    def full(path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.Path, "write_text", full)
    with pytest.raises(CommandError, match=r"cannot write .*report\.html: No space left on device"):
        write_report(run)
    assert RunFolder(run).report.read_bytes() == before
    assert not list(run.glob(".*"))
