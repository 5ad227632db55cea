"""Checkpoints of `rsattn finetune`: what they hold in addition to Lightning's content, and checks when reading one."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..cli.command import CommandError, finished_file, writing
from ..cli.weights import STATE_DICT, is_state_dict, mismatches, read_weights
from .contents import fault
from .gates import gates_of
from .options import Options, as_options
from .weights_file import SUFFIX, read_described

KEY = "rsattn"
PREFIX = "model."  # of the names of the weights: the Lightning module holds the model under this name

COLUMNS = (
    *("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_f1"),
    *("learning_rate", "seconds"),
)
SHAPE = {
    "options": {},
    "classes": [str],
    "mean": [float],
    "std": [float],
    "history": [dict.fromkeys(COLUMNS, float)],
}
# What Lightning resumes from; where it is missing, Lightning silently starts from the beginning.
PROGRESS = {
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
    "loops": {"fit_loop": {"epoch_progress": {"current": {"completed": int}}}},
    "callbacks": {},
    "optimizer_states": [{"state": {}, "param_groups": [{}]}],
    "lr_schedulers": [{}],
}
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, per parameter
A_CHECKPOINT = "expected a checkpoint of `rsattn finetune`"
ANOTHER = "restore it from a copy, use another checkpoint, or train again"
# A run resumes only from its own last checkpoint.
AGAIN = "restore it from a copy, or train again in a new folder"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that passed all checks that do not need its model.

    Attributes:
        path: of the file.
        weights: by name in the model.
        options: the options of its run.
        classes: the class names in the order of the logits.
        mean, std: of the three channels, for normalization.
        history: a row with `COLUMNS` for each finished epoch.
        gates_at_start: the root mean square of every block's gate before it was trained.
        temperature: the logits are divided by it, see calibration.py; 1 where none was fitted.
    """

    path: Path
    weights: Mapping[str, Tensor]
    options: Options
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: list[dict[str, float]]
    gates_at_start: dict[str, float]
    temperature: float = 1.0


