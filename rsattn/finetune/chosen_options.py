"""The options of a run from the command line: what was given, else the recipe's or the model's default."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..cli.command import CommandError
from ..contract import MERGES, NORMS, SCOPES
from .argument_types import NO_GATE, gate
from .effects import options_without_effect
from .options import DEFAULTS, OWN_MODELS, TORCHVISION_MODELS, Options, gates_learn, is_residual
from .recipes import RECIPES, default_recipe

DEFAULT_COMPARISON = ("vit", "resvit")
GATE_RATE = 5e-3  # the default of --gate-lr


def options_of(given: argparse.Namespace, model: str, seed: int, out: Path) -> Options:
    """The options of one run; those not given get the default for the data, the model and the recipe."""
    options = with_gates(_ungated(given, model, seed, out, given.patch), given.init_values, given.gate_lr)
    return replace(options, fold=given.fold)


def _ungated(given: argparse.Namespace, model: str, seed: int, out: Path, patch: bool) -> Options:
    digits = given.data is None
    size = given.size or ("tiny" if digits else "base")
    weights = given.weights or ("none" if given.recipe == "scratch" else _default_weights(model, size, digits))
    name = given.recipe or default_recipe(weights, bool(given.freeze))
    recipe = RECIPES[name]
    freeze = _first(given.freeze, recipe.freeze)
    residual: dict[str, Any] = dict(recipe.residual) if model == "resvit" or patch else {}
    full_width = _first(given.full_width, bool(residual.get("full_width")))
    rate = None if given.lr == "auto" else given.lr
    layered = model not in ("cnn", *TORCHVISION_MODELS) and not freeze
    sharded = given.strategy.startswith("fsdp")  # Lightning cannot clip the norm of a gradient in shards
    return Options(
        out=str(out),
        data=given.data,
        model=model,
        patch=patch,
        norm=given.norm or residual.get("norm", "induced"),
        scope=given.scope or residual.get("scope", "sample"),
        merge=given.merge or "tile",
        full_width=full_width,
        size=size,
        weights=weights,
        image_size=given.image_size or (32 if digits else 128),
        epochs=given.epochs or recipe.epochs,
        patience=_first(given.patience, recipe.patience),
        batch_size=given.batch_size or recipe.batch_size,
        learning_rate=_first(rate, recipe.learning_rate, default_rate(model, weights, freeze)),
        weight_decay=_first(given.weight_decay, recipe.weight_decay),
        augment=given.augment or recipe.augment,
        seed=seed,
        split_seed=given.split_seed,
        freeze=freeze,
        class_weights=given.class_weights,
        groups=given.groups,
        workers=given.workers,
        precision=_precision(given.precision or recipe.precision),
        devices=given.devices,
        strategy=given.strategy,
        nodes=given.nodes,
        recipe=name,
        head_first=_first(given.head_first, recipe.head_first and not full_width),
        least_steps=_first(given.least_steps, 0 if given.epochs or given.restarts else recipe.least_steps),
        keep=given.keep or ("best" if given.patience else recipe.keep),
        layer_decay=_first(given.layer_decay, recipe.layer_decay if layered else 1.0),
        drop_path=_first(given.drop_path, recipe.drop_path if layered and model not in OWN_MODELS else 0.0),
        warm_up=_first(given.warm_up, recipe.warm_up),
        clip=_first(given.clip, 0.0 if sharded else recipe.clip),
        label_smoothing=_first(given.label_smoothing, recipe.label_smoothing),
        lr_auto=given.lr == "auto",
        dropout=_first(given.dropout, recipe.dropout if model in ("vit", "resvit") else 0.1),
        restarts=None if given.restarts is None else tuple(given.restarts),
        resize=given.resize,
        window=given.window,
        folds=given.folds,
        logger=loggers_given(given),
    )


def loggers_given(given: argparse.Namespace) -> tuple[str, ...]:
    """The loggers on the command line, each once, or the default ones."""
    return tuple(dict.fromkeys(given.logger or DEFAULTS["logger"]))


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next(value for value in values if value is not None)


def _precision(asked: str) -> str:
    if asked != "auto":
        return asked
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def with_gates(options: Options, start: float | Literal["none"] | None = None, rate: float | None = None) -> Options:
    """The options with the gates' initial value and learning rate; None stands for the default."""
    if start is None:
        kept = is_residual(options) and options.weights != "none" and not options.full_width
        start = 0.0 if kept else NO_GATE
    options = replace(options, init_values=None if start == NO_GATE else start)
    if gates_learn(options):
        return replace(options, gate_rate=GATE_RATE if rate is None else rate)
    return options  # without gates that learn, a rate would only make equal runs look different


def _default_weights(model: str, size: str, digits: bool) -> str:
    if digits or model == "cnn" or (model in ("vit", "resvit") and size != "base"):
        return "none"
    return "pretrained"


def default_rate(model: str, weights: str, frozen: bool) -> float:
    """The learning rate where neither the command line nor the recipe gives one."""
    if frozen or model in ("cnn", "resnet18"):
        return 1e-3
    if model == "alexnet":
        return 1e-4  # AlexNet has no normalization, and at 1e-3 it stays at chance
    return 1e-3 if weights == "none" else 1e-4


def entrants_of(given: argparse.Namespace) -> list[tuple[str, Options]]:
    """The models that `compare` compares: label and options, with seed and folder left to each run."""
    entrants = []
    for word in given.models:
        name, _, settings = word.partition(":")
        name, plus, patch = name.partition("+")
        if plus and patch != "patch":
            raise CommandError(f"--models {word}: expected +patch after the name, not +{patch}")
        if plus and name in OWN_MODELS:
            raise CommandError(
                f"--models {word}: +patch is for timm models, not {name}; a ViT with residual attention is resvit"
            )
        own = argparse.Namespace(**vars(given))
        for setting in filter(None, settings.split(",")):
            if setting.startswith("init-values="):
                own.init_values = _gate_of(word, setting)
            else:
                _set(own, word, setting)
            if name != "resvit" and not plus:
                raise CommandError(
                    f"--models {word}: {setting} needs residual attention: resvit, or +patch after the name of a timm "
                    "model"
                )
        entrants.append((word, _entrant(own, name, bool(plus))))
    return entrants


def _entrant(given: argparse.Namespace, name: str, patch: bool) -> Options:
    """The options of one model of a comparison, without those that have no effect on it."""
    own = argparse.Namespace(**vars(given))
    for option in options_without_effect(given, _ungated(given, name, 0, Path(), patch)):
        if option not in ("norm", "scope", "merge", "size", "gate_lr"):  # which a run without them keeps in its config
            setattr(own, option, None)
    return with_gates(_ungated(own, name, 0, Path(), patch), own.init_values, given.gate_lr)


def _gate_of(word: str, setting: str) -> float | Literal["none"]:
    try:
        return gate(setting.partition("=")[2])
    except argparse.ArgumentTypeError as error:
        raise CommandError(f"--models {word}: init-values={error}") from None


def _set(given: argparse.Namespace, word: str, setting: str) -> None:
    allowed: dict[str, tuple[str, ...]] = {"norm": NORMS, "scope": SCOPES, "merge": MERGES}
    name, _, value = setting.partition("=")
    if setting == "full-width":
        given.full_width = True
    elif value in allowed.get(name, ()):
        setattr(given, name, value)
    else:
        known = ", ".join(f"{key}={'|'.join(values)}" for key, values in allowed.items())
        raise CommandError(
            f"--models {word}: unknown setting {setting!r}, expected {known}, init-values=NUMBER|none or full-width"
        )
