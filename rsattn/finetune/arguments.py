"""The command lines of `rsattn finetune`, `compare` and `predict`; imports nothing that is slow to import."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..cli.command import CommandError
from ..contract import MERGES, NORMS, SCOPES
from .config import ParserWithConfig
from .options import CHOICES, Options, gates_learn, is_residual
from .recipes import RECIPES, default_recipe

TORCHVISION_MODELS = ("alexnet", "resnet18")
OWN_MODELS = ("vit", "resvit", "cnn", *TORCHVISION_MODELS)
DEFAULT_COMPARISON = ("vit", "resvit")
GATE_RATE = 5e-3  # the default of --gate-lr
NO_GATE: Literal["none"] = "none"
LARGEST_GATE = (2 - 2**-23) * 2.0**127  # in float32, in which gates are built

FINETUNE = """\
Fine-tune an image classifier, with or without residual self-attention, and write a report.

DATA is a folder with a folder of images per class; or with such folders under train/ and test/ (and val/); or one
of Kaggle's brain-MRI and blood-cell sets as it unzips. Without DATA it is scikit-learn's handwritten digits, a minute's
work. Where DATA has no test split of its own, a fifth of the images is kept for the test and 15 % of the rest for
validation. The weights after the last epoch are tested, unless --keep best is given."""

FINETUNE_EPILOG = """\
recipes (--recipe NAME):
RECIPES_HERE

models:
  vit, resvit      pytorch_pretrained_vit's ViT, plain and with residual attention (--size tiny, small, base)
  cnn              three convolutions of 32, 64, 128 channels with batch norm, the mean, one linear layer
  alexnet, resnet18  torchvision's
  any of timm's    such as vit_small_patch14_dinov2; --patch gives it residual attention

examples:
  rsattn finetune                                         digits, in a minute
  rsattn finetune brain_tumor_dataset --groups phash      copies of one image never on both sides
  rsattn finetune slides --model vit_small_patch16_224 --patch --weights pretrained
  rsattn finetune slides --freeze                         only the classifier: fast, each image is seen once
  rsattn finetune --config runs/a/config.json --seed 1 --out runs/b     the same run with another seed
  rsattn finetune --resume rsattn-runs/resvit-0           goes on after Ctrl-C, a crash or a full disk
  torchrun --nproc-per-node 8 -m rsattn finetune slides --weights none --epochs 300

A run's folder (--out) holds report.html, metrics.json, predictions.csv, checkpoints, and logs (TensorBoard and CSV).
In CSV files a name that a spreadsheet would take for a formula (one that begins with = + - or @) has a single quote in
front; a file for --groups may have it or not.
exit code: 0 done, 2 something asked for cannot be done (one line on stderr says what), 130 after Ctrl-C."""
FINETUNE_EPILOG = FINETUNE_EPILOG.replace(
    "RECIPES_HERE", "\n".join(f"  {name:<10} {recipe.text}" for name, recipe in RECIPES.items())
)

COMPARE = """\
Train several models with several seeds on the same images: the table of the paper, for your own data.

Every seed draws its own test split (unless DATA has one, or --split-seed fixes it), the same for all models. Intervals
come from resampling groups of images (--groups), so copies of one photograph count once. Runs that are done are not
repeated: the same command goes on where it stopped."""

PREDICT = """\
What a fine-tuned model makes of images: class and probability, as a table, predictions.csv, and, where the model has
residual attention, an image each of where the best head of its last block looks. In predictions.csv a name that a
spreadsheet would take for a formula (one that begins with = + - or @) has a single quote in front."""


class Renamed(argparse.Action):
    """An earlier name of a switch: it still works, and says what it is called now."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, name: str | None = None
    ) -> None:
        print(f"{parser.prog}: {name} is now --{self.dest.replace('_', '-')}", file=sys.stderr)
        setattr(namespace, self.dest, True)


