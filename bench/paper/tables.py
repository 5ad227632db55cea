"""The tables of README.md, from the result files alone."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsattn.finetune.statistics import Predictions, accuracy_interval, holm, paired_difference

from .experiment import FROZEN, GATED, NETS, PLAIN, RESULTS, SCRATCH, TUNED, UNGATED, VARIANTS

README = Path(__file__).with_name("README.md")
# The row of the convolutional networks' table that they are compared with: the plain ViT of the fine-tuned study.
VIT = "fine-tuned ViT"
MARK = re.compile(r"(<!-- (summary|tables): start -->\n).*?(<!-- \2: end -->)", re.DOTALL)
SETS = {"mri": "Brain MRI", "blood": "Blood cells"}
# The summary's columns, each with the n of its every n-th image.
SUMMARY = {"mri": 1, "blood": 5}

Key = tuple[str, str, str, str, int]
Content = dict[str, Any]


def read(folder: Path = RESULTS) -> dict[Key, dict[str, list[Content]]]:
    """(set, study, split, GPU or "", n for every n-th image) -> variant -> its runs in the order of their seeds.

    Other devices round differently, so their runs, such as those in results/mri-h100, get their own table.
    """
    found: dict[Key, dict[str, list[Content]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*/*.json")):
        content = json.loads(path.read_text())
        run = content["run"]
        device = content["machine"]["device"]
        every = run["study"]["every"] if run["set"] == "blood" else 1
        key = run["set"], run["study"]["name"], run["split"], "" if device.startswith("CPU") else device, every
        found[key][run["variant"]["name"]].append(content)
    for variants in found.values():
        for runs in variants.values():
            runs.sort(key=lambda content: content["run"]["seed"])
    return found


def tables(folder: Path = RESULTS) -> str:
    """All tables as Markdown."""
    found = read(folder)
    lines = []
    for key, variants in _in_order(found):
        lines += [*_table(key, variants), *_beside_the_cpu(variants, found.get((*key[:3], "", key[4]), {}))]
        for name, runs in variants.items():
            if name in ("plain", *(net.name for net in NETS)):
                lines += _missed_by_all(name, runs)
    return "\n".join(lines)


def summary(folder: Path = RESULTS) -> str:
    """The norms with and without a gate, fine-tuned on the leak-free splits, in one table for both sets."""
    found = read(folder)
    sets = {name: found[name, TUNED.name, "leak-free", "", every] for name, every in SUMMARY.items()}
    titles = [f"{SETS[name]}: accuracy, % | minus plain, points" for name in sets]
    lines = [f"|  | {' | '.join(titles)} |", f"|{'---|' * (1 + 2 * len(sets))}"]
    for label in (variant.name for variant in (PLAIN, *UNGATED, *GATED)):
        row = [label]
        for variants in sets.values():
            runs = variants[label]
            row += [f"{100 * statistics.mean(map(_accuracy, runs)):.1f}"]
            if label == PLAIN.name:
                row += [""]
            else:
                difference = _difference(variants[PLAIN.name], runs)
                row += [f"{100 * difference.mean:+.1f} ({_interval(difference.interval, '+')})"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def write() -> None:
    """Write the summary and the tables into README.md, each between its two marks."""
    made = {"summary": summary(), "tables": tables()}
    README.write_text(MARK.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n{found[3]}", README.read_text()))


def _in_order(found: dict[Key, dict[str, list[Content]]]) -> Iterator[tuple[Key, dict[str, list[Content]]]]:
    """Both sets, studies in the order of the grid; the nets, one variant each, in one table beside the plain ViT."""
    studies = (TUNED.name, FROZEN.name, SCRATCH.name)
    sources = sorted({key[3:] for key in found})
    for name in SETS:
        for study in studies:
            for split in ("leak-free", "authors"):
                for source in sources:
                    if (name, study, split, *source) in found:
                        yield (name, study, split, *source), found[name, study, split, *source]
        for source in sources:
            nets = {
                study: runs["plain"]
                for (of, study, split, *on), runs in sorted(found.items())
                if (of, tuple(on)) == (name, source) and study not in studies and split == "leak-free"
            }
            vit = found.get((name, TUNED.name, "leak-free", *source), {}).get("plain")
            if nets:
                yield (name, "convolutional networks", "leak-free", *source), {VIT: vit, **nets} if vit else nets


def _table(key: Key, variants: dict[str, list[Content]]) -> Iterator[str]:
    name, study, split, device, every = key
    images, groups = _sizes(variants)
    on = f", on one {device}" if device else ""
    thinned = f", one image of {every}" if every > 1 else ""
    yield f"**{SETS[name]}, {study}, {split} split{thinned}{on}**: {images}; {groups}."
    yield ""
    titles = ["", "seeds", "accuracy, %", "95 % interval", "macro F1"]
    baseline = next((label for label in ("plain", VIT) if label in variants), None)
    if baseline:
        titles += [f"minus {baseline}, points", "95 % interval", "p", "Holm's p"]
    if gated := any(run.get("gates") for runs in variants.values() for run in runs):
        titles += ["validation loss", "rms of the gates"]
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    differences = (
        {label: _difference(variants[baseline], runs) for label, runs in variants.items() if label != baseline}
        if baseline
        else {}
    )
    adjusted = dict(zip(differences, holm([difference.p for difference in differences.values()])))
    for label, runs in _plain_first(variants):
        row = [label, str(len(runs)), _spread([_accuracy(run) for run in runs])]
        row += [_interval(accuracy_interval([_predictions(run) for run in runs]))]
        row += [f"{statistics.mean(_macro_f1(run) for run in runs):.3f}"]
        if label in differences:
            difference = differences[label]
            row += [f"{100 * difference.mean:+.1f}", _interval(difference.interval, "+")]
            row += [_p(difference.p), _p(adjusted[label])]
        elif baseline:
            row += [""] * 4
        if gated:
            row += [_mean([run["val_loss"] for run in runs]), _gates(runs)]
        yield f"| {' | '.join(row)} |"
    yield ""


def _beside_the_cpu(here: dict[str, list[Content]], cpu: dict[str, list[Content]]) -> Iterator[str]:
    """On a GPU, how far its rounding moves the plain model's seeds."""
    before = {run["run"]["seed"]: _accuracy(run) for run in cpu.get("plain", [])}
    seeds = [run for run in here.get("plain", []) if run["run"]["seed"] in before]
    moved = [100 * (_accuracy(run) - before[run["run"]["seed"]]) for run in seeds]
    if here is not cpu and len(moved) > 1:
        each, spread = ", ".join(f"{points:+.1f}" for points in moved), statistics.stdev(moved)
        yield f"The plain model's seeds here, minus the same on the CPU: {each} points (± {spread:.1f})."
        yield ""


