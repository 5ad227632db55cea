"""The options that have an effect on some models only, and the error where one has none."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..cli.command import CommandError
from .options import OWN_MODELS, TORCHVISION_MODELS, Options, gates_learn, is_residual


@dataclass(frozen=True)
class Limited:
    """An option that some models do not have.

    Attributes:
        has: whether a model has what the option sets.
        text: the error for a model that has not, after the name of the option.
        frozen: whether it has no effect because its layers are frozen.
        off: the value, besides None and False, that asks for nothing.
    """

    has: Callable[[Options], bool]
    text: str
    frozen: Callable[[Options], bool] = lambda options: False
    off: object = None


def _is_vit(options: Options) -> bool:
    return options.model in ("vit", "resvit")


def _is_of_timm(options: Options) -> bool:
    return options.model not in OWN_MODELS


def _is_frozen(options: Options) -> bool:
    return options.freeze


_OF_THE_RESIDUAL = Limited(
    is_residual,
    "needs residual attention: the model resvit, or a timm model with --patch (compare: NAME+patch)",
    off="none",
)

LIMITED = {
    "patch": Limited(
        _is_of_timm, "is for timm models, not {model}; a ViT with residual attention is --model resvit, without --patch"
    ),
    "norm": _OF_THE_RESIDUAL,
    "scope": _OF_THE_RESIDUAL,
    "merge": _OF_THE_RESIDUAL,
    "full_width": _OF_THE_RESIDUAL,
    "init_values": _OF_THE_RESIDUAL,
    "gate_lr": Limited(
        gates_learn, "needs gates that are trained: use residual attention with --init-values, and no --freeze"
    ),
    "size": Limited(_is_vit, "is for vit and resvit; {model} has one size"),
    "dropout": Limited(
        _is_vit,
        "is for vit and resvit; {model} has its own dropout",
        frozen=lambda options: options.freeze and not options.full_width,
    ),
    "drop_path": Limited(
        _is_of_timm, "is for timm models; {model} has no stochastic depth", frozen=_is_frozen, off=0.0
    ),
    "layer_decay": Limited(
        lambda options: options.model not in ("cnn", *TORCHVISION_MODELS),
        "is for vit, resvit and timm models; {model} has one learning rate",
        frozen=_is_frozen,
        off=1.0,
    ),
}


def options_without_effect(given: argparse.Namespace, options: Options) -> list[str]:
    """The names of the options that were given and have no effect on a model."""
    return [
        name
        for name, limited in LIMITED.items()
        if _asks(name, given) and (not limited.has(options) or limited.frozen(options))
    ]


def refuse_options_without_effect(given: argparse.Namespace, models: Sequence[Options]) -> None:
    """Refuse an option that was given and has an effect on none of the models.

    Args:
        given: the parsed command line.
        models: the model of `finetune`, or those of `compare`.
    """
    idle = set.intersection(*(set(options_without_effect(given, options)) for options in models))
    for name in (name for name in LIMITED if name in idle and name not in given.ignorable):
        option, limited = f"--{name.replace('_', '-')}", LIMITED[name]
        if any(map(limited.has, models)):
            raise CommandError(f"{option} has no effect on frozen layers: remove it, or --freeze")
        raise CommandError(f"{option} {limited.text.format(model=models[0].model)}")


def _asks(name: str, given: argparse.Namespace) -> bool:
    value = getattr(given, name, None)  # `compare` has no --patch
    return value is not None and value is not False and value != LIMITED[name].off