def remembered(options: Options, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """The content of a checkpoint in addition to the weights; plain values, so that loading them runs no code."""
    return {"options": asdict(options), "classes": list(classes), "mean": list(mean), "std": list(std)}


def is_checkpoint(content: object) -> bool:
    """Whether what `torch.load` read looks like a checkpoint of `rsattn finetune`, damaged or not."""
    return isinstance(content, Mapping) and KEY in content and "state_dict" in content


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file, or the content of a model.safetensors; that has no history.

    Raises:
        CommandError: the file cannot be read, or is no checkpoint.
    """
    return as_checkpoint(read_content(path, f"{A_CHECKPOINT}; {ANOTHER}"), path)


def read_content(path: Path, expected: str = STATE_DICT) -> object:
    """The content of a file of weights; for a model.safetensors, what a checkpoint of the same model holds.

    Args:
        expected: as in `read_weights`.

    Raises:
        CommandError: the file cannot be read, or is damaged.
    """
    weights = read_weights(path, expected=expected)
    if path.suffix != SUFFIX or not isinstance(weights, Mapping):
        return weights
    kept = read_described(path, ANOTHER)
    if kept is None:
        return weights
    return {KEY: kept, "state_dict": {f"{PREFIX}{name}": value for name, value in weights.items()}}


def read_last(path: Path) -> Checkpoint:
    """The checkpoint that a run resumes from. Its tensors stay in the file: use only their names and shapes.

    Raises:
        CommandError: the file cannot be read, is no checkpoint, or lacks what training resumes from.
    """
    content = _last(path)
    checkpoint = as_checkpoint(content, path, AGAIN)
    if clause := fault(content, PROGRESS):
        raise damaged(path, clause, AGAIN)
    if not len(content["optimizer_states"]) == len(content["lr_schedulers"]) == 1:
        raise damaged(path, "optimizer_states and lr_schedulers should have one entry each", AGAIN)
    if content["epoch"] + 1 != len(checkpoint.history):
        raise damaged(path, f"history has {len(checkpoint.history)} epochs, expected {content['epoch'] + 1}", AGAIN)
    return checkpoint


def _last(path: Path) -> Any:
    return read_weights(path, mmap=True, expected=f"{A_CHECKPOINT}; {AGAIN}")


def refuse_other_moments(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Raise where the moments in the checkpoint that a run resumes from do not fit the trained parameters.

    Raises:
        CommandError: a shape differs.
    """
    state = _last(path)["optimizer_states"][0]["state"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        for name in MOMENTS:
            found = state.get(index, {}).get(name, parameter)
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            if shape != tuple(parameter.shape):
                place = f"optimizer_states[0].state[{index}].{name}"
                raise damaged(path, f"{place} is {shape}, expected {tuple(parameter.shape)}", AGAIN)


def drop_moments(path: Path) -> None:
    """Rewrite the checkpoint of a finished run without AdamW's moments, which take two thirds of the file."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    for state in content["optimizer_states"]:
        state["state"] = {}
    write_checkpoint(content, path)


def keep_temperature(path: Path, temperature: float) -> None:
    """Store the temperature in a checkpoint of a run; a file that has it already is not written again.

    Of a run without checkpoints, model.safetensors holds it, which `write_weights` writes after each test.
    """
    if path.suffix == SUFFIX:
        return
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content[KEY].get("temperature", 1.0) != temperature:
        content[KEY]["temperature"] = temperature
        write_checkpoint(content, path)


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; an earlier one stays as it was until the new one is complete."""
    whole = io.BytesIO()  # of a full disk, `torch.save` to a file says only that the position is unexpected
    torch.save(content, whole)
    with finished_file(path) as partial, writing(path):
        partial.write_bytes(whole.getbuffer())


def as_checkpoint(content: Any, path: Path, to_do: str = ANOTHER) -> Checkpoint:
    """The checkpoint from the content that `torch.load` returned.

    Args:
        to_do: what the user can do about a damaged one, for the message.

    Raises:
        CommandError: the content is no checkpoint.
    """
    if not is_checkpoint(content):
        raise CommandError(
            f"{path} is not a checkpoint of `rsattn finetune`: expected the folder of a run, or a .ckpt or "
            ".safetensors file in it"
        )
    kept = content[KEY]
    if clause := _fault(kept, content["state_dict"]):
        raise damaged(path, clause, to_do)
    try:
        options = as_options(kept["options"])
    except ValueError as error:
        raise damaged(path, str(error), to_do) from None
    state = content["state_dict"].items()
    return Checkpoint(
        path=path,
        weights={name.removeprefix(PREFIX): value for name, value in state if name.startswith(PREFIX)},
        options=options,
        classes=tuple(kept["classes"]),
        mean=tuple(kept["mean"]),
        std=tuple(kept["std"]),
        history=kept["history"],
        gates_at_start=kept.get("gates_at_start", {}),
        temperature=kept.get("temperature", 1.0),
    )


def _fault(kept: Any, state: object) -> str | None:
    """What is wrong with a checkpoint, except for its options; None where nothing is."""
    # Checkpoints of models without gates may lack gates_at_start, and those of untested runs lack a temperature.
    if clause := (
        fault(kept, SHAPE, KEY)
        or fault(kept.get("gates_at_start", {}), {str: float}, "gates_at_start")
        or fault(kept.get("temperature", 1.0), float, "temperature")
    ):
        return clause
    if not 0 < kept.get("temperature", 1.0) < math.inf:
        return f"temperature is {kept['temperature']}, expected a number above 0"
    classes, mean, std = kept["classes"], kept["mean"], kept["std"]
    if len(set(classes)) < max(2, len(classes)):
        return "classes should be two or more different names"
    if not len(mean) == len(std) == 3 or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        return "mean and std should be three numbers each, and those of std above 0"
    return None if is_state_dict(state) else "state_dict should hold names and dense tensors"


def refuse_misfit(checkpoint: Checkpoint, model: nn.Module, to_do: str = ANOTHER) -> None:
    """Raise where the weights do not fit the model that was built from the options.

    Args:
        to_do: as in `as_checkpoint`.

    Raises:
        CommandError: names are missing or unknown, or shapes differ.
    """
    faults = mismatches(model.state_dict(), checkpoint.weights)
    if lacking := [name for name in gates_of(model) if name not in checkpoint.gates_at_start]:
        faults.append(f"gates_at_start lacks {', '.join(lacking)}")
    if faults:
        clause = f"it does not fit the {checkpoint.options.model} that its options describe: {'; '.join(faults)}"
        raise damaged(checkpoint.path, clause, to_do)


def damaged(path: Path, clause: str, to_do: str = ANOTHER) -> CommandError:
    return CommandError(f"{path} is a damaged checkpoint: {clause}; {to_do}")
