"""The options of a run of `rsattn finetune`, from its command line or its config.json."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, get_args, get_type_hints

from ..cli.command import CommandError
from ..cli.gray import Window
from ..contract import MERGES, NORMS, SCOPES, Merge, Norm, Scope
from .contents import fault, read_json
from .run_folder import RunFolder

TORCHVISION_MODELS = ("alexnet", "resnet18")
OWN_MODELS = ("vit", "resvit", "cnn", *TORCHVISION_MODELS)


@dataclass(frozen=True)
class Options:
    """The options of one run.

    Attributes:
        out: the run's folder.
        data: a folder of images; None stands for scikit-learn's digits.
        model: "vit", "resvit", "cnn", "alexnet", "resnet18", or the name of a timm model.
        patch: add residual attention to a timm model; "resvit" always has it.
        norm, scope, merge: as in `rsattn.patch`.
        full_width: newly initialized attention with four heads as wide as the tokens, as in the authors' code.
        size: the size of "vit" and "resvit": "tiny", "small" or "base".
        weights: "none", "pretrained", or a file of weights.
        image_size: the side of the square input, in pixels.
        epochs: the largest number of epochs.
        patience: stop after this many epochs without a lower validation loss; 0 never stops early.
        learning_rate: the peak learning rate of AdamW.
        augment: "none", "small" (random shift, small rotation, zoom and brightness), "flip" (small, and flips from left
            to right), "mirror" (flip, and flips from top to bottom) or "rotate" (mirror, with rotation by any angle).
        seed: the seed of the weights, the order of the images, dropout and augmentation.
        split_seed: the seed of the splits; None stands for `seed`.
        freeze: train only the classifier, and newly initialized attention with its gates.
        class_weights: weight the classes in the loss by the inverse of their number of training images.
        groups: a CSV file with the columns `file` and `group`, "patient", "folder", "phash", or None; a group stays in
            one split.
        workers: the number of processes that load images.
        precision, devices, strategy, nodes: as in Lightning's Trainer.
        init_values: the initial value of the gates; None means no gates.
        gate_rate: the learning rate of the gates; None stands for that of the other parameters.
        recipe: a name in `RECIPES`; other options may override its values. None means a run older than recipes, which
            the defaults of the fields below describe.
        head_first: fit the classifier to the features of the initial model before training.
        least_steps: the smallest number of steps; the number of epochs rises above `epochs` to reach it.
        keep: the weights to test: "last" (of the last epoch) or "best" (of the lowest validation loss).
        layer_decay: the factor on the learning rate from a layer to the layer below.
        drop_path: the probability of skipping a branch of the last block in training; it rises linearly from 0 in the
            first block (stochastic depth).
        warm_up: the share of the steps in which the learning rate rises.
        clip: the largest gradient norm; 0 means no limit.
        label_smoothing: the label smoothing of the training loss.
        dropout: the dropout of "vit" and "resvit"; other models have their own.
        restarts: the epochs after which the learning rate rises and falls again, with new moments of AdamW; None for
            never.
        lr_auto: try three rates around `learning_rate`, and use the one with the lowest validation loss.
        resize: how an image that is not square becomes square: "squash", "pad" (black borders) or "crop" (its middle).
        window: center and width of the values that become black to white, of images with more than 8 bits per pixel;
            None for the window in the header of an image, or its smallest and largest value.
        folds: the number of folds of a cross-validation, drawn with `split_seed` (None: 0); None without one.
        fold: the fold to test, from 0.
        logger: where Lightning logs the training, in `LOGGERS`.
    """

    out: str
    data: str | None
    model: str
    patch: bool
    norm: Norm
    scope: Scope
    merge: Merge
    full_width: bool
    size: str
    weights: str
    image_size: int
    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    augment: str
    seed: int
    split_seed: int | None
    freeze: bool
    class_weights: bool
    groups: str | None
    workers: int
    precision: str
    devices: str
    strategy: str
    nodes: int
    init_values: float | None = None
    gate_rate: float | None = None
    recipe: str | None = None
    head_first: bool = False
    least_steps: int = 0
    keep: str = "best"
    layer_decay: float = 1.0
    drop_path: float = 0.0
    warm_up: float = 0.05
    clip: float = 0.0
    label_smoothing: float = 0.0
    lr_auto: bool = False
    dropout: float = 0.1
    restarts: tuple[int, ...] | None = None
    resize: str = "squash"
    window: Window | None = None
    folds: int | None = None
    fold: int | None = None
    logger: tuple[str, ...] = ("csv", "tensorboard")


# The values for the config.json of an earlier version, which lacks newer fields.
DEFAULTS = {field.name: field.default for field in fields(Options) if field.default is not MISSING}

# The options that do not change the result, and may change when a run resumes.
WHERE_AND_HOW_FAST = {"out", "workers", "devices", "strategy", "nodes", "logger"}

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
CHOICES: dict[str, tuple[str, ...]] = {
    "norm": NORMS,
    "scope": SCOPES,
    "merge": MERGES,
    "size": ("tiny", "small", "base"),
    "augment": ("none", "small", "flip", "mirror", "rotate"),
    "resize": ("squash", "pad", "crop"),
    "keep": ("last", "best"),
    "precision": ("32-true", "bf16-mixed", "16-mixed", "64-true"),
}
# Strategies of Lightning that give each device a part of the weights.
SHARDED = ("fsdp", "deepspeed", "model_parallel")
RATE_FACTORS = (1 / 3, 1.0, 3.0)  # of the learning rates that `lr_auto` tries
# Bounds of numbers; the others are at least 0.
POSITIVE = ("image_size", "epochs", "batch_size", "nodes")
LEAST: dict[str, float] = {**dict.fromkeys(POSITIVE, 1), "folds": 2, "init_values": -math.inf}
MOST = dict.fromkeys(("layer_decay", "drop_path", "warm_up", "label_smoothing", "dropout"), 1.0)


def as_options(content: object) -> Options:
    """The options in the content of a file; files of an earlier version may lack newer fields.

    Raises:
        ValueError: these are not the options of a run; the message names the first error.
    """
    if not isinstance(content, Mapping):
        raise ValueError(fault(content, {str: object}, "options"))
    names = [field.name for field in fields(Options)]
    if lacking := [name for name in names if name not in content and name not in DEFAULTS]:
        raise ValueError(f"the options lack {', '.join(lacking)}")
    if unknown := [str(name) for name in content if name not in names]:
        raise ValueError(f"unknown options {', '.join(unknown)}, perhaps of another version of rsattn")
    for name, value in content.items():
        if clause := _fault(name, value):
            raise ValueError(clause)
    lists = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}  # JSON has no tuples
    return Options(**{**content, **lists})


@functools.cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Options)


def _fault(name: str, value: Any) -> str | None:
    """What is wrong with the value of a field of `Options`; None where nothing is."""
    hint = _hints()[name]
    kinds = get_args(hint) or (hint,)
    if name in CHOICES:
        other = f"{name} is {value!r}, expected {', '.join(CHOICES[name])}"
        return fault(value, str, name) or (None if value in CHOICES[name] else other)
    if value is None and type(None) in kinds:
        return None
    if name == "restarts":
        rising = f"restarts is {value}, expected whole numbers from 1, each larger than the one before"
        return fault(value, [int], name) or (None if ascending(value) else rising)
    if name == "window":
        wrong = f"window is {value}, expected its center and its width, which is above 0"
        return fault(value, [float], name) or (None if is_window(value) else wrong)
    if name == "logger":
        other = f"logger is {value}, expected one or more of {', '.join(LOGGERS)}"
        return fault(value, [str], name) or (None if value and set(value) <= set(LOGGERS) else other)
    clause = fault(value, kinds[0], name)
    if clause or kinds[0] not in (int, float):
        return clause
    least, most = LEAST.get(name, 0), MOST.get(name, math.inf if kinds[0] is float else 2**32 - 1)
    if not (math.isfinite(value) and least <= value <= most):
        return f"{name} is {value}, expected a number from {least} to {most}"
    return None


def is_window(values: Sequence[float]) -> bool:
    """Whether these are the center and the width of a window."""
    return len(values) == 2 and all(map(math.isfinite, values)) and values[1] > 0


def ascending(epochs: Sequence[int]) -> bool:
    return bool(epochs) and min(epochs) >= 1 and list(epochs) == sorted(set(epochs))


def read_options(folder: RunFolder) -> Options:
    """The options of a run.

    Raises:
        CommandError: the folder has no run, or its config.json is damaged.
    """
    if not folder.config.exists():
        raise CommandError(f"{folder.path} is not the folder of a run: it has no {folder.config.name}")
    to_do = "restore it from a copy, or start a new run with another --out"
    try:
        return as_options(read_json(folder.config, {}, to_do))
    except ValueError as error:
        raise CommandError(f"{folder.config} is damaged: {error}; {to_do}") from None


def is_residual(options: Options) -> bool:
    return options.model == "resvit" or options.patch


def gates_learn(options: Options) -> bool:
    """Whether there are gates that are trained; those of a frozen model are not, except in new attention."""
    return options.init_values is not None and (options.full_width or not options.freeze)


def rate_of_gates(options: Options) -> float:
    """The learning rate of the gates."""
    return options.learning_rate if options.gate_rate is None else options.gate_rate


def with_all_epochs(options: Options, images: int) -> Options:
    """The options with enough epochs for `least_steps`, counted for one device.

    Args:
        images: the number of training images.
    """
    steps = math.ceil(images / options.batch_size)
    return replace(options, epochs=max(options.epochs, math.ceil(options.least_steps / steps)), least_steps=0)


def differences(earlier: Options, now: Options) -> str:
    """The options that differ, except those that do not change the result."""
    names = [field.name for field in fields(Options) if field.name not in WHERE_AND_HOW_FAST]
    if earlier.data and now.data and os.path.realpath(earlier.data) == os.path.realpath(now.data):
        names.remove("data")
    changed = [name for name in names if getattr(earlier, name) != getattr(now, name)]
    return ", ".join(f"{name} {getattr(earlier, name)!r}, now {getattr(now, name)!r}" for name in changed)


def hint_at_gates(earlier: Options, now: Options) -> str:
    """Text for a message on how to resume a run whose residual has no gate; empty for other runs."""
    if is_residual(earlier) and earlier.init_values is None and now.init_values is not None:
        return "add --init-values none, because that run has no gate, "
    return ""