def _missed_by_all(name: str, runs: Sequence[Content]) -> Iterator[str]:
    """The groups that no seed recognizes, where all seeds have the same test split."""
    if len(runs) < 2 or len({tuple(run["tested"]["picture"]) for run in runs}) > 1:
        return
    groups = np.array(runs[0]["tested"]["group"])
    right = np.array([run["tested"]["correct"] for run in runs], dtype=bool)
    missed = [group for group in np.unique(groups) if (right[:, groups == group].mean(1) < 0.5).all()]
    if not missed:
        return
    missed.sort(key=lambda group: -(groups == group).sum())
    each = ", ".join(f"{group} ({100 * np.mean(groups == group):.1f} %)" for group in missed[:5])
    more = f" and {len(missed) - 5} more" if len(missed) > 5 else ""
    everywhere, there = 100 * (~right).mean(), 100 * (~right & np.isin(groups, missed)).mean()
    yield (
        f"There are {len(missed)} of {len(np.unique(groups))} groups of which *{name}* misses more than half of the "
        f"images with every seed: {each}{more}; the percentages are shares of the test images. These groups account "
        f"for {there:.1f} of the {everywhere:.1f} points that it misses."
    )
    yield ""


def _plain_first(variants: dict[str, list[Content]]) -> list[tuple[str, list[Content]]]:
    order = [variant.name for variant in VARIANTS]
    return sorted(variants.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))


def _difference(plain: Sequence[Content], other: Sequence[Content]) -> Any:
    """Over the seeds that both have."""
    by_seed = {run["run"]["seed"]: run for run in plain}
    pairs = [(by_seed[run["run"]["seed"]], run) for run in other if run["run"]["seed"] in by_seed]
    return paired_difference([_predictions(a) for a, _ in pairs], [_predictions(b) for _, b in pairs])


def _predictions(content: Content) -> Predictions:
    tested = content["tested"]
    names = np.array([str(image) for image in tested["picture"]])
    return Predictions(names, np.array(tested["group"]), np.array(tested["correct"], dtype=bool))


def _accuracy(content: Content) -> float:
    return float(np.trace(content["confusion"]) / np.sum(content["confusion"]))


def _macro_f1(content: Content) -> float:
    confusion = np.array(content["confusion"], dtype=float)
    right = np.diag(confusion)
    both = confusion.sum(0) + confusion.sum(1)
    return float(np.mean(np.divide(2 * right, both, out=np.zeros_like(right), where=both > 0)))


def _sizes(variants: dict[str, list[Content]]) -> tuple[str, str]:
    runs = [run for of in variants.values() for run in of]

    def sizes(kind: str) -> str:
        splits = {split: sorted({run[kind][split] for run in runs}) for split in ("train", "val", "test")}
        return ", ".join(
            f"{split} {'-'.join(str(n) for n in dict.fromkeys((v[0], v[-1])))}" for split, v in splits.items()
        )

    return f"images {sizes('pictures')}", f"groups {sizes('groups')}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def _mean(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def _gates(runs: Sequence[Content]) -> str:
    """Over channels, blocks and runs."""
    squares = [rms**2 for run in runs for rms in run["gates"]]
    return f"{statistics.mean(squares) ** 0.5:.2g}" if squares else ""


def _interval(interval: tuple[float, float], sign: str = "") -> str:
    return " to ".join(f"{100 * end:{sign}.1f}" for end in interval)