def add_finetune(commands: Any) -> None:
    parser = commands.add_parser(
        "finetune",
        help="fine-tune a classifier on a folder of images, and report",
        description=FINETUNE,
        epilog=FINETUNE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="folder of class folders (default: digits)")
    parser.add_argument("--model", default="resvit", help="default: resvit")
    parser.add_argument(
        "--patch", action=argparse.BooleanOptionalAction, default=False, help="residual attention in a model of timm's"
    )
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder of the run (default: rsattn-runs/MODEL-SEED)")
    parser.add_argument("--seed", type=_count, default=0, help="of everything random (default: 0)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with that run; it knows its other options")
    add_shared(parser)


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """What `rsattn finetune WORDS` asks for; a fault in it ends the process."""
    parser = ParserWithConfig(prog="rsattn")
    add_finetune(parser.add_subparsers())
    return parser.parse_args(["finetune", *words])


def add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="several models, several seeds: a table with intervals and tests",
        description=COMPARE,
        epilog="example:\n  rsattn compare slides --models vit resvit resnet18 --seeds 5 --groups phash\n\n"
        "A model may carry its residual's settings: resvit:norm=confidence,merge=slot or resvit:init-values=0\n"
        "exit code: 0 all runs done, 1 some failed, 2 cannot start, 130 after Ctrl-C.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="folder of class folders (default: digits)")
    parser.add_argument(
        "--models",
        nargs="+",
        default=DEFAULT_COMPARISON,
        metavar="MODEL",
        help="the first is what the others are held against; timm's names take +patch (default: vit resvit)",
    )
    parser.add_argument("--seeds", type=_positive, default=5, metavar="K", help="seeds 0 to K-1 (default: 5)")
    parser.add_argument(
        "--out", type=Path, default=Path("rsattn-comparison"), metavar="DIR", help="default: rsattn-comparison"
    )
    add_shared(parser)


def add_predict(commands: Any) -> None:
    parser = commands.add_parser("predict", help="classes of images, and where the model looks", description=PREDICT)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="a run's folder, or a .ckpt file in it")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help="images, or folders of them")
    parser.add_argument(
        "--out", type=Path, default=Path("rsattn-predictions"), metavar="DIR", help="default: rsattn-predictions"
    )
    only_table = "write only predictions.csv, and draw no attention maps"
    parser.add_argument("--no-overlays", action="store_true", help=only_table)
    parser.add_argument("--no-pictures", dest="no_overlays", action=Renamed, nargs=0, help=argparse.SUPPRESS)


