"""Everything one run of `rsattn finetune` was asked for: its command line, and its config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, get_args, get_type_hints

from ..cli.command import CommandError
from ..contract import MERGES, NORMS, SCOPES, Merge, Norm, Scope
from .contents import fault, read_json
from .run_folder import RunFolder


@dataclass(frozen=True)
class Options:
    """One run.

    Attributes:
        out: the run's folder.
        data: a folder of images; None is scikit-learn's digits.
        model: "vit", "resvit", "cnn", "alexnet", "resnet18", or a name of timm's.
        patch: residual attention in a timm model; "resvit" has it anyway.
        norm, scope, merge: as in `rsattn.patch`.
        full_width: fresh heads as wide as the tokens, four of them, as the paper's authors have.
        size: of "vit" and "resvit": "tiny", "small" or "base".
        weights: "none", "pretrained", or a file of weights.
        image_size: side of the square the model sees, in pixels.
        epochs: at most; `patience` epochs without a better validation loss end a run before, 0 never does.
        learning_rate: of AdamW, after its warm-up, before its cosine.
        augment: "none", "small" (random shifts, small rotations, zooms, brightness), "mirror" (small, and flips both
            ways) or "rotate" (mirror, with rotations by any angle).
        seed: of the weights, the order of images, dropout and augmentation.
        split_seed: of the splits; None is `seed`.
        freeze: train the classifier only (and fresh attention, where there is some, with its gates).
        class_weights: weigh classes in the loss by the inverse of their number of training images.
        groups: a CSV file with columns `file` and `group`, "phash", or None: images of one group stay in one split.
        workers: processes that load images.
        precision, devices, strategy, nodes: as in Lightning's Trainer.
        init_values: what the gate of the residual starts at; None is no gate, as in runs before there were gates.
        gate_rate: learning rate of the gates; None is that of all other parameters.
        recipe: a name in `RECIPES`, whose numbers the command line may have changed; None is a run from before there
            were recipes, which the defaults of all fields below describe.
        head_first: before training, fit the classifier to the features of the model as it starts.
        least_steps: a run has as many epochs more than `epochs` as it takes to make this many steps.
        keep: the weights that are tested: "last" (of the last epoch) or "best" (of the least validation loss).
        layer_decay: every layer below the classifier learns at this share of the rate of the layer above it.
        drop_path: the probability that training skips a branch of the last block; it rises in a line from 0 in the
            first block (stochastic depth).
        warm_up: the share of all steps in which the learning rate rises to its full value.
        clip: the largest norm of a step's gradient; 0 does not limit it.
        label_smoothing: of the training loss.
        dropout: of "vit" and "resvit"; other models have their own.
        lr_auto: `learning_rate` is the middle one of three, of which validation chooses.
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


# What a run of an earlier version, whose config.json lacks what has been added since, was trained with.
DEFAULTS = {field.name: field.default for field in fields(Options) if field.default is not MISSING}

CHOICES: dict[str, tuple[str, ...]] = {
    "norm": NORMS,
    "scope": SCOPES,
    "merge": MERGES,
    "size": ("tiny", "small", "base"),
    "augment": ("none", "small", "mirror", "rotate"),
    "keep": ("last", "best"),
    "precision": ("32-true", "bf16-mixed", "16-mixed", "64-true"),
}
# Bounds of numbers; the rest are not negative.
POSITIVE = ("image_size", "epochs", "batch_size", "nodes")
LEAST: dict[str, float] = {**dict.fromkeys(POSITIVE, 1), "init_values": -math.inf}
MOST = dict.fromkeys(("layer_decay", "drop_path", "warm_up", "label_smoothing", "dropout"), 1.0)


def as_options(content: object) -> Options:
    """The options that a file holds, field by field; those of an earlier version lack what has been added since.

    Raises:
        ValueError: they are not the options of a run; the message is a clause on the first fault.
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
    return Options(**content)


def _fault(name: str, value: Any) -> str | None:
    """A clause on what is wrong with the value of a field of `Options`."""
    hint = get_type_hints(Options)[name]
    kinds = get_args(hint) or (hint,)
    if name in CHOICES:
        other = f"{name} is {value!r}, expected {', '.join(CHOICES[name])}"
        return fault(value, str, name) or (None if value in CHOICES[name] else other)
    if value is None and type(None) in kinds:
        return None
    clause = fault(value, kinds[0], name)
    if clause or kinds[0] not in (int, float):
        return clause
    least, most = LEAST.get(name, 0), MOST.get(name, math.inf if kinds[0] is float else 2**32 - 1)
    if not (math.isfinite(value) and least <= value <= most):
        return f"{name} is {value}, expected a number from {least} to {most}"
    return None


def read_options(folder: RunFolder) -> Options:
    """What a run was asked for.

    Raises:
        CommandError: the folder holds no run, or its config.json is damaged.
    """
    if not folder.config.exists():
        raise CommandError(f"{folder.path} holds no run: there is no {folder.config.name}")
    to_do = "restore it from a copy, or start another run with another --out"
    try:
        return as_options(read_json(folder.config, {}, to_do))
    except ValueError as error:
        raise CommandError(f"{folder.config} is damaged: {error}; {to_do}") from None


def is_residual(options: Options) -> bool:
    return options.model == "resvit" or options.patch


def gates_learn(options: Options) -> bool:
    """Whether there are gates that are trained: those of a frozen model are not, those of its fresh heads are."""
    return options.init_values is not None and (options.full_width or not options.freeze)


def rate_of_gates(options: Options) -> float:
    """The learning rate of gates that learn."""
    return options.learning_rate if options.gate_rate is None else options.gate_rate


def with_all_epochs(options: Options, images: int) -> Options:
    """The options with as many epochs as `least_steps` needs; steps are counted as those of one device.

    Args:
        images: how many images the run trains with.
    """
    steps = math.ceil(images / options.batch_size)
    return replace(options, epochs=max(options.epochs, math.ceil(options.least_steps / steps)), least_steps=0)


def hint_at_gates(earlier: Mapping[str, Any], now: Options) -> str:
    """What to pass to go on with a run of a residual without a gate, for a message; empty where it is no such run."""
    residual = earlier.get("model") == "resvit" or earlier.get("patch")
    if residual and earlier.get("init_values") is None and now.init_values is not None:
        return "pass --init-values none (that run has no gate), "
    return ""
