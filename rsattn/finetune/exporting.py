"""`rsattn export`: the tested model of a run as one file for other programs, checked before it is kept."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..cli.command import CommandError, finished_file, shown
from ..cli.terminal import in_bytes
from .export_check import check
from .history import refuse_unfinished
from .loading import load
from .metadata import metadata_of
from .program import INPUT, OUTPUT, read_program, write_program
from .run_folder import RunFolder

NAMES = {"onnx": "model.onnx", "torch": "model.pt2"}
RUNS_IT = {"onnx": "onnxruntime", "torch": "torch.export.load"}


def export(run: Path, kind: str, out: Path | None, console: Console) -> Path:
    """Write the tested model of a run as ONNX or as a program of torch.export, and check the file.

    The model in the file takes images (B, 3, S, S) float32 in RGB from 0 to 1 and returns probabilities (B, classes)
    float32, for any B. It needs no rsattn. Its metadata are those of `metadata_of`, with the input and the output.

    Args:
        run: the folder of a finished run.
        kind: "onnx" or "torch".
        out: a new file. Default: export/model.onnx or export/model.pt2 in the folder of the run.
        console: shows the progress and the result.

    Returns:
        The path of the file.

    Raises:
        CommandError: the run is not finished, the model cannot be exported, the file exists or cannot be written, or
            the model in it differs from the run's; nothing is left then.
    """
    folder = RunFolder(run)
    path = out or folder.exports / NAMES[kind]
    refuse_unfinished(folder)
    if path.is_dir():
        raise CommandError(f"--out {path} is a folder: give the name of a new file, such as {path / NAMES[kind]}")
    if path.exists():
        raise CommandError(f"{path} exists already and is not overwritten: move it, or choose another --out")
    trained = load(run, device="cpu")
    side, classes = trained.image_size, len(trained.classes)
    takes = f"float32 (batch, 3, {side}, {side}), RGB from 0 to 1"
    returns = f"float32 (batch, {classes})"
    with finished_file(path) as partial:
        with console.status(f"exporting {shown(trained.label)}, about a minute"):
            write_program(trained, kind, partial, {**metadata_of(trained), INPUT: takes, OUTPUT: returns})
        checked = check(read_program(partial, kind), trained, folder, console)
        size = in_bytes(partial.stat().st_size)
    console.print(f"{INPUT}: {takes}\n{OUTPUT}: {returns}", markup=False)
    console.print(checked, markup=False)
    console.print(f"exported: {shown(str(path))} ({size}; runs with {RUNS_IT[kind]}, without rsattn)", markup=False)
    return path
