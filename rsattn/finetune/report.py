"""report.html of a run: a self-contained page, made from the files in the run's folder."""

from __future__ import annotations

import base64
import csv
import functools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.command import CommandError, finished_file, shown, why, writing
from ..cli.drawing import save_vector
from .augmentation import described
from .cells import from_cell
from .checklist import AUTHORS, answers, write_checklist
from .contents import read_json
from .figures import (
    MOST_NAMED,
    MOST_WITH_COUNTS,
    MOST_WITH_NUMBERS,
    confusion_matrix,
    gate_sizes,
    has_numbers,
    training_curves,
)
from .methods import Facts
from .mistakes import SHOWN_MISTAKES, confidence_order
from .options import Options, as_options
from .probability_figures import reliability, roc_and_pr
from .run_folder import NO_COPY, RunFolder
from .skipped import residual_is_missing_in
from .thresholds import RULES
from .wording import counted, some

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "report.html.j2"
SHOWN_CONFUSIONS = 10
SHOWN_CLASSES = 10  # of those with the lowest recall, where there are many classes
SPLITS = {"train": "training", "val": "validation", "test": "test", "left-out": "left out"}
RESIDUAL_FIGURES, PLAIN_FIGURES = ("head_choices", "norms", "looks"), ("samples",)
SCORES = {
    "images": int,
    "accuracy": float,
    "balanced_accuracy": object,  # None in a test on images of one class, as are precision and F1
    "majority": {"class": str, "accuracy": float},
    "never_predicted": [str],
    "macro": {"precision": object, "recall": float, "f1": object},
    "per_class": {str: {}},
    "confusion": [[int]],
    "absent": [str],
}
METRICS = {
    "scores": SCORES,
    "intervals": {"method": str, "groups": int, "accuracy": [float], "per_class": {str: {}}},
    "calibration": {
        "ece": float,
        "brier": float,
        "temperature": float,
        "bins": [{"range": [float], "confidence": float, "accuracy": float, "images": int, "interval": [float]}],
        "before": {"ece": float, "brier": float, "log_loss": float, "bins": [{"confidence": float}]},
    },
    "thresholds": [{"class": str, "rule": str, "threshold": float}],
    "tested_epoch": int,
    "epochs": int,
    "stopped": str,
    "model": {"name": str, "label": str, "parameters": int, "trained_parameters": int},
    "seed": int,
    "split_seed": int,
    "seconds": float,
    "versions": {str: str},
    "device": str,
    "options": {},
}
ROC_PR = {str: {"roc": {str: [float]}, "pr": {str: [float]}, "prevalence": float}}
HEADS = {str: [int]}
DATA = {
    "root": str,
    "classes": [str],
    "notes": [str],
    "damaged": [{"file": str, "why": str}],
    "groups": str,
    "counts": {str: {str: int}},
    "group_counts": {str: int},
}
RATES = {"tried": [{"rate": float, "val_loss": float}], "chosen": float}
CURVES = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
PNG = b"\x89PNG\r\n\x1a\n"


def write_report(run: Path) -> Path:
    """Draw the figures of `RunFolder.figures` that are the report's own; write report.html and checklist.csv.

    Args:
        run: the folder of a tested run, with the files of `RunFolder`.

    Returns:
        The path of the report.

    Raises:
        CommandError: files are missing or damaged (the message names them), or a file cannot be written.
    """
    folder = RunFolder(run)
    names = RESIDUAL_FIGURES if folder.heads.exists() else PLAIN_FIGURES
    figures = [folder.figures / f"{name}.png" for name in names]
    _refuse_missing(folder, [folder.metrics, folder.data, folder.predictions, folder.roc_pr, *figures])
    page = _page(folder, figures)
    with finished_file(folder.report) as partial, writing(folder.report):
        partial.write_text(page, encoding="utf-8")
    return folder.report