def add_shared(parser: argparse.ArgumentParser) -> None:
    """What `finetune` and `compare` both take."""
    residual = parser.add_argument_group("residual attention")
    residual.add_argument("--norm", choices=NORMS, help="how heads are ranked (default: induced)")
    residual.add_argument("--scope", choices=SCOPES, help="who shares a best head (default: sample)")
    residual.add_argument("--merge", choices=MERGES, default="tile", help="how it is added (default: tile)")
    residual.add_argument(
        "--full-width",
        action=argparse.BooleanOptionalAction,
        help="four fresh heads as wide as the tokens, as the paper's authors have",
    )
    residual.add_argument(
        "--init-values",
        type=_gate,
        metavar="NUMBER|none",
        help="what the gate of the residual starts at; none: no gate, as in the paper (default: 0 where trained "
        "weights are loaded and kept, so that the model starts as the one without a residual; none where it starts "
        "from random weights, and with --full-width); a negative one in powers of ten needs the sign =: "
        "--init-values=-1e-3",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="take options from a YAML file or a run's config.json; options on the command line override it",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--size", choices=CHOICES["size"], help="of vit (default: digits tiny, else base)")
    model.add_argument(
        "--weights",
        metavar="PATH|pretrained|none",
        help="default: pretrained for a base vit, alexnet, resnet18 and timm's; none for the rest",
    )
    model.add_argument("--image-size", type=_positive, metavar="S", help="default: digits 32, else 128 pixels")
    training = parser.add_argument_group("training", "defaults are those of the recipe")
    training.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="default: finetune where weights are loaded, scratch where they are random, probe with --freeze",
    )
    training.add_argument("--epochs", type=_positive, help="default: 12; probe: 30; scratch: 60; paper: 20")
    training.add_argument(
        "--least-steps",
        type=_count,
        metavar="N",
        help="train for more epochs where --epochs make fewer than N steps (finetune: 120)",
    )
    training.add_argument(
        "--patience",
        type=_count,
        help="stop after N epochs without a lower validation loss; 0: never (default: 0)",
        metavar="N",
    )
    training.add_argument(
        "--keep",
        choices=CHOICES["keep"],
        help="test the weights of the last epoch, or of the epoch with the least validation loss (default: last; with "
        "--patience and in the paper recipe best)",
    )
    training.add_argument("--batch-size", type=_positive, help="default: 16; scratch: 32")
    training.add_argument(
        "--lr",
        type=_rate_or_auto,
        metavar="RATE|auto",
        help="learning rate; auto: train with three and keep the one with the least validation loss (default: 1e-4 for "
        "pretrained weights, 1e-3 for random ones and for cnn and resnet18)",
    )
    training.add_argument(
        "--gate-lr",
        type=_rate,
        metavar="RATE",
        help=f"the learning rate of the gates, which have no weight decay (default: {GATE_RATE:g})",
    )
    training.add_argument("--weight-decay", type=_rate, help="default: 0.05")
    training.add_argument(
        "--layer-decay",
        type=_factor,
        metavar="FACTOR",
        help="multiply the rate by this for each layer below the top (finetune: 0.75)",
    )
    training.add_argument(
        "--drop-path", type=_below_one, metavar="P", help="stochastic depth, for timm's models (finetune: 0.1)"
    )
    training.add_argument(
        "--dropout", type=_below_one, metavar="P", help="of vit and resvit (default: 0.1; scratch: 0)"
    )
    training.add_argument(
        "--warm-up",
        type=_share,
        metavar="SHARE",
        help="share of the steps in which the rate rises (default: 0.1; paper: 0)",
    )
    training.add_argument(
        "--clip", type=_rate, metavar="NORM", help="largest norm of the gradient; 0: no limit (default: 1; paper: 0)"
    )
    training.add_argument("--label-smoothing", type=_below_one, metavar="SHARE", help="default: 0.1; probe, paper: 0")
    training.add_argument(
        "--head-first",
        action=argparse.BooleanOptionalAction,
        help="fit the classifier to frozen features first (finetune does)",
    )
    training.add_argument(
        "--augment",
        choices=CHOICES["augment"],
        help="small: shifts, small rotations, zooms, brightness; mirror: flips too; rotate: any angle, for cells and "
        "tissue (default: digits small, probe none, else mirror)",
    )
    training.add_argument(
        "--freeze",
        action=argparse.BooleanOptionalAction,
        help="train the classifier only, and with --full-width its fresh attention and gates; other gates stay where "
        "they start, and at 0 the residual adds nothing",
    )
    training.add_argument(
        "--class-weights",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="rare classes weigh more in the loss",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--groups",
        metavar="CSV|phash",
        help="images of one group stay on one side: a file with columns file and group, or near-identical images "
        "by a perceptual hash (default: every image by itself)",
    )
    data.add_argument("--split-seed", type=_count, metavar="N", help="of the splits (default: the seed)")
    data.add_argument(
        "--workers", type=_count, default=0, metavar="N", help="processes that load images (default: none)"
    )
    machine = parser.add_argument_group("machine (Lightning's Trainer)")
    machine.add_argument(
        "--precision",
        choices=("auto", *CHOICES["precision"]),
        help="auto: bf16-mixed where the device multiplies bfloat16, else 32-true (default: finetune, probe auto)",
    )
    machine.add_argument("--devices", default="auto", metavar="N", help="how many (default: auto; on a CPU one)")
    machine.add_argument("--strategy", default="auto", help="auto, ddp, fsdp, ... (default: auto)")
    machine.add_argument("--nodes", type=_positive, default=1, help="machines (default: 1)")


