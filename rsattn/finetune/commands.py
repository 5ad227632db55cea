"""The commands `rsattn finetune`, `compare`, `predict`, `test` and `export`, from their parsed command lines."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from ..cli.command import CommandError, require
from .arguments import parsed
from .chosen_options import entrants_of, loggers_given, options_of
from .effects import refuse_options_without_effect
from .loggers import refuse_missing_loggers
from .machine import refuse_incomplete_launcher, refuse_machine, refuse_precision
from .options import Options, ascending, read_options

SEEDS = 5  # of a comparison
PACKAGES = (
    "imagehash",
    "jinja2",
    "lightning",
    "matplotlib",
    "PIL",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorboard",
    "torchmetrics",
)
PREDICT_PACKAGES = ("matplotlib", "PIL", "rich", "safetensors")  # importing Lightning takes seconds
EXPORT_PACKAGES = ("onnx", "onnxruntime", "onnxscript")  # for --format onnx


def finetune(given: argparse.Namespace) -> int:
    """`rsattn finetune`."""
    refuse_incomplete_launcher()
    require("finetune command", "finetune", *PACKAGES)
    from ..cli.terminal import Terminal
    from .running import run

    console = Terminal()
    changed = None
    if given.resume is not None:
        options, changed = _resumed(given)
    else:
        if given.moved is not None:
            raise CommandError(
                "--data says where the images of an earlier run are now, with --resume RUN; a new run takes its folder "
                f"without it: rsattn finetune {given.moved}"
            )
        seed = given.seed if given.seed is not None else given.fold or 0
        which = f"fold-{given.fold}-of-{given.folds}" if given.folds else str(seed)
        out = given.out or Path("rsattn-runs", f"{_name_of(given.data)}-{_safe(given.model)}-{which}")
        if given.config is not None and given.config.resolve().parent == out.resolve():
            raise CommandError(f"{given.config} is the config.json of the run in {out}: give another folder with --out")
        options = options_of(given, given.model, seed, out)
        refuse_options_without_effect(given, [options])
        refuse_precision(options)
    _check(options)
    _check_fold(options)
    refuse_machine(options)
    run(options, console, changed)
    return 0


def _resumed(given: argparse.Namespace) -> tuple[Options, Options | None]:
    """The options of a run to resume, with the machine of this command line; and those to continue with, if others."""
    from .continuing import with_more_epochs, with_moved_data
    from .run_folder import RunFolder

    machine = {name: getattr(given, name) for name in ("devices", "strategy", "nodes", "workers")}
    if given.logger is not None:
        machine["logger"] = loggers_given(given)
    for name, default in vars(parsed([])).items():
        if name not in (*machine, "resume", "moved", "epochs", "logger") and getattr(given, name) != default:
            option = "DATA" if name == "data" else f"--{name.replace('_', '-')}"
            raise CommandError(
                f"{option} cannot be given with --resume: the run in {given.resume} continues with its own options; "
                "only --epochs (more of them), --data (images that moved), --devices, --strategy, --nodes, "
                "--workers and --logger may be given"
            )
    folder = RunFolder(given.resume)
    options = changed = replace(read_options(folder), out=str(given.resume), **machine)
    if given.moved is not None:
        changed = with_moved_data(folder, changed, given.moved)
    if given.epochs is not None:
        changed = with_more_epochs(folder, changed, given.epochs)
    return options, changed if changed != options else None


def compare(given: argparse.Namespace) -> int:
    """`rsattn compare`."""
    refuse_incomplete_launcher()
    require("compare command", "finetune", *PACKAGES)
    from ..cli.terminal import Terminal
    from .compare import Entrant
    from .compare import compare as compare_all

    if given.devices not in ("auto", "1") or given.nodes > 1 or "WORLD_SIZE" in os.environ:
        raise CommandError("compare trains on one device: use `rsattn finetune` for each run on several devices")
    if given.seeds and given.folds:
        raise CommandError(
            "--seeds and --folds cannot be given together: --seeds draws a test split for each seed, --folds tests "
            "every image once"
        )
    given.devices = "1"
    entrants = [Entrant(label, options) for label, options in entrants_of(given)]
    for entrant in entrants:
        _check(entrant.options)
    refuse_options_without_effect(given, [entrant.options for entrant in entrants])
    for entrant in entrants:
        refuse_precision(entrant.options)
    refuse_machine(entrants[0].options)  # the same for all
    console = Terminal()
    out = given.out or Path("rsattn-comparisons", _name_of(given.data))
    return compare_all(entrants, range(given.folds or given.seeds or SEEDS), out, console)


def predict(given: argparse.Namespace) -> int:
    """`rsattn predict`."""
    refuse_incomplete_launcher()
    require("predict command", "finetune", *PREDICT_PACKAGES)
    from ..cli.terminal import Terminal
    from .prediction import predict as predict_all

    console = Terminal()
    out = given.out or Path("rsattn-predictions", f"{_name_of(given.checkpoint)}-{_name_of(given.images[0])}")
    predict_all(given.checkpoint, given.images, out, console, overlays=not given.no_overlays)
    return 0


def export(given: argparse.Namespace) -> int:
    """`rsattn export`."""
    refuse_incomplete_launcher()
    require("export command", "finetune", *PREDICT_PACKAGES)
    if given.format == "onnx":
        require("export command", "export", *EXPORT_PACKAGES)
    from ..cli.terminal import Terminal
    from .exporting import export as export_model

    export_model(given.run, given.format, given.out, Terminal())
    return 0


def test(given: argparse.Namespace) -> int:
    """`rsattn test`."""
    refuse_incomplete_launcher()
    require("test command", "finetune", *PACKAGES)
    from ..cli.terminal import Terminal
    from .external import score_outside

    out = given.out or Path("rsattn-tests", f"{_name_of(given.run)}-{_name_of(given.images)}")
    score_outside(given.run, given.images, dict(given.names), given.groups, out, Terminal())
    return 0


def _check(options: Options) -> None:
    """Refuse invalid combinations, and loggers that are not installed, before anything is read."""
    refuse_missing_loggers(options)
    restarts = options.restarts or ()
    if restarts and options.patience:
        raise CommandError(
            "--patience cannot be given with --restarts: the validation loss rises at first after a restart, which "
            "would stop the run"
        )
    if restarts and not (ascending(restarts) and restarts[-1] < options.epochs):
        raise CommandError(
            f"--restarts {' '.join(map(str, restarts))}: expected ascending epochs below --epochs {options.epochs}"
        )
    if options.head_first and options.full_width:
        raise CommandError("--head-first needs trained features; with --full-width the attention is newly initialized")
    if options.full_width and options.merge == "slot":
        raise CommandError(
            "--merge slot needs heads that divide the channels among them; use --merge tile with --full-width"
        )


def _check_fold(options: Options) -> None:
    if (options.folds is None) != (options.fold is None):
        given, lacks = ("--fold", "--folds K") if options.folds is None else ("--folds", "--fold I, the fold to test")
        raise CommandError(f"{given} needs {lacks}; rsattn compare --folds K tests all folds")
    if options.folds is not None and options.fold is not None and options.fold >= options.folds:
        raise CommandError(f"--fold {options.fold}: expected a fold from 0 to {options.folds - 1}")


def _name_of(path: str | Path | None) -> str:
    """A name for a default folder: that of a folder or of a file without its extension; digits for None."""
    if path is None:
        return "digits"
    place = Path(os.path.abspath(path))  # so that . has a name
    return _safe(place.name if os.path.isdir(place) else place.stem)


def _safe(name: str) -> str:
    """The name with only the characters that every file system allows, not hidden, and not too long."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name).strip(".-")[:60] or "data"
