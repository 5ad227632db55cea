"""`--config FILE|RUN`: options from a YAML file, or from the config.json of a run."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..cli.command import CommandError, require, why
from ..cli.suggestions import similar
from .options import DEFAULTS, Options

OPTION = re.compile(r"--[^=]+")
NEGATIVE = re.compile(r"-[\d.][-+\d.,e]*")

# The names in config.json that differ from those of the command line.
NAMES = {"learning_rate": "lr", "gate_rate": "gate_lr"}

OF_A_RECIPE: tuple[str, ...] = (
    *("epochs", "least_steps", "restarts", "patience", "keep", "batch_size", "lr", "weight_decay", "layer_decay"),
    *("drop_path", "dropout", "warm_up", "clip", "label_smoothing", "augment", "head_first", "freeze", "precision"),
    *("norm", "scope", "full_width", "gate_lr"),
)
OF_A_MODEL = ("patch", "weights", "lr", "layer_decay", "drop_path", "dropout", "init_values", "gate_lr", "full_width")

# For an option on the command line: the options of the file that are ignored, because they followed from its old value.
FOLLOWS = {
    "recipe": (*OF_A_RECIPE, "init_values", "weights"),
    "freeze": ("recipe", *OF_A_RECIPE),
    "model": OF_A_MODEL,
    "weights": ("recipe", *OF_A_RECIPE, "init_values"),
    "epochs": ("least_steps", "restarts"),
    "patience": ("keep",),
    "folds": ("seeds", "seed"),
    "fold": ("seed",),
    "seeds": ("folds",),
    "init_values": ("gate_lr",),
    "full_width": ("head_first", "init_values", "gate_lr"),
}


class ParserWithConfig(argparse.ArgumentParser):
    """A parser whose option `--config FILE`, if it has one, sets the defaults of the other options.

    Negative numbers can follow an option, also such as -1e-3 and -600,1500, which argparse takes for options.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = _with_negative_numbers(sys.argv[1:] if args is None else args)
        if "--config" in self._option_string_actions:
            not_typed = object()
            unset = argparse.Namespace(**{action.dest: not_typed for action in self._actions})
            given = vars(super().parse_known_args(args, unset)[0])
            typed = {name: value for name, value in given.items() if value is not not_typed}
            try:
                chosen = defaults_of(given["config"], self._actions, typed) if "config" in typed else {}
            except CommandError as error:
                self.error(str(error))
            self.set_defaults(**{"ignorable": (), **chosen})
        return super().parse_known_args(args, namespace)


def _with_negative_numbers(words: Sequence[str]) -> list[str]:
    """The words of a command line, with --option=-1e-3 for --option -1e-3."""
    joined: list[str] = []
    for word in words:
        if NEGATIVE.fullmatch(word) and joined and OPTION.fullmatch(joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def defaults_of(
    file: Path, actions: Sequence[argparse.Action], typed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The options in `file`, as defaults for `actions`; null counts as not given.

    `ignorable` are the names of those that may have no effect: a run's config.json has all options, and a file may be
    meant for another model than that of the command line.

    Args:
        typed: the options on the command line.

    Raises:
        CommandError: the file cannot be read, is no YAML, or has an unknown option or an invalid value.
    """
    known = {action.dest: action for action in actions if action.dest not in ("help", "config", "resume", "moved")}
    content = _read(file)
    found = _of_options(content, known)
    if isinstance(found.get("window"), list):
        found["window"] = ",".join(map(str, found["window"]))
    if unknown := sorted(set(found) - set(known)):
        named = ", ".join(name + similar(name, known) for name in unknown)
        raise CommandError(f"{file}: unknown option {named}; expected names such as {_some(known)}")
    made = {name: _checked(file, known[name], value) for name, value in found.items() if value is not None}
    changed = [name for name, value in (typed or {}).items() if value != made.get(name)]
    left_out = {name for option in changed for name in FOLLOWS.get(option, ())}
    if "model" not in changed and made.get("weights") not in ("none", "pretrained"):
        left_out.discard("weights")  # the path of a file does not follow from the recipe
    ignorable = set(made) - set(changed) if _is_of_a_run(content) or {"model", "models"} & set(changed) else ()
    return {**{name: value for name, value in made.items() if name not in left_out}, "ignorable": ignorable}


def _read(file: Path) -> dict[str, Any]:
    require("option --config", "finetune", "yaml")
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"cannot read {file}: {why(error)}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise CommandError(f"{file} is not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise CommandError(f"{file} should have a line `name: value` for each option, such as `lr: 1e-4`")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _of_options(found: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The same options under the names of the command line."""
    if not _is_of_a_run(found):
        return {NAMES.get(name, name): value for name, value in found.items()}
    given = {NAMES.get(name, name): value for name, value in {**DEFAULTS, **found}.items()}
    del given["out"]  # the new run gets its own folder
    if given.pop("lr_auto") is True:
        given["lr"] = "auto"
    if given["init_values"] is None and (given["patch"] or given["model"] == "resvit"):
        given["init_values"] = "none"
    given["logger"] = list(given["logger"])  # as in a file
    if "models" in known:  # `compare` has --models and --seeds instead
        for name in ("model", "patch", "seed", "fold"):
            del given[name]
    return given


def _is_of_a_run(found: Mapping[str, Any]) -> bool:
    return {field.name for field in fields(Options)} - set(DEFAULTS) <= set(found)


def _checked(file: Path, action: argparse.Action, value: Any) -> Any:
    """The value that the command line would make from the same text."""
    name = action.dest
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise CommandError(f"{file}: {name} should be true or false, not {value!r}")
        return value
    several = action.nargs == "+"
    values = value if isinstance(value, list) and several else [value]
    if not values or any(isinstance(one, bool | list | dict) for one in values):
        expected = "one or more names" if several else "a number or text, in quotes if YAML reads it as a bool"
        raise CommandError(f"{file}: {name} is {value!r}; expected {expected}")
    made = [_made(file, action, str(one)) for one in values]
    return made if several else made[0]


def _made(file: Path, action: argparse.Action, text: str) -> Any:
    try:
        made = action.type(text) if callable(action.type) else text
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise CommandError(f"{file}: {action.dest}: {error}") from None
    if action.choices is not None and made not in action.choices:
        raise CommandError(f"{file}: {action.dest} is {text!r}; expected {', '.join(map(str, action.choices))}")
    return made


def _some(known: Mapping[str, argparse.Action]) -> str:
    return ", ".join(name for name in ("data", "model", "recipe", "epochs", "lr") if name in known)