def options_of(given: argparse.Namespace, model: str, seed: int, out: Path) -> Options:
    """The options of one run; what was not given gets a default that fits the images and the model."""
    return with_gates(_ungated(given, model, seed, out, given.patch), given.init_values, given.gate_lr)


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
        merge=given.merge,
        full_width=full_width,
        size=size,
        weights=weights,
        image_size=given.image_size or (32 if digits else 128),
        epochs=given.epochs or recipe.epochs,
        patience=_first(given.patience, recipe.patience),
        batch_size=given.batch_size or recipe.batch_size,
        learning_rate=_first(rate, recipe.learning_rate, default_rate(model, weights, freeze)),
        weight_decay=_first(given.weight_decay, recipe.weight_decay),
        augment=given.augment or ("small" if digits and recipe.augment == "mirror" else recipe.augment),
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
        least_steps=_first(given.least_steps, 0 if given.epochs else recipe.least_steps),
        keep=given.keep or ("best" if given.patience else recipe.keep),
        layer_decay=_first(given.layer_decay, recipe.layer_decay if layered else 1.0),
        drop_path=_first(given.drop_path, recipe.drop_path if layered and model not in OWN_MODELS else 0.0),
        warm_up=_first(given.warm_up, recipe.warm_up),
        clip=_first(given.clip, 0.0 if sharded else recipe.clip),
        label_smoothing=_first(given.label_smoothing, recipe.label_smoothing),
        lr_auto=given.lr == "auto",
        dropout=_first(given.dropout, recipe.dropout if model in ("vit", "resvit") else 0.1),
    )


def _first(*values: Any) -> Any:
    """The first that is given; 0 is given."""
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
    """The options with what their gates start at and learn with; None gets a default that fits them."""
    if start is None:
        kept = is_residual(options) and options.weights != "none" and not options.full_width
        start = 0.0 if kept else NO_GATE
    options = replace(options, init_values=None if start == NO_GATE else start)
    if gates_learn(options):
        return replace(options, gate_rate=GATE_RATE if rate is None else rate)
    return options  # a rate nobody uses would make it another run than before


def _default_weights(model: str, size: str, digits: bool) -> str:
    if digits or model == "cnn" or (model in ("vit", "resvit") and size != "base"):
        return "none"
    return "pretrained"


def default_rate(model: str, weights: str, frozen: bool) -> float:
    """A learning rate to begin with."""
    if frozen or model in ("cnn", "resnet18"):
        return 1e-3
    if model == "alexnet":
        return 1e-4  # it has no norm: 1e-3 leaves it at chance
    return 1e-3 if weights == "none" else 1e-4


def entrants_of(given: argparse.Namespace) -> list[tuple[str, Options]]:
    """What `compare` compares: a label and options each, without seed and folder."""
    entrants = []
    for word in given.models:
        name, _, settings = word.partition(":")
        name, plus, patch = name.partition("+")
        if plus and patch != "patch":
            raise CommandError(f"--models {word}: expected +patch after the name, not +{patch}")
        residual = name == "resvit" or bool(plus)
        own = argparse.Namespace(**vars(given))
        if not residual:
            own.init_values = None
        for setting in filter(None, settings.split(",")):
            if setting.startswith("init-values="):
                own.init_values = _gate_of(word, setting)
            else:
                _set(own, word, setting)
        entrants.append((word, with_gates(_ungated(own, name, 0, Path(), bool(plus)), own.init_values, given.gate_lr)))
    return entrants


def _gate_of(word: str, setting: str) -> float | Literal["none"]:
    try:
        return _gate(setting.partition("=")[2])
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
        raise CommandError(f"--models {word}: {setting!r} is none of {known}, init-values=NUMBER|none, full-width")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**32 - 1")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _gate(text: str) -> float | Literal["none"]:
    if text == NO_GATE:
        return NO_GATE
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none")
    if abs(value) > LARGEST_GATE:
        raise argparse.ArgumentTypeError(f"{text!r} is too large a number for float32")
    return value


def _rate_or_auto(text: str) -> float | Literal["auto"]:
    return "auto" if text == "auto" else _rate(text)


def _share(text: str) -> float:
    value = _rate(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _below_one(text: str) -> float:
    value = _share(text)
    if value == 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return value


def _factor(text: str) -> float:
    value = _share(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, up to 1")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value
