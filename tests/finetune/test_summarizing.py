"""The summary of finished runs: AUROC, folds, groups and checksums, compared with scikit-learn; and its files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score, roc_auc_score
from test_compare import OPTIONS, OTHER, PLAIN, Page, found

from rsattn.cli.command import CommandError
from rsattn.cli.drawing import save_vector
from rsattn.finetune.compare import Entrant, compare, runs_of
from rsattn.finetune.comparison import Comparison
from rsattn.finetune.comparison_files import as_csv, as_tex, escaped
from rsattn.finetune.comparison_methods import paragraph
from rsattn.finetune.comparison_sentences import p_value, points, sentences, signed
from rsattn.finetune.comparison_table import group_rows
from rsattn.finetune.options import Options
from rsattn.finetune.run_folder import RunFolder
from rsattn.finetune.summarizing import summary

CLASSES = ("a", "b", "c")
SKILL = {"vit": 0.5, "resvit": 1.5}


class Training:
    """Writes the files of runs: 60 test images of a fold or seed, four of each patient, with probabilities.

    Args:
        mixed: the number of patients of each run whose images have several labels.
        images: the checksum of the images in the runs of each model.
    """

    def __init__(self, mixed: int = 0, images: dict[str, str] | None = None) -> None:
        self.mixed, self.images = mixed, images or {}

    def __call__(self, options: Options, console: Console) -> None:
        run = RunFolder(Path(options.out))
        run.path.mkdir(parents=True)
        number = np.arange(60)
        patient = 100 * options.seed + number // 4
        label = (number // 4 + options.seed) % 3
        label[: 4 * self.mixed : 4] = (label[: 4 * self.mixed : 4] + 1) % 3
        rng = np.random.default_rng([options.seed, len(options.model)])
        logits = SKILL[options.model] * np.eye(3)[label] + rng.normal(size=(60, 3))
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        predicted = probabilities.argmax(1)
        with run.predictions.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "group", "label", "predicted", *(f"p_{name}" for name in CLASSES)])
            for i in number:
                names = CLASSES[label[i]], CLASSES[predicted[i]]
                row = [f"{value:.6g}" for value in probabilities[i]]
                writer.writerow([f"{options.seed}/{i}.png", f"patient{patient[i]}", *names, *row])
        split = hashlib.sha256(str(options.seed).encode()).hexdigest()
        counts = {"train": dict.fromkeys(CLASSES, 50), "val": dict.fromkeys(CLASSES, 10)}
        counts["test"] = {"a": 20, "b": 40, "c": 0}
        _json(
            run.data,
            {
                "classes": CLASSES,
                "counts": counts,
                "damaged": [{"file": "bad.png", "why": "cut off"}],
                "groups": "the groups are those of patients.csv",
                "group_counts": {"train": 37, "val": 8, "test": 15},
                "checksums": {"split": split, "images": self.images.get(options.model, "5a1e")},
            },
        )
        macro = {"precision": 0.1, "recall": 0.2, "f1": 0.3}
        _json(
            run.metrics,
            {
                "scores": {"macro": macro},
                "model": {"parameters": 1234567},
                "seconds": 60.0,
                "versions": {"rsattn": "0.9.0", "scipy": "1.2", "python": "3.12.1"},
                "device": "CPU, 2 threads (x86_64)",
            },
        )
        _json(run.config, {**options.__dict__})
        run.report.write_text("")


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def made(out: Path, numbers: Sequence[int], train: Training | None = None, **options: Any) -> Comparison:
    """The summary of runs of vit and resvit."""
    entrants = [Entrant(one.label, replace(one.options, **options)) for one in (PLAIN, OTHER)]
    runs = runs_of(entrants, numbers, out)
    for run in runs:
        (train or Training())(run.options, Console(file=io.StringIO()))
    return summary(runs)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison with two seeds and patients, one of which has images of several classes."""
    out = tmp_path_factory.mktemp("compared")
    shared = {"groups": "patients.csv", "augment": "flip", "dropout": 0.0, "keep": "last", "patience": 2}
    entrants = [Entrant(one.label, replace(one.options, **shared)) for one in (PLAIN, OTHER)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rsattn.finetune.compare.save_vector", save_vector)
        assert compare(entrants, range(2), out, Console(file=io.StringIO()), Training(mixed=1)) == 0
    return out


def of_text(out: Path) -> str:
    return " ".join(Page(out / "comparison.html").text.split())


def read(out: Path, label: str, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labels (as numbers), probabilities and groups of a run."""
    rows = list(csv.DictReader((out / "runs" / label / name / "predictions.csv").open()))
    labels = np.array([CLASSES.index(row["label"]) for row in rows])
    probabilities = np.array([[float(row[f"p_{one}"]) for one in CLASSES] for row in rows])
    return labels, probabilities, np.array([row["group"] for row in rows])


def area(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean of the one-vs-rest scores, whose probabilities are rounded in the file."""
    return float(np.mean([roc_auc_score(labels == index, probabilities[:, index]) for index in range(3)]))


def test_the_auroc_of_seeds_is_averaged_and_differences_are_paired(tmp_path: Path) -> None:
    comparison = made(tmp_path, range(2))

    areas = {
        label: [area(*read(tmp_path, label, f"seed-{seed}")[:2]) for seed in range(2)] for label in ("vit", "resvit")
    }

    for result in comparison.results:
        assert result.auroc is not None
        assert result.auroc.mean == pytest.approx(np.mean(areas[result.label]))
        low, high = result.auroc.interval
        assert low < result.auroc.mean < high
        assert result.f1 == 0.3
    (pair,) = comparison.pairs
    assert pair.auroc is not None
    assert pair.auroc.mean == pytest.approx(np.mean(areas["resvit"]) - np.mean(areas["vit"]))
    low, high = pair.auroc.interval
    assert 0 < low < pair.auroc.mean < high
    assert comparison.folds is None
    assert [result.fold_auroc for result in comparison.results] == [None, None]
    assert "Forman" not in " ".join(sentences(comparison))


def test_the_images_of_all_folds_are_taken_together(tmp_path: Path) -> None:
    comparison = made(tmp_path, range(3), folds=3)

    assert (comparison.folds, comparison.images, comparison.seeds) == (3, 180, [0, 1, 2])
    config = json.loads((tmp_path / "runs" / "vit" / "fold-2" / "config.json").read_text())
    assert (config["folds"], config["fold"], config["seed"]) == (3, 2, 2)
    accuracies = {}
    for result in comparison.results:
        every = [read(tmp_path, result.label, f"fold-{fold}") for fold in range(3)]
        labels, probabilities = (np.concatenate([one[i] for one in every]) for i in (0, 1))
        predicted = probabilities.argmax(1)
        assert result.mean == pytest.approx(accuracy_score(labels, predicted))
        assert result.auroc is not None
        assert result.auroc.mean == pytest.approx(area(labels, probabilities))
        assert result.fold_auroc == pytest.approx(np.mean([area(*one[:2]) for one in every]))
        assert result.fold_auroc != result.auroc.mean
        assert f"{result.label} {result.fold_auroc:.3f}" in next(
            one for one in sentences(comparison) if "Forman" in one
        )
        scores = [score(labels, predicted, average="macro") for score in (precision_score, recall_score, f1_score)]
        assert [result.precision, result.recall, result.f1] == pytest.approx(scores)
        accuracies[result.label] = [accuracy_score(one[0], one[1].argmax(1)) for one in every]
        assert list(result.accuracies.values()) == pytest.approx(accuracies[result.label])
        assert result.sd == pytest.approx(np.std(accuracies[result.label], ddof=1))
        assert "fold" not in result.options
    difference = comparison.pairs[0].difference
    gain = np.array(accuracies["resvit"]) - accuracies["vit"]
    assert (difference.wins, difference.losses) == ((gain > 0).sum(), (gain < 0).sum())


def test_the_page_of_folds_says_fold(tmp_path: Path) -> None:
    entrants = [Entrant(one.label, replace(one.options, folds=2)) for one in (PLAIN, OTHER)]
    compare(entrants, range(2), tmp_path, Console(file=io.StringIO()), Training())

    text = of_text(tmp_path)

    assert "Tested on 120 images in 30 groups, each once, in 2 folds." in text
    assert "The folds share training images, so the intervals describe the choice of images" in text
    assert "Over 2 folds, resvit was better in" in text
    assert not re.search(r"(?<!\.)\bseed", text.partition("Models and settings")[0])  # .seeds is a style
    assert "trained only" not in text


def test_without_an_auroc_in_each_fold_there_is_no_mean_of_them(tmp_path: Path) -> None:
    comparison = made(tmp_path, range(2), folds=2)
    plain, other = comparison.results
    one_class = replace(comparison, results=[replace(plain, fold_auroc=None), replace(other, fold_auroc=None)])

    (said,) = (one for one in sentences(one_class) if "Forman" in one)
    assert said.endswith("2010).")
    assert "auroc_mean_of_folds" not in as_csv(one_class)
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert [float(row["auroc_mean_of_folds"]) for row in rows] == [plain.fold_auroc, other.fold_auroc]


def test_always_answering_is_that_of_all_folds(tmp_path: Path) -> None:
    """Each fold has its own most frequent class: the mean of their shares would be larger."""
    comparison = made(tmp_path, range(3), Training(mixed=2), folds=3)

    labels = np.concatenate([read(tmp_path, "vit", f"fold-{fold}")[0] for fold in range(3)])
    share = np.bincount(labels).max() / len(labels)
    assert np.mean([split.majority for split in comparison.test_splits.values()]) == pytest.approx(share)
    assert any(f"is right for {100 * share:.1f} % of them" in said for said in sentences(comparison))


@pytest.mark.parametrize("folds", [None, 2])
def test_scores_by_patient_are_those_of_mean_probabilities(tmp_path: Path, folds: int | None) -> None:
    comparison = made(tmp_path, range(2), Training(mixed=1), folds=folds, groups="patients.csv")

    scored = {}
    for result in comparison.results:
        labels, values, by_run = [], [], []
        for number in range(2):
            label, probabilities, groups = read(tmp_path, result.label, f"{'fold' if folds else 'seed'}-{number}")
            for name in dict.fromkeys(groups):
                if len(set(label[groups == name])) == 1:
                    labels.append(label[groups == name][0])
                    values.append(probabilities[groups == name].mean(0))
                    by_run.append(number)
        label, value, run = np.array(labels), np.array(values), np.array(by_run)
        parts = [run >= 0] if folds else [run == 0, run == 1]
        accuracy = np.mean([accuracy_score(label[part], value[part].argmax(1)) for part in parts])
        auroc = np.mean([area(label[part], value[part]) for part in parts])
        by_group = result.by_group
        assert by_group is not None
        assert by_group.auroc is not None
        assert (by_group.groups, by_group.left_out) == (28, 2)
        assert by_group.accuracy.mean == pytest.approx(accuracy)
        assert by_group.auroc.mean == pytest.approx(auroc)
        scored[result.label] = accuracy, auroc
    difference = comparison.pairs[0].by_group
    assert difference is not None
    assert difference.auroc is not None
    gain = np.subtract(scored["resvit"], scored["vit"])
    assert (difference.accuracy.mean, difference.auroc.mean) == pytest.approx(tuple(gain))
    assert 0 < difference.accuracy.p < 1


def test_p_values_by_patient_are_adjusted_for_the_number_of_models(tmp_path: Path) -> None:
    again = replace(OTHER, label="again")
    entrants = [replace(one, options=replace(one.options, groups="patients.csv")) for one in (PLAIN, OTHER, again)]
    runs = runs_of(entrants, range(2), tmp_path)
    for run in runs:
        Training()(run.options, Console(file=io.StringIO()))
    comparison = summary(runs)

    differences = [pair.by_group for pair in comparison.pairs if pair.by_group]
    assert len(differences) == 2
    for one in differences:
        assert 0 < one.accuracy.p < 0.5
        assert one.adjusted_p == 2 * one.accuracy.p  # the two are the same model
    said = [one for one in sentences(comparison) if one.startswith("By group")]
    assert len(said) == 2
    assert all(f"; p {p_value(differences[0].adjusted_p)} adjusted for 2 comparisons)" in one for one in said)
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert [float(row["group_p_adjusted"]) for row in rows[1:]] == [one.adjusted_p for one in differences]
    assert all("p, adjusted" in row for row in group_rows(comparison)[1])


def test_the_scores_by_patient_are_on_the_page(written: Path) -> None:
    text = of_text(written)
    (pair,) = found(written)["pairs"]

    assert "Results by group" in text
    assert "2 groups have images of several classes and are left out." in text
    assert f"By group, resvit compared with vit: {points(pair['by_group']['accuracy']['mean'])} percentage" in text
    assert f"Difference in AUROC: {signed(pair['by_group']['auroc']['mean'])} (95 % interval" in text


@pytest.mark.parametrize("groups", [None, "phash"])
def test_groups_that_are_no_patients_have_no_scores(tmp_path: Path, groups: str | None) -> None:
    comparison = made(tmp_path, [0], groups=groups)

    assert comparison.results[0].by_group is None
    assert comparison.pairs[0].by_group is None


def test_without_patients_of_one_class_there_are_no_scores_by_group(tmp_path: Path) -> None:
    assert made(tmp_path, [0], Training(mixed=15), groups="patients.csv").results[0].by_group is None


def test_the_checksums_are_told(written: Path) -> None:
    comparison = found(written)

    assert comparison["images_checksum"] == "5a1e"
    splits = [split["checksum"] for split in comparison["test_splits"].values()]
    assert splits == [hashlib.sha256(seed).hexdigest() for seed in (b"0", b"1")]
    assert all(checksum in of_text(written) for checksum in ("5a1e", *splits))


def test_runs_on_other_images_or_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="resvit, seed 0, was not trained on the same data as vit, seed 0: "):
        made(tmp_path / "images", [0], Training(images={"resvit": "07he"}))
    made(tmp_path / "splits", [0, 1])
    data = tmp_path / "splits" / "runs" / "resvit" / "seed-1" / "data.json"
    content = json.loads(data.read_text())
    _json(data, {**content, "checksums": {**content["checksums"], "split": "07he"}})
    with pytest.raises(CommandError, match="resvit, seed 1, was not trained on the same data as vit, seed 1: "):
        compare([PLAIN, OTHER], [0, 1], tmp_path / "splits", Console(file=io.StringIO()), Training())


def test_runs_of_earlier_versions_have_no_checksums(tmp_path: Path) -> None:
    made(tmp_path, [0])
    for data in tmp_path.rglob("data.json"):
        data.unlink()

    assert summary(runs_of([PLAIN, OTHER], [0], tmp_path)).images_checksum is None


def test_the_csv_has_the_numbers(written: Path) -> None:
    comparison = found(written)

    vit, resvit = csv.DictReader((written / "comparison.csv").open())

    assert (vit["model"], vit["runs"], vit["parameters"]) == ("vit", "2", "1234567")
    assert vit["accuracy_difference"] == vit["p"] == vit["group_p"] == ""
    (pair,) = comparison["pairs"]
    result = comparison["results"][1]
    assert float(resvit["accuracy"]) == result["mean"]
    assert float(resvit["auroc_high"]) == result["auroc"]["interval"][1]
    assert float(resvit["accuracy_difference_low"]) == pair["difference"]["interval"][0]
    assert float(resvit["auroc_difference"]) == pair["auroc"]["mean"]
    assert float(resvit["p_adjusted"]) == pair["adjusted_p"]
    assert float(resvit["group_accuracy"]) == result["by_group"]["accuracy"]["mean"]
    assert float(resvit["group_auroc_difference_low"]) == pair["by_group"]["auroc"]["interval"][0]


def test_a_name_in_the_csv_is_no_formula(tmp_path: Path) -> None:
    comparison = made(tmp_path, [0])
    named = replace(comparison, results=[replace(comparison.results[0], label="=vit")])

    assert next(csv.DictReader(io.StringIO(as_csv(named))))["model"] == "'=vit"


def test_the_tex_is_a_booktabs_tabular_with_escaped_names(tmp_path: Path) -> None:
    comparison = made(tmp_path, [0, 1])
    name = "res_vit:norm=a&b%{$#}~^\\"
    results = [comparison.results[0], replace(comparison.results[1], label=name)]

    text = as_tex(replace(comparison, results=results, pairs=[replace(comparison.pairs[0], label=name)]))

    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 2
    columns = 0
    for line in text.splitlines():
        if line.startswith(r"\begin"):
            columns = len(line.removeprefix(r"\begin{tabular}").strip("{}"))
        if line.endswith(r" \\"):
            assert line.count(" & ") == columns - 1
    escaped_name = r"res\_vit:norm=a\&b\%\{\$\#\}\textasciitilde{}\textasciicircum{}\textbackslash{} & "
    assert text.count(f"\n{escaped_name}") == 2
    assert text.isascii()
    assert escaped('a<"b"\n') == r"a$<$\char34{}b\char34{}\textbackslash{}n"


def test_the_tex_has_the_tables_of_the_page(written: Path) -> None:
    text = (written / "comparison.tex").read_text()

    assert text.count(r"\begin{tabular}") == 4
    result = found(written)["results"][0]
    assert text.count("& difference in accuracy & ") == text.count("& difference in AUROC & ") == 2
    assert f"{result['auroc']['mean']:.3f} & {' to '.join(f'{end:.3f}' for end in result['auroc']['interval'])}" in text


def test_the_plot_is_there_as_text_for_a_paper(written: Path) -> None:
    svg, pdf = (written / "comparison.svg").read_text(), (written / "comparison.pdf").read_bytes()

    assert ">resvit</text>" in svg
    assert b"/CIDFontType2" in pdf  # Type 42; matplotlib's default is Type 3
    assert b"/Type3" not in pdf


def test_a_vector_figure_is_the_same_each_time(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    for name in ("one", "two"):
        figure = Figure()
        figure.add_subplot().plot([1, 2])
        save_vector(figure, tmp_path / name)

    for kind in ("svg", "pdf"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()


def test_the_methods_say_what_the_runs_recorded(written: Path) -> None:
    methods = found(written)["methods"]

    for part in (
        "Two models were trained: vit (a vision transformer (Dosovitskiy et al., 2021) with 4 layers",
        "; 1,234,567 parameters) and resvit (a vision",
        "For resvit: the attention layers used residual self-attention (Sharma and Verma, 2023): the output of the "
        "head with the largest matrix 1-norm",
        "All initial weights were random.",
        "The data set comprised 240 images of 3 classes (a: 80, b: 100, c: 60). Excluded: 1 further file that could "
        "not be read. The images were grouped by a file of identifiers, and a group was never divided between splits.",
        "Each model was trained twice, with the seeds 0 and 1; with one seed, all models had the same splits.",
        "The splits of a run were training (150 images of 37 groups), validation (30 images of 8 groups) and test (60 "
        "images of 15 groups).",
        "resized to 32 x 32 pixels by bicubic interpolation",
        "augmented at random, each change with a probability of 1/2: rotation up to 15 degrees",
        "Training used AdamW (Loshchilov and Hutter, 2019), a batch size of 8 per device, a weight decay of 0.05",
        "rose linearly to 0.001 in the first 5% of the steps and fell to 0 along a cosine",
        "Training ran for at most 3 epochs. Training stopped early once the validation loss had not improved for 2 "
        "epochs. The weights after the last epoch were tested.",
        "from 2000 resamples of the groups of test images (percentiles; for AUROC, on the logit scale), averaged over "
        "seeds.",
        "permutation test that flips the signs of the differences of groups.",
        "Scores by group use the mean of the predicted probabilities",
        "The software was rsattn 0.9.0, SciPy 1.2 and Python 3.12.1, on CPU, 2 threads (x86_64).",
        "The SHA-256 checksum of the images was 5a1e.\n\nReferences\n",
        "\nLoshchilov I, Hutter F. Decoupled",
    ):
        assert part in methods
    assert not any(word in methods for word in ("label smoothing", "ropout", "Holm", "fold", "pretrained weights"))
    page = (written / "comparison.html").read_text()
    assert f'<pre class="methods">{methods}</pre>' in page.replace("&#39;", "'")


def test_the_methods_say_what_differs_between_models(tmp_path: Path) -> None:
    first = replace(OPTIONS, folds=2, window=(40.0, 400.0))
    rate = replace(OTHER.options, learning_rate=1e-4, init_values=0.0, weights="pretrained", folds=2, keep="last")
    rate = replace(rate, restarts=(1,), window=first.window)
    entrants = [Entrant("vit", first), Entrant("resvit", rate), Entrant("other", rate)]
    runs = runs_of(entrants, range(2), tmp_path)
    for run in runs:
        Training()(run.options, Console(file=io.StringIO()))

    methods = paragraph(summary(runs), runs)

    for part in (
        "For resvit and other: the initial weights were pretrained (B_16_imagenet1k of pytorch_pretrained_vit)",
        "For vit: the learning rate rose linearly to 0.001 ",
        "For resvit and other: the learning rate rose linearly to 0.0001 ",
        "a gate for each channel that started at 0 (Touvron et al., 2021)",
        "compared by 2-fold cross-validation",
        "For vit: the weights of the epoch with the lowest validation loss were tested. For resvit and other: the "
        "weights after the last epoch were tested.",
        "the cycle was repeated after epoch 1.",
        "Values from -160 to 240 became gray levels from 0 to 255. Images were converted to RGB",
        "with Holm's correction for 2 comparisons.",
        "the test images of all folds were taken together.",
    ):
        assert part in methods
    assert "stopped early" not in methods


def test_the_methods_do_not_take_a_rate_that_was_tried_for_the_one_that_was_chosen(tmp_path: Path) -> None:
    settings = {"lr_auto": True, "freeze": True, "class_weights": True}
    entrants = [Entrant("vit", replace(OPTIONS, **settings)), Entrant("resvit", replace(OTHER.options, **settings))]
    runs = runs_of(entrants, range(1), tmp_path)
    for run in runs:
        Training()(run.options, Console(file=io.StringIO()))
    methods = paragraph(summary(runs), runs)
    assert "rose linearly to the rate of 3 around 0.001 that had the lowest validation loss in the first" in methods
    assert "classes weighted by the inverse of their number of training images" in methods
    assert "Only the classifier was trained." in methods