def _page(folder: RunFolder, figures: Sequence[Path]) -> str:
    metrics, data = read_json(folder.metrics, METRICS, _again(folder)), _data(folder)
    if list(metrics["scores"]["per_class"]) != data["classes"]:
        raise _damaged(folder, folder.metrics, f"its classes are not those of {folder.data.name}")
    external = metrics.get("external")  # of `rsattn test`, whose folder has no training
    mistakes = _mistakes(folder, data["classes"])
    scores = metrics["scores"]
    result = accuracy_result(scores, metrics["intervals"])
    roc_pr = read_json(folder.roc_pr, ROC_PR, _again(folder))
    drawn = {
        "confusion": confusion_matrix(scores["confusion"], data["classes"]),
        "reliability": reliability(metrics["calibration"]),
    }
    if external is None:
        _refuse_missing(folder, [folder.history])
        drawn["curves"] = training_curves(_history(folder, metrics["epochs"]), metrics["tested_epoch"])
    if roc_pr:
        drawn["roc_pr"] = roc_and_pr(roc_pr, data["classes"])
    gates = None if external else metrics.get("gates")  # runs of versions without gates lack it
    if gates:
        drawn["gates"] = gate_sizes(gates["blocks"])
    heads = read_json(folder.heads, HEADS, _again(folder)) if folder.heads.exists() else {}
    windows = [sum(chosen) > scores["images"] for chosen in heads.values()]  # a window chooses a head of its own
    for name, figure in drawn.items():
        _save(figure, folder.figures / f"{name}.png")
    if (shown_mistakes := folder.figures / "mistakes.png").exists():
        figures = [*figures, shown_mistakes]
    images = [*figures, *(folder.figures / f"{name}.png" for name in drawn)]
    notes = list(_notes_on_data(metrics, data) if external else limits(metrics, data))
    answered = answers(Facts(_options(folder, metrics), data, metrics), notes)
    asked = [] if external else AUTHORS
    write_checklist(folder.checklist, answered, asked)
    return _rendered(
        metrics=metrics,
        data=data,
        scores=scores,
        gates=gates,
        external=external,
        rates=read_json(folder.rates, RATES, _again(folder)) if folder.rates.exists() else None,
        result=result,
        intervals=metrics["intervals"],
        calibration=metrics["calibration"],
        thresholds=metrics["thresholds"],
        rules=RULES,
        by_group=metrics["by_group"],
        methods=metrics.get("methods"),
        answered=answered,
        asked=asked,
        cautions=cautions(scores, result),
        augmentation=described(metrics["options"].get("augment", "none")),
        notes=notes,
        mistakes=mistakes[:SHOWN_MISTAKES],
        all_mistakes=len(mistakes),
        numbers={name: number for number, name in enumerate(data["classes"], 1)},
        numbered=has_numbers(data["classes"]),
        most_with_counts=MOST_WITH_COUNTS,
        most_named=MOST_NAMED,
        lowest=_lowest(scores, data["classes"]),
        confusions=_confusions(scores["confusion"], data["classes"]),
        windows=any(windows),
        windows_at_the_end=any(windows[-1:]),
        images={path.stem: _data_uri(folder, path) for path in images},
        vectors=sorted(drawn),
        splits={split: words for split, words in SPLITS.items() if split in data["counts"]},
        run=shlex.quote(shown(str(folder.path))),
    )


def _options(folder: RunFolder, metrics: Mapping[str, Any]) -> Options:
    try:
        return as_options(metrics["options"])
    except ValueError as error:
        raise _damaged(folder, folder.metrics, str(error)) from None


def _rendered(**content: Any) -> str:
    return _template().render(**content)


@functools.lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = {
        "percent": _percent,
        "number": _number,
        "between": _between,
        "signed": _signed,
        "setting": setting,
        "duration": _duration,
    }
    environment.filters.update(formats, shown=shown)
    return environment.get_template(TEMPLATE)


