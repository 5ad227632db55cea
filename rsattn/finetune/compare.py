"""Several models, several seeds, the same images: training all of them, and summing up what is there so far."""

from __future__ import annotations

import json
import re
import statistics as stdlib_statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from ..cli.command import CommandError, finished_file, shown
from .comparison_report import Comparison, Failure, Pair, Result, TestSplit, sentences, table, write_page
from .contents import read_json
from .gates import frozen_at_0
from .options import Options, hint_at_gates, read_options
from .run_folder import RunFolder
from .statistics import Predictions, accuracy_interval, holm, paired_difference, read_predictions

Train = Callable[[Options, Console], None]

# What a run may have been told differently without being another run.
WHERE_AND_HOW_FAST = {"out", "data", "workers", "devices", "strategy", "nodes"}

METRICS = {
    "scores": {"macro": {"precision": float, "recall": float, "f1": float}},
    "model": {"parameters": int},
    "seconds": float,
}


@dataclass(frozen=True)
class Entrant:
    """One of the models that are compared.

    Attributes:
        label: what it is called in tables.
        options: its settings; `seed` and `out` are set for each run.
    """

    label: str
    options: Options


@dataclass(frozen=True)
class Run:
    """One training: an entrant with a seed, in a folder of its own."""

    label: str
    seed: int
    folder: RunFolder
    options: Options

    @property
    def finished(self) -> bool:
        return self.folder.metrics.exists()  # what a run writes last but its report

    @property
    def metrics(self) -> dict[str, Any]:
        again = "delete it, and the same command tests that run again"
        return read_json(self.folder.metrics, METRICS, again)


def _train(options: Options, console: Console) -> None:
    from .running import run  # Lightning takes seconds to import

    run(options, console)


def compare(
    entrants: Sequence[Entrant], seeds: Sequence[int], out: Path, console: Console, train: Train = _train
) -> int:
    """Train every entrant with every seed, and write comparison.json and comparison.html into `out`.

    Runs are in out/runs/<label>/seed-<seed>, seed after seed, so that an early look compares like with like. What is
    finished is not repeated and what was begun goes on, so the same call continues after a kill. Both files are
    written anew after every run. The first entrant is what the others are held against.

    Args:
        entrants: with the same `data`, `groups` and `split_seed`, and labels that differ.
        seeds: of each entrant.
        out: a folder, new or of an earlier comparison.
        console: for progress, the table and the sentences.
        train: does one run, or goes on with it. Default: `rsattn.finetune.running.run`.

    Returns:
        The exit code: 0 when all runs are finished, 1 when some failed with a `CommandError`; these are named in the
        terminal and in both files, and do not hold up the others.

    Raises:
        CommandError: no run finished, or something differs that must not; before anything is trained where possible.
        KeyboardInterrupt: Ctrl-C; it says how to go on.
    """
    _check_entrants(entrants)
    _check_folder(out)
    runs = [_adopted(run) for run in _runs(entrants, seeds, out)]
    failures: list[Failure] = []
    for number, run in enumerate(runs, 1):
        what = f"run {number} of {len(runs)}: {run.label}, seed {run.seed}"
        if run.finished:
            console.print(Text(f"{what}: finished before"))
            continue
        console.print(Text(f"{what}{_time_left(runs, runs[number - 1 :])}", style="bold"))
        try:
            train(run.options, console)
        except CommandError as error:
            console.print(Text(shown(f"{run.label}, seed {run.seed} failed: {error}"), style="red"))
            failures.append(Failure(run.label, run.seed, str(error)))
        except KeyboardInterrupt:
            raise KeyboardInterrupt("finished runs and epochs are kept; the same command goes on") from None
        ends_a_seed = number % len(entrants) == 0
        if any(run.finished for run in runs) and number < len(runs):
            comparison = _written(runs, failures, out)
            if ends_a_seed:
                console.print(table(comparison))
    return _tell(runs, failures, out, console)


def _tell(runs: Sequence[Run], failures: Sequence[Failure], out: Path, console: Console) -> int:
    if not any(run.finished for run in runs):
        raise CommandError(f"none of the {len(runs)} runs finished; the first one's fault: {failures[0].why}")
    comparison = _written(runs, failures, out)
    console.print(table(comparison))
    for sentence in sentences(comparison):
        console.print(Text(sentence))
    for failed in failures:
        console.print(Text(shown(f"failed: {failed.label}, seed {failed.seed}: {failed.why}"), style="red"))
    console.print(Text(shown(f"report: {out / 'comparison.html'}")))
    return 1 if failures else 0


def summary(runs: Sequence[Run], failures: Sequence[Failure] = ()) -> Comparison:
    """What the finished ones of `runs` show so far; the first run's label is the reference.

    Raises:
        CommandError: a finished run's files are damaged, or the runs of a seed were tested on different images.
    """
    finished = [run for run in runs if run.finished]
    predictions = {(run.label, run.seed): read_predictions(run.folder.predictions) for run in finished}
    labels = list(dict.fromkeys(run.label for run in finished))
    results = [_result([run for run in finished if run.label == label], predictions) for label in labels]
    splits = {seed: one for (_, seed), one in predictions.items()}
    return Comparison(
        seeds=list(dict.fromkeys(run.seed for run in runs)),
        runs=len(runs),
        finished=len(finished),
        images=len(np.unique(np.concatenate([split.file for split in splits.values()]))),
        groups=len(np.unique(np.concatenate([split.group for split in splits.values()]))),
        test_splits={seed: TestSplit(len(split.file), len(np.unique(split.group))) for seed, split in splits.items()},
        results=results,
        pairs=_pairs(runs[0].label, labels, predictions),
        failures=list(failures),
    )


