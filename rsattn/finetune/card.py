"""README.md in the folder of a run: a model card in the format of Hugging Face.

Source of the format: https://huggingface.co/docs/hub/model-cards, with `model-index` for the results.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..cli.command import finished_file, shown, writing
from .contents import read_json
from .metadata import NOTICE, PATHS, base_name, without_folders
from .options import DEFAULTS
from .report import DATA, METRICS, SPLITS, accuracy_result, cautions, limits
from .run_folder import NO_COPY, RunFolder

TEMPLATE = "card.md.j2"
TAGS = ("rsattn", "image-classification", "residual-self-attention", "vision-transformer", "biomedical", "research")
# Name in metrics.json -> type in model-index, and the name in words.
SCORES = {
    "accuracy": ("accuracy", "Accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy"),
    "macro_f1": ("f1", "Macro F1"),
    "auroc": ("roc_auc", "AUROC"),
}
OF_A_CLASS = {
    "recall": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "f1": "F1",
    "auroc": "AUROC",
}
EXTERNAL = {
    "tests": [{"root": str, "notes": [str], **{key: METRICS[key] for key in ("scores", "intervals", "calibration")}}]
}
RECIPE = (
    *("recipe", "weights", "freeze", "epochs", "batch_size", "learning_rate", "weight_decay", "layer_decay"),
    *("augment", "class_weights", "label_smoothing", "keep", "patience"),
    *("image_size", "resize", "window", "precision", "seed"),
)
ABSOLUTE = re.compile(r"(?:^|[\s\"'(>=])(?:/|~/|[A-Za-z]:[\\/]|\\\\)\S")
MARK = "<!-- rsattn wrote this card ({}) and writes it again after each test, unless it was edited. -->"


def write_card(folder: RunFolder, console: Console) -> None:
    """Write README.md of a tested run; one that somebody edited, or wrote, is kept, and a line says so.

    Its numbers are those of metrics.json and data.json. It names no folders of this machine.

    Raises:
        CommandError: one of these files is missing or damaged, or the card cannot be written.
    """
    path = folder.card
    if path.exists() and not _is_unedited(path):
        console.print(f"note: {shown(str(path))} was edited, so it stays as it is and may name old results")
        return
    text = _card(folder)
    with finished_file(path) as partial, writing(path):
        partial.write_text(f"{text}{MARK.format(_digest(text))}\n", encoding="utf-8")


def external_tests(folder: RunFolder) -> list[dict[str, Any]]:
    """The tests in external.json; none where there is no such file.

    Raises:
        CommandError: the file is damaged.
    """
    if not folder.external.exists():
        return []
    tests: list[dict[str, Any]] = read_json(folder.external, EXTERNAL, "delete it, and repeat `rsattn test`")["tests"]
    return tests


def _is_unedited(path: Path) -> bool:
    """Whether the last line names the digest of the lines above it."""
    text = path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    above, last = text[: text.rfind("\n") + 1], text[text.rfind("\n") + 1 :]
    return last == MARK.format(_digest(above))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _card(folder: RunFolder) -> str:
    metrics = read_json(folder.metrics, METRICS, f"`rsattn finetune --resume {folder.path}` writes it again")
    data = read_json(folder.data, DATA, NO_COPY)
    options, scores = metrics["options"], metrics["scores"]
    name = "scikit-learn's digits" if options["data"] is None else shown(base_name(data["root"]))
    result = accuracy_result(scores, metrics["intervals"])
    tests = external_tests(folder)
    name, *names = _distinct([name, *(shown(base_name(one["root"])) for one in tests)])
    known = [data["root"], *(one["root"] for one in tests), *(value for key in PATHS if (value := options[key]))]
    return _rendered(
        header=_header(metrics, [(name, metrics), *zip(names, tests)]),
        metrics=metrics,
        data=data,
        name=name,
        notice=NOTICE,
        results=list(_results(metrics)),
        of_a_class=OF_A_CLASS,
        of_classes=[_of_class(metrics, label) for label in data["classes"]],
        method=metrics["intervals"]["method"],
        groups=_first(_without_folders([data["groups"]], known)),
        recipe=without_folders({key: options.get(key, DEFAULTS.get(key)) for key in RECIPE}),
        limits=_without_folders([*cautions(scores, result), *limits(metrics, data)], known),
        tests=[
            {
                "name": called,
                "images": one["scores"]["images"],
                "groups": one["intervals"]["groups"],
                "results": list(_results(one)),
                "notes": _without_folders(one["notes"], known),
            }
            for called, one in zip(names, tests)
        ],
        splits={split: words for split, words in SPLITS.items() if split in data["counts"]},
        residual=options["model"] == "resvit" or options["patch"],
    )


def _rendered(**content: Any) -> str:
    return _template().render(**content)


@functools.lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(plain=_plain, number=_number, interval=_interval)
    return environment.get_template(TEMPLATE)


def _header(metrics: Mapping[str, Any], tests: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """YAML: what Hugging Face's hub reads.

    Args:
        tests: the name and the scores of each data set.
    """
    import yaml

    found = [
        [
            {"type": kind, "name": words, "value": value}
            for key, (kind, words) in SCORES.items()
            if (value := _score(test["scores"], key)) is not None
        ]
        for _, test in tests
    ]
    results = [
        {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {"type": _slug(name), "name": name, "split": "test"},
            "metrics": values,
        }
        for (name, _), values in zip(tests, found)
    ]
    header = {
        "library_name": "rsattn",
        "pipeline_tag": "image-classification",
        "tags": list(TAGS),
        "metrics": [one["type"] for one in found[0]],
        "model-index": [{"name": shown(metrics["model"]["label"]), "results": results}],
    }
    text: str = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return text


def _distinct(names: Sequence[str]) -> list[str]:
    """The names of folders, with a number after those that an earlier one has: the folders above them stay private."""
    seen = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name} ({number + 1})" if number else name for name, number in zip(names, seen)]


def _slug(name: str) -> str:
    """The name in the characters that the hub allows in that of a data set."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data"


