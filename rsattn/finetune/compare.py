"""Train several models with several seeds on the same images, and summarize the finished runs."""

from __future__ import annotations

import re
import statistics as stdlib_statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..cli.command import CommandError, finished_file, shown, writing
from ..cli.drawing import save_vector
from ..cli.outputs import locked, output_folder
from ..cli.terminal import duration, in_bytes
from .compared_run import Run
from .comparison import Comparison, Failure
from .comparison_files import write_tables
from .comparison_methods import paragraph
from .comparison_page import dot_plot, write_page
from .comparison_sentences import sentences
from .comparison_table import table
from .contents import write_json
from .devices import device_in_words
from .options import Options, differences, hint_at_gates, read_options
from .references import with_references
from .run_folder import RunFolder
from .summarizing import images_checksum, summary
from .wording import counted

Train = Callable[[Options, Console], None]


@dataclass(frozen=True)
class Entrant:
    """One of the models to compare.

    Attributes:
        label: its name in tables.
        options: its options; each run sets `seed` and `out`, and with folds also `fold`.
    """

    label: str
    options: Options


def _train(options: Options, console: Console) -> None:
    from .running import run  # Lightning takes seconds to import

    run(options, console)


def compare(
    entrants: Sequence[Entrant], seeds: Sequence[int], out: Path, console: Console, train: Train = _train
) -> int:
    """Train every entrant with every seed, and write the files comparison.* into `out`.

    The runs are in out/runs/<label>/seed-<seed>. They go seed by seed, so that an early report compares all models on
    the same seeds. Where the options have `folds`, the seeds are also the folds, and the folders are named fold-<fold>.
    The same call continues after an interruption: it keeps finished runs and resumes the others. Each run rewrites the
    files. The first entrant is the baseline.

    Args:
        entrants: models with different labels, and with the same `data`, `groups`, `split_seed` and `folds`.
        seeds: the seeds of each entrant.
        out: a new folder, or that of an earlier comparison.
        console: prints progress, the table and the sentences.
        train: starts or resumes one run. Default: `rsattn.finetune.running.run`.

    Returns:
        The exit code: 0 when all runs are finished, 1 when some failed with a `CommandError`. The terminal and both
        files name the failed runs; the other runs continue.

    Raises:
        CommandError: no run finished, options differ that have to be equal, or the disk has too little free space, if
            possible before any training; or another process works in `out`.
        KeyboardInterrupt: Ctrl-C; the message says how to continue.
    """
    _check_entrants(entrants)
    _refuse_without_runs(out)
    with output_folder(out), locked(out):
        return _compare(entrants, seeds, out, console, train)


def _compare(entrants: Sequence[Entrant], seeds: Sequence[int], out: Path, console: Console, train: Train) -> int:
    runs = [_adopted(run) for run in runs_of(entrants, seeds, out)]
    images_checksum([run for run in runs if run.finished])
    expected = _expected(runs, out, console)
    failures: list[Failure] = []
    for number, run in enumerate(runs, 1):
        what = f"run {number} of {len(runs)}: {run.name}"
        if run.finished:
            console.print(Text(f"{what}: already finished"))
            continue
        console.print(Text(f"{what}{_time_left(runs, runs[number - 1 :], expected)}", style="bold"))
        try:
            train(run.options, console)
        except CommandError as error:
            console.print(Text(shown(f"{run.name} failed: {error}"), style="red"))
            failures.append(Failure(run.label, run.seed, str(error)))
        except KeyboardInterrupt:
            raise KeyboardInterrupt("finished runs and epochs are kept; repeat the command to continue") from None
        ends_a_seed = number % len(entrants) == 0
        if any(run.finished for run in runs) and number < len(runs):
            comparison = _written(runs, failures, out)
            if ends_a_seed:
                console.print(table(comparison))
    return _tell(runs, failures, out, console)


def _tell(runs: Sequence[Run], failures: Sequence[Failure], out: Path, console: Console) -> int:
    if not any(run.finished for run in runs):
        raise CommandError(f"none of the {len(runs)} runs finished; the first one failed: {failures[0].why}")
    comparison = _written(runs, failures, out)
    save_vector(dot_plot(comparison), out / "comparison")
    console.print(table(comparison))
    for sentence in sentences(comparison):
        console.print(Text(sentence))
    for failed in failures:
        console.print(
            Text(shown(f"failed: {failed.label}, {comparison.repeats} {failed.seed}: {failed.why}"), style="red")
        )
    console.print(Text(shown(f"report: {out / 'comparison.html'}")))
    return 1 if failures else 0