def cautions(scores: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """Sentences on a model that is not useful, because a constant answer is as good.

    Args:
        scores: as from `scores.scores`.
        result: as from `accuracy_result`.
    """
    per_class, majority = scores["per_class"], scores["majority"]
    if sum(one["images"] > 0 for one in per_class.values()) < 2:
        return []
    predicted = [name for name, column in zip(per_class, zip(*scores["confusion"])) if any(column)]
    if len(predicted) == 1:
        only = shown(predicted[0])
        return [
            f"Every test image was classified as {only}, so the model does not tell the classes apart: its accuracy is "
            f"the share of {only} among the test images."
        ]
    said = []
    if never := scores["never_predicted"]:
        said.append(f"No test image was classified as {some([shown(name) for name in never])}.")
    share = 100 * majority["accuracy"]
    if result["low"] <= share:
        is_not = "worse than" if result["high"] < share else "not shown to be better than"
        said.append(
            f"The model is {is_not} always answering {shown(majority['class'])}, which is right for {share:.1f} % of "
            f"the test images: the 95 % interval of its accuracy is {result['low']:.1f} to {result['high']:.1f} %."
        )
    return said


def accuracy_result(scores: Mapping[str, Any], intervals: Mapping[str, Any]) -> dict[str, Any]:
    """The number of correct predictions, with the interval of the accuracy in percent, and how it was computed.

    Args:
        scores: as from `scores.scores`.
        intervals: as from `intervals.intervals`.
    """
    right = sum(row[index] for index, row in enumerate(scores["confusion"]))
    if intervals["groups"] < scores["images"]:
        groups = counted(intervals["groups"], "group")
        method = f"It is a Wilson interval with the design effect of the {groups} of the test split"
    else:
        method = "It is a Wilson interval, which takes the test images as independent"
    low, high = intervals["accuracy"]
    return {"right": right, "low": 100 * low, "high": 100 * high, "method": method}


def limits(metrics: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on what limits the result."""
    epochs, options = metrics["epochs"], metrics["options"]
    if metrics["stopped"] == "early stopping":
        yield (
            f"Training stopped early, after epoch {epochs} of at most {options['epochs']}: the validation loss had not "
            f"improved for {counted(options['patience'], 'epoch')}."
        )
    if restarts := options.get("restarts"):
        yield (
            f"The learning rate rose and fell again after epoch {', '.join(map(str, restarts))}, as it does when "
            "epochs are added to a finished run. If the test result was known before, choosing more epochs by it makes "
            "the result look better than it is."
        )
    if missing := residual_is_missing_in(metrics["model"].get("without_residual", {})):
        yield f"There is {missing}."
    if options["freeze"] and options["weights"] == "none":
        yield "Only the classifier was trained: the features are those of random weights."
    gates = metrics.get("gates")
    if gates and not any(block["largest"] for block in gates["blocks"]):
        reason = " (--freeze trains only the classifier)" if gates["rate"] is None else ""
        yield f"The gates stayed at 0{reason}: the residual adds nothing, and the model equals the plain one."
    if options["groups"] is None:
        yield (
            "The images were not grouped. If several images show the same patient, slide or photograph, some may be in "
            "the training set and others in the test set, and the accuracy on new images will be lower. --groups "
            "keeps them together: --groups patient (for DICOM files), --groups folder (for class/patient/image), or a "
            "CSV file with a group for each patient."
        )
    if options["groups"] == "phash":
        yield (
            "The groups are images that look alike, not patients: two slices of one patient can look different, and "
            "then be in different splits. If several images show one patient, give --groups patient (for DICOM "
            "files), --groups folder (for class/patient/image), or a CSV file with a group for each patient."
        )
    yield from _notes_on_data(metrics, data)


def _notes_on_data(metrics: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    if left_out := sum(data["counts"].get("left-out", {}).values()):
        yield (
            f"Left out of training: {counted(left_out, 'image')}, because images of the same group are in the test "
            "or validation split."
        )
    if absent := metrics["scores"]["absent"]:
        yield f"No test images of {some(list(map(shown, absent)))}: the averages are over the other classes."
    for note in data["notes"]:
        yield f"{note[:1].upper()}{note[1:]}{'' if note.endswith('.') else '.'}"


def _mistakes(folder: RunFolder, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The wrong predictions, the most confident first."""
    rows = _table(folder, folder.predictions, ["file", "label", "predicted", *(f"p_{name}" for name in classes)])
    wrong = [row for row in rows if row["label"] != row["predicted"]]
    try:
        mistakes = [{**row, "probability": float(row[f"p_{row['predicted']}"])} for row in wrong]
    except (KeyError, ValueError) as error:
        raise _damaged(folder, folder.predictions, why(error)) from None
    return sorted(mistakes, key=lambda mistake: confidence_order(mistake["probability"], mistake["file"]))


def _lowest(scores: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """The classes with the lowest recall, where there are many; else none."""
    recalls = {name: scores["per_class"][name].get("recall") for name in classes}
    tested = [name for name in classes if recalls[name] is not None]
    return sorted(tested, key=recalls.__getitem__)[:SHOWN_CLASSES] if len(classes) > MOST_WITH_NUMBERS else []


def _confusions(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent confusions of two classes, where the figure has no numbers of images; else none."""
    if len(classes) <= MOST_WITH_COUNTS:
        return []
    pairs: list[dict[str, Any]] = [
        {"label": classes[row], "predicted": classes[column], "images": images, "share": images / sum(of_class)}
        for row, of_class in enumerate(confusion)
        for column, images in enumerate(of_class)
        if row != column and images
    ]
    return sorted(pairs, key=lambda pair: (-pair["images"], -pair["share"]))[:SHOWN_CONFUSIONS]


def _history(folder: RunFolder, epochs: int) -> list[dict[str, float]]:
    rows = _table(folder, folder.history, CURVES)
    if len(rows) != epochs:
        raise _damaged(folder, folder.history, f"it has {len(rows)} epochs, but metrics.json has {epochs}")
    try:
        return [{name: float(row[name]) for name in CURVES} for row in rows]
    except ValueError as error:
        raise _damaged(folder, folder.history, why(error)) from None


def _data(folder: RunFolder) -> dict[str, Any]:
    data = read_json(folder.data, DATA, NO_COPY)
    counts, classes = data["counts"], data["classes"]
    if (
        "test" not in counts
        or counts.keys() != data["group_counts"].keys()
        or any(list(of_split) != classes for of_split in counts.values())
    ):
        raise CommandError(f"{folder.data} is damaged: expected a count for each class in each split; {NO_COPY}")
    return data


def _table(folder: RunFolder, path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, csv.Error) as error:
        raise _damaged(folder, path, why(error)) from None
    if not rows or any(row.get(column) is None for row in rows for column in columns):
        raise _damaged(folder, path, f"expected rows with the columns {', '.join(columns)}")
    return [{column: from_cell(row[column]) for column in columns} for row in rows]


def _data_uri(folder: RunFolder, path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(folder, path, why(error)) from None
    if not content.startswith(PNG):
        raise _damaged(folder, path, "it is not a PNG file")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _save(figure: Figure, path: Path) -> None:
    """Write the PNG file that the page embeds, and beside it SVG and PDF for a paper."""
    with finished_file(path) as partial, writing(path):
        figure.savefig(partial, format="png", dpi=160)
    figure.set_layout_engine("none")  # keep the layout, which takes as long as the drawing
    save_vector(figure, path.with_suffix(""))


def _refuse_missing(folder: RunFolder, paths: Sequence[Path]) -> None:
    if missing := [str(path.relative_to(folder.path)) for path in paths if not path.is_file()]:
        raise CommandError(f"{folder.path} lacks {', '.join(missing)}, which the report needs: {_again(folder)}")


def _damaged(folder: RunFolder, path: Path, reason: str) -> CommandError:
    return CommandError(f"{path} is damaged: {reason}; {_again(folder)}")


def _again(folder: RunFolder) -> str:
    return f"`rsattn finetune --resume {folder.path}` finishes the run and writes these files again"


def _percent(share: float | None) -> str:
    return "\u2013" if share is None else f"{100 * share:.1f} %"


def _between(interval: Sequence[float] | None) -> str:
    """An interval of shares, in percent, such as "81.2 to 93.0"."""
    return "" if interval is None else " to ".join(f"{100 * end:.1f}" for end in interval)


def _signed(share: float | None) -> str:
    """A difference of shares in percentage points."""
    return "\u2013" if share is None else f"{100 * share:+.1f}".replace("-", "\u2212")


def _number(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.3f}"


def setting(value: object) -> str:
    """The value of an option as text."""
    if value is None:
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value))
    return shown(str(value))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