def _score(scores: Mapping[str, Any], key: str) -> float | None:
    value: float | None = scores["macro"]["f1"] if key == "macro_f1" else scores.get(key)
    return value


def _results(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of the table of results: words, value and interval."""
    for key, (_, words) in SCORES.items():
        yield {
            "words": words,
            "value": _score(metrics["scores"], key),
            "interval": metrics["intervals"].get(key),
        }
    for key, words in (("ece", "Expected calibration error"), ("brier", "Brier score")):
        yield {"words": words, "value": metrics["calibration"][key], "interval": None}


def _of_class(metrics: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The scores of one class, each with its interval."""
    scores, intervals = metrics["scores"]["per_class"][label], metrics["intervals"]["per_class"].get(label, {})
    each = [{"value": scores.get(key), "interval": intervals.get(key)} for key in OF_A_CLASS]
    return {"label": label, "images": scores["images"], "scores": each}


def _without_folders(sentences: Iterable[str], known: Iterable[str]) -> list[str]:
    """The sentences with the last part of each known path; sentences with another absolute path are left out."""
    kept = []
    for sentence in sentences:
        for path in sorted(known, key=len, reverse=True):
            if "/" in path or "\\" in path:
                sentence = sentence.replace(shown(path), shown(base_name(path)))
        if not ABSOLUTE.search(sentence):
            kept.append(sentence)
    return kept


def _first(sentences: list[str]) -> str:
    return sentences[0] if sentences else "the groups come from a file"


def _plain(text: object) -> str:
    """Text that Markdown shows as it is, also in a table."""
    return re.sub(r"([\\`*\[\]<>|~]|\b_|_\b)", r"\\\1", shown(str(text)))


def _number(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.3f}"


def _interval(ends: Iterable[float] | None) -> str:
    return "\u2013" if ends is None else " to ".join(f"{end:.3f}" for end in ends)