def _written(runs: Sequence[Run], failures: Sequence[Failure], out: Path) -> Comparison:
    comparison = summary(runs, failures)
    text = paragraph(comparison, [run for run in runs if run.finished])
    comparison = replace(comparison, methods=with_references(text))
    write_json(out / "comparison.json", asdict(comparison))
    page = out / "comparison.html"
    with finished_file(page) as partial, writing(page):
        write_page(partial, comparison)
    write_tables(out / "comparison", comparison)
    return comparison


def runs_of(entrants: Sequence[Entrant], seeds: Sequence[int], out: Path) -> list[Run]:
    """The runs, seed by seed, with the entrants in their order."""
    runs = []
    for seed in seeds:
        for entrant in entrants:
            fold = None if entrant.options.folds is None else seed
            name = f"seed-{seed}" if fold is None else f"fold-{fold}"
            folder = out / "runs" / _folder_name(entrant.label) / name
            options = replace(entrant.options, seed=seed, fold=fold, out=str(folder))
            runs.append(Run(entrant.label, seed, RunFolder(folder), options))
    return runs


def _folder_name(label: str) -> str:
    """The label with only the characters that every file system allows."""
    return re.sub(r"[^\w.=+-]+", "-", label).strip(".-") or "model"


def _check_entrants(entrants: Sequence[Entrant]) -> None:
    names = [_folder_name(entrant.label).casefold() for entrant in entrants]
    if twice := next((e.label for e, name in zip(entrants, names) if names.count(name) > 1), None):
        raise CommandError(f"two of the models are named {twice!r}, or nearly so: name each model once")
    for name in ("data", "groups", "split_seed", "folds"):
        if len({getattr(entrant.options, name) for entrant in entrants}) > 1:
            raise CommandError(f"the models differ in {name}: all models need the same images")


def _refuse_without_runs(out: Path) -> None:
    if not (out / "runs").exists() and any((out / name).exists() for name in ("comparison.json", "comparison.html")):
        raise CommandError(f"{out} holds a comparison but not its runs: choose another --out")


def _adopted(run: Run) -> Run:
    """The run as in its folder, after a check that its options are those of this call; `data` is spelled as there.

    A run with other options that trained nothing is begun anew.
    """
    if not run.folder.config.exists():
        return run
    earlier = read_options(run.folder)
    changed = differences(earlier, run.options)
    if changed and run.folder.untrained:
        return run
    if changed and run.options.data and not differences(replace(earlier, data=run.options.data), run.options):
        raise CommandError(
            f"{run.folder.path} holds a run with other options ({changed}): if its images were moved, first say so "
            f"with `rsattn finetune --resume {run.folder.path} --data {run.options.data}`, and likewise for each run "
            "beside it, or choose another --out"
        )
    if changed:
        raise CommandError(
            f"{run.folder.path} holds a run with other options ({changed}): give the same options as before, "
            f"{hint_at_gates(earlier, run.options)}or choose another --out"
        )
    return replace(run, options=replace(run.options, data=earlier.data))


def _expected(runs: Sequence[Run], out: Path, console: Console) -> dict[str, float]:
    """Print the time and disk space that the unfinished runs take; label -> the seconds of a run, where known.

    Raises:
        CommandError: the disk has too little free space.
    """
    from .disk import refuse_full_disk
    from .estimating import estimates

    ahead = [run for run in runs if not run.finished]
    models = {run.label: run.options for run in ahead}
    if not models:
        return {}
    known = {label: one for label, one in zip(models, estimates(list(models.values()), console)) if one is not None}
    new = [known[run.label] for run in ahead if run.label in known and not run.folder.last.exists()]
    disk = sum(one.kept for one in new) + max((one.largest - one.kept for one in new), default=0)
    refuse_full_disk(out, disk, f"the {counted(len(ahead), 'run')} need")
    if len(known) == len(models):
        seconds = duration(sum(known[run.label].seconds for run in ahead))
        runs_ahead = f"{counted(len(ahead), 'run')}{' left' if len(ahead) < len(runs) else ''}"
        console.print(f"{runs_ahead}: about {seconds} on {device_in_words()}; at least {in_bytes(disk)} of disk")
    return {label: one.seconds for label, one in known.items()}


def _time_left(runs: Sequence[Run], ahead: Sequence[Run], expected: Mapping[str, float]) -> str:
    """Text such as ", about 12 min left", from finished runs, or else from `expected`; empty where neither is known."""
    taken: dict[str, list[float]] = {}
    for run in runs:
        if run.finished:
            taken.setdefault(run.label, []).append(run.metrics["seconds"])
    means = {**expected, **{label: stdlib_statistics.fmean(seconds) for label, seconds in taken.items()}}
    if not means:
        return ""
    unknown = stdlib_statistics.fmean(means.values())
    return f", about {duration(sum(means.get(run.label, unknown) for run in ahead if not run.finished))} left"