def _result(runs: Sequence[Run], predictions: dict[tuple[str, int], Predictions]) -> Result:
    """One entrant's runs together."""
    own = [predictions[run.label, run.seed] for run in runs]
    metrics = [run.metrics for run in runs]
    accuracies = [one.accuracy for one in own]
    mean = stdlib_statistics.fmean
    return Result(
        label=runs[0].label,
        accuracies={run.seed: accuracy for run, accuracy in zip(runs, accuracies)},
        mean=mean(accuracies),
        sd=stdlib_statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        interval=accuracy_interval(own),
        precision=mean(one["scores"]["macro"]["precision"] for one in metrics),
        recall=mean(one["scores"]["macro"]["recall"] for one in metrics),
        f1=mean(one["scores"]["macro"]["f1"] for one in metrics),
        parameters=metrics[0]["model"]["parameters"],
        seconds=mean(one["seconds"] for one in metrics),
        options={name: value for name, value in asdict(runs[0].options).items() if name not in ("seed", "out")},
        gates_frozen_at_0=all(frozen_at_0(one.get("gates")) for one in metrics),
    )


def _pairs(reference: str, labels: Iterable[str], predictions: dict[tuple[str, int], Predictions]) -> list[Pair]:
    """Everyone against the reference, over the seeds that both have finished."""
    differences = {}
    for label in labels:
        shared = [seed for name, seed in predictions if name == label and (reference, seed) in predictions]
        if label != reference and shared:
            plain, other = ([predictions[name, seed] for seed in shared] for name in (reference, label))
            try:
                differences[label] = paired_difference(plain, other)
            except CommandError as error:
                raise CommandError(f"{label} and {reference}: {error}") from None
    adjusted = holm([difference.p for difference in differences.values()])
    return [Pair(label, reference, found, p) for (label, found), p in zip(differences.items(), adjusted)]


def _written(runs: Sequence[Run], failures: Sequence[Failure], out: Path) -> Comparison:
    comparison = summary(runs, failures)
    with finished_file(out / "comparison.json") as partial:
        partial.write_text(json.dumps(asdict(comparison), indent=1) + "\n")
    with finished_file(out / "comparison.html") as partial:
        write_page(partial, comparison)
    return comparison


def _runs(entrants: Sequence[Entrant], seeds: Sequence[int], out: Path) -> list[Run]:
    """Seed by seed, the entrants in their order."""
    runs = []
    for seed in seeds:
        for entrant in entrants:
            folder = out / "runs" / _folder_name(entrant.label) / f"seed-{seed}"
            options = replace(entrant.options, seed=seed, out=str(folder))
            runs.append(Run(entrant.label, seed, RunFolder(folder), options))
    return runs


def _folder_name(label: str) -> str:
    """The label with letters, digits and a few signs that every file system takes."""
    return re.sub(r"[^\w.=+-]+", "-", label).strip(".-") or "model"


def _check_entrants(entrants: Sequence[Entrant]) -> None:
    names = [_folder_name(entrant.label).casefold() for entrant in entrants]
    if twice := next((e.label for e, name in zip(entrants, names) if names.count(name) > 1), None):
        raise CommandError(f"two of the models are called {twice!r}, or nearly so: every model is compared once")
    for name in ("data", "groups", "split_seed"):
        if len({getattr(entrant.options, name) for entrant in entrants}) > 1:
            raise CommandError(f"the models differ in {name}: models are compared on the same images only")


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise CommandError(f"cannot write to {out}: it is not a folder")
    if not (out / "runs").exists() and any((out / name).exists() for name in ("comparison.json", "comparison.html")):
        raise CommandError(f"{out} holds a comparison but not its runs: choose another --out")


def _adopted(run: Run) -> Run:
    """The run as its folder has it: its options agree with what is asked, and `data` is spelled as it was then."""
    if not run.folder.config.exists():
        return run
    earlier, now = asdict(read_options(run.folder)), asdict(run.options)
    names = [name for name in now if name not in WHERE_AND_HOW_FAST and earlier.get(name) != now[name]]
    if _place(earlier.get("data")) != _place(run.options.data):
        names.insert(0, "data")
    if names:
        changed = ", ".join(f"{name} {earlier.get(name)!r}, now {now[name]!r}" for name in names)
        raise CommandError(
            f"{run.folder.path} holds a run with other settings ({changed}): ask for the same as then, "
            f"{hint_at_gates(earlier, run.options)}or choose another --out"
        )
    return replace(run, options=replace(run.options, data=earlier["data"]))


def _place(data: str | None) -> Path | None:
    return None if data is None else Path(data).resolve()


def _time_left(runs: Sequence[Run], ahead: Sequence[Run]) -> str:
    """ ", about 12 minutes left", from the runs that are finished; nothing where none is."""
    taken: dict[str, list[float]] = {}
    for run in runs:
        if run.finished:
            taken.setdefault(run.label, []).append(run.metrics["seconds"])
    if not taken:
        return ""
    means = {label: stdlib_statistics.fmean(seconds) for label, seconds in taken.items()}
    unknown = stdlib_statistics.fmean(means.values())
    left = sum(means.get(run.label, unknown) for run in ahead if not run.finished)
    if left < 90:
        return f", about {left:.0f} seconds left"
    return f", about {left / 60:.0f} minutes left" if left < 5400 else f", about {left / 3600:.1f} hours left"
