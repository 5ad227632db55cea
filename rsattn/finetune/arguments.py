"""The command lines of `rsattn finetune` and the commands on its runs. It imports no slow modules."""

from __future__ import annotations

import argparse
import math
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..cli.command import CommandError
from ..cli.gray import Window
from ..cli.help import Help
from ..contract import MERGES, NORMS, SCOPES
from .config import ParserWithConfig
from .effects import options_without_effect
from .options import (
    CHOICES,
    DEFAULTS,
    LOGGERS,
    OWN_MODELS,
    TORCHVISION_MODELS,
    Options,
    gates_learn,
    is_residual,
    is_window,
)
from .recipes import RECIPES, default_recipe

DEFAULT_COMPARISON = ("vit", "resvit")
GATE_RATE = 5e-3  # the default of --gate-lr
NO_GATE: Literal["none"] = "none"
LARGEST_GATE = (2 - 2**-23) * 2.0**127  # in float32, in which gates are built

FINETUNE = """\
Fine-tune an image classifier, with or without residual self-attention, and
write a report.

DATA is a folder with one folder of images per class, or a folder with such
folders under train/ and test/ (and val/). Kaggle's brain MRI and blood cell
sets work as they unzip. Without DATA, the command uses scikit-learn's
handwritten digits; this takes about a minute. Splits that DATA lacks are
drawn at random: 20 % of the images for testing, 15 % for validation. The
weights after the last epoch are tested, unless you give --keep best.

Images can have any format that Pillow reads. DICOM and NIfTI files need
pip install 'rsattn[scans]'; of a volume, the slice in the middle is used. A
gray image with more than 8 bits per pixel gets the window of its header, or is
stretched on its own to 0 to 255; --window gives all of them one window
(docs/images.md).

examples:
  train on digits, in a minute:
    rsattn finetune
  train on your images, and keep near-identical ones in one split:
    rsattn finetune brain_tumor_dataset --groups phash
  train on CT slices in DICOM, in a soft tissue window, split by patient:
    rsattn finetune ct --window 40,400 --groups patient
  start from a pretrained ViT of timm:
    rsattn finetune slides --model vit_small_patch16_224 --patch
  train the classifier only, which is fast:
    rsattn finetune slides --freeze
  continue after Ctrl-C, a crash or a full disk:
    rsattn finetune --resume rsattn-runs/slides-resvit-0"""

FINETUNE_EPILOG = """\
recipes (--recipe NAME):
RECIPES_HERE

models (--model NAME):
  vit, resvit   ViT of pytorch_pretrained_vit, without and with residual
                attention (--size tiny, small or base)
  cnn           three convolutions with 32, 64 and 128 channels
  alexnet, resnet18
                the models of torchvision
  a timm name   such as vit_small_patch14_dinov2; --patch adds residual
                attention

more examples:
  repeat a run with another seed:
    rsattn finetune --config runs/a/config.json --seed 1 --out runs/b
  add epochs to a finished run:
    rsattn finetune --resume rsattn-runs/slides-resvit-0 --epochs 20
  start from the weights of a finished run, on other images:
    rsattn finetune cells --weights rsattn-runs/slides-resvit-0
  train on eight GPUs:
    torchrun --nproc-per-node 8 -m rsattn finetune slides --weights none

The run's folder (--out) holds report.html, metrics.json, predictions.csv,
checkpoints and logs (--logger). In CSV files, a name that starts
with = + - or @ gets a single quote in front, so that spreadsheets do not read
it as a formula. A file for --groups may have this quote or not.

exit codes: 0 done; 2 the command cannot do what was asked, and one line on
stderr says why; 130 after Ctrl-C"""
FINETUNE_EPILOG = FINETUNE_EPILOG.replace(
    "RECIPES_HERE",
    "\n".join(
        textwrap.fill(recipe.text, 79, initial_indent=f"  {name:<10}", subsequent_indent=12 * " ")
        for name, recipe in RECIPES.items()
    ),
)

COMPARE = """\
Train several models with several seeds on the same images, and compare their
accuracy: the paper's table for your own data.

Each seed draws its own test split, the same for all models, unless DATA has a
test split or you give --split-seed. With --folds K, each model is trained K
times, and every image is tested exactly once (cross-validation). Confidence
intervals come from resampling groups of images (--groups), so copies of one
photograph count once. Finished runs are kept: repeat the same command to
continue.

examples:
  rsattn compare slides --models vit resvit resnet18 --seeds 5 --groups phash
  rsattn compare slides --models vit resvit --folds 5 --groups patients.csv"""

COMPARE_EPILOG = """\
A model name can carry settings of its residual attention:
resvit:norm=confidence,merge=slot or resvit:init-values=0

exit codes: 0 all runs finished; 1 some runs failed; 2 the command cannot
start; 130 after Ctrl-C"""

PREDICT = """\
Classify images with a fine-tuned model. Writes predictions.csv with the class
and the probabilities of each image, and draws each image beside where the
model looks: for a model with residual attention, the attention that the
patches receive in the best head of the last block; for every model, the
Grad-CAM of the predicted class, which shows where features raise its logit.
Neither explains the decision. In predictions.csv, a name that starts with
= + - or @ gets a single quote in front, so that spreadsheets do not read it
as a formula.

examples:
  rsattn predict rsattn-runs/slides-resvit-0 new_images
  rsattn predict rsattn-runs/slides-resvit-0 a.png b.png --out somewhere"""


TEST = """\
Test a finished run on images from elsewhere, such as another hospital: an
external test. FOLDER has one folder of images per class, as for finetune; if
it has splits, all of them are tested. Writes the report of a test, with the
result beside that on the run's own test split, metrics.json, predictions.csv
and figures. The temperature and the thresholds are those of the run. Images of
one class are enough for its sensitivity.

examples:
  rsattn test rsattn-runs/slides-resvit-0 other_hospital
  class folders with other names, and one that the run does not know:
    rsattn test RUN other_hospital --map healthy=no tumor=yes artifact="""


EXPORT = """\
Write the tested model of a finished run as one file for other programs:
  onnx    for onnxruntime and other programs that read ONNX; needs
          pip install 'rsattn[export]'
  torch   for PyTorch, with torch.export.load
Neither needs rsattn where it is used.

The model takes images (batch, 3, S, S) in RGB, float32 from 0 to 1, and
returns the probability of each class, calibrated as in predictions.csv. The
normalization is inside. The file holds the names of the classes, S and how
images become square as metadata. It is kept only if its probabilities are
those of the run on its own test images.

examples:
  rsattn export rsattn-runs/slides-resvit-0 --format onnx
  rsattn export rsattn-runs/slides-resvit-0 --format torch --out slides.pt2"""

EXPORT_EPILOG = """\
how to use model.onnx in Python:
  import json, numpy, onnxruntime
  from PIL import Image
  session = onnxruntime.InferenceSession("model.onnx")
  said = session.get_modelmeta().custom_metadata_map
  side = int(said["image_size"])
  image = Image.open("a.png").convert("RGB")
  image = image.resize((side, side), Image.Resampling.BICUBIC)  # squash
  x = numpy.asarray(image, numpy.float32).transpose(2, 0, 1)[None] / 255
  probabilities = session.run(None, {"images": x})[0][0]
  print(dict(zip(json.loads(said["classes"]), probabilities)))

and model.pt2:
  files = {"metadata.json": ""}
  model = torch.export.load("model.pt2", extra_files=files).module()
  probabilities = model(torch.from_numpy(x))[0]"""


class Renamed(argparse.Action):
    """An earlier name of a switch, which still works and prints the new name."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, name: str | None = None
    ) -> None:
        print(f"{parser.prog}: {name} is now --{self.dest.replace('_', '-')}", file=sys.stderr)
        setattr(namespace, self.dest, True)


def add_finetune(commands: Any) -> None:
    parser = commands.add_parser(
        "finetune",
        usage="%(prog)s [DATA] [options]",
        help="fine-tune a classifier on a folder of images, and write a report",
        description=FINETUNE,
        epilog=FINETUNE_EPILOG,
        formatter_class=Help,
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="folder with one folder per class (default: digits)")
    parser.add_argument("--model", metavar="NAME", default="resvit", help="model to train, see below (default: resvit)")
    parser.add_argument(
        "--patch", action=argparse.BooleanOptionalAction, default=False, help="add residual attention to a timm model"
    )
    parser.add_argument(
        "--out", type=Path, metavar="RUN", help="folder of the run (default: rsattn-runs/DATA-MODEL-SEED)"
    )
    parser.add_argument(
        "--seed",
        type=_count,
        metavar="N",
        help="seed of the splits, the weights, the order of the images, dropout and augmentation (default: 0; with "
        "--fold: its number)",
    )
    parser.add_argument("--fold", type=_count, metavar="I", help="with --folds: the fold to test, from 0 to K-1")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="continue this run with the options it began with; --epochs N adds epochs to a finished run",
    )
    parser.add_argument(
        "--data", dest="moved", type=Path, metavar="FOLDER", help="with --resume: where the run's images are now"
    )
    add_shared(parser)


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The parsed command line `rsattn finetune WORDS`; an invalid one ends the process."""
    parser = ParserWithConfig(prog="rsattn")
    add_finetune(parser.add_subparsers())
    return parser.parse_args(["finetune", *words])


def add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        usage="%(prog)s [DATA] [--models MODEL ...] [--seeds K] [options]",
        help="train several models with several seeds, and compare them in a table",
        description=COMPARE,
        epilog=COMPARE_EPILOG,
        formatter_class=Help,
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="folder with one folder per class (default: digits)")
    parser.add_argument(
        "--models",
        nargs="+",
        default=DEFAULT_COMPARISON,
        metavar="MODEL",
        help="names as for rsattn finetune --model; the first is the baseline; NAME+patch adds residual attention to "
        "a timm model (default: vit resvit)",
    )
    parser.add_argument("--seeds", type=_positive, metavar="K", help="use the seeds 0 to K-1 (default: 5)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the runs and the report (default: rsattn-comparisons/DATA)",
    )
    add_shared(parser)


def add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="classify images with a fine-tuned model",
        description=PREDICT,
        formatter_class=Help,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CKPT", help="folder of a run, or a .ckpt or .safetensors file"
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help="image files, or folders of them")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for predictions.csv and the drawings (default: rsattn-predictions/CKPT-IMAGES)",
    )
    only_table = "write only predictions.csv, and draw no images"
    parser.add_argument("--no-overlays", action="store_true", help=only_table)
    parser.add_argument("--no-pictures", dest="no_overlays", action=Renamed, nargs=0, help=argparse.SUPPRESS)


def add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        usage="%(prog)s RUN --format onnx|torch [--out FILE]",
        help="write a fine-tuned model as one file of ONNX or PyTorch, which needs no rsattn",
        description=EXPORT,
        epilog=EXPORT_EPILOG,
        formatter_class=Help,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--format", choices=("onnx", "torch"), required=True, help="the kind of file")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="a new file (default: RUN/export/model.onnx or RUN/export/model.pt2)",
    )


def add_test(commands: Any) -> None:
    parser = commands.add_parser(
        "test",
        usage="%(prog)s RUN FOLDER [options]",
        help="test a fine-tuned model on images from elsewhere, and write a report",
        description=TEST,
        formatter_class=Help,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("images", type=Path, metavar="FOLDER", help="folder with one folder per class")
    parser.add_argument(
        "--map",
        dest="names",
        type=_renamed,
        nargs="+",
        action="extend",
        default=[],
        metavar="FOLDER=CLASS",
        help="class folders whose name differs from the class of the run; FOLDER= leaves a folder out",
    )
    parser.add_argument(
        "--groups",
        metavar="CSV|patient|folder|phash",
        help="groups of the images, such as patients, for the intervals and the results by group; as for finetune",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the results (default: rsattn-tests/RUN-FOLDER)"
    )


def _renamed(text: str) -> tuple[str, str]:
    name, equals, label = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not FOLDER=CLASS")
    return name, label


def add_shared(parser: argparse.ArgumentParser) -> None:
    """The options that `finetune` and `compare` share."""
    model = parser.add_argument_group("model")
    data = parser.add_argument_group("data")
    training = parser.add_argument_group("training", "The recipe sets the defaults of these options.")
    residual = parser.add_argument_group("residual attention")
    residual.add_argument("--norm", choices=NORMS, help="norm that ranks the heads (default: induced)")
    residual.add_argument(
        "--scope", choices=SCOPES, help="choose a best head per sample, or one for the whole batch (default: sample)"
    )
    residual.add_argument(
        "--merge",
        choices=MERGES,
        help="add the best head's output to all channels (tile), or only to its own (slot) (default: tile)",
    )
    residual.add_argument(
        "--full-width",
        action=argparse.BooleanOptionalAction,
        help="replace the attention by newly initialized attention with four heads as wide as the tokens, as in the "
        "code of the paper's authors",
    )
    residual.add_argument(
        "--init-values",
        type=_gate,
        metavar="NUMBER|none",
        help="initial value of the gate, the learnable factor of the residual; none: no gate, as in the paper "
        "(default: 0 with pretrained weights, so that the model starts as the one without a residual; none with "
        "random weights or --full-width)",
    )
    parser.add_argument(
        "--logger",
        nargs="+",
        choices=LOGGERS,
        help="where to log the training, one or more: csv and tensorboard are files in RUN/logs, wandb is Weights & "
        "Biases (offline with WANDB_MODE=offline), mlflow is a server (MLFLOW_TRACKING_URI) or the file "
        "RUN/logs/mlflow.db (default: csv tensorboard)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="read options from a YAML file or from the config.json of a run; options on the command line override it",
    )
    model.add_argument("--size", choices=CHOICES["size"], help="size of vit and resvit (default: base; digits: tiny)")
    model.add_argument(
        "--weights",
        metavar="PATH|pretrained|none",
        help="initial weights: a file, the folder of a run, the pretrained ones, or random ones (default: pretrained "
        "for alexnet, resnet18, timm models, and vit and resvit of size base; else none)",
    )
    model.add_argument(
        "--image-size",
        type=_positive,
        metavar="S",
        help="resize the images to S x S pixels (default: 128; digits: 32)",
    )
    data.add_argument(
        "--resize",
        choices=CHOICES["resize"],
        default="squash",
        help="how an image that is not square becomes square: squash it, pad it with black borders, or crop its middle "
        "(default: squash)",
    )
    data.add_argument(
        "--window",
        type=_window,
        metavar="CENTER,WIDTH",
        help="the values from black to white of images with more than 8 bits per pixel: DICOM, in its rescaled units, "
        "such as 40,400 for soft tissue in CT; NIfTI; 16-bit and floating-point PNG and TIFF (default: the window "
        "in the header of an image, or its smallest and largest value)",
    )
    training.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="see below (default: finetune with trained weights, scratch with random ones, probe with --freeze)",
    )
    training.add_argument(
        "--epochs",
        type=_positive,
        metavar="N",
        help="number of epochs (default: 12; probe: 30; scratch: 60; paper: 20)",
    )
    training.add_argument(
        "--least-steps",
        type=_count,
        metavar="N",
        help="train for more epochs where --epochs takes fewer than N steps (default: 0; finetune: 120; probe, "
        "scratch: 300; with --epochs: 0)",
    )
    training.add_argument(
        "--restarts",
        type=_positive,
        nargs="+",
        metavar="EPOCH",
        help="let the learning rate rise and fall again after these epochs; --resume RUN --epochs N does so (default: "
        "one rise and fall)",
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
        help="test the weights of the last epoch, or of the epoch with the lowest validation loss (default: last; best "
        "with --patience and in the recipe paper)",
    )
    training.add_argument(
        "--batch-size", type=_positive, metavar="N", help="images per step and device (default: 16; scratch: 32)"
    )
    training.add_argument(
        "--lr",
        type=_rate_or_auto,
        metavar="RATE|auto",
        help="learning rate; auto: try three, and keep the one with the lowest validation loss (default: 1e-3 for "
        "random weights, --freeze, cnn and resnet18; else, and for alexnet, 1e-4)",
    )
    training.add_argument(
        "--gate-lr",
        type=_rate,
        metavar="RATE",
        help=f"learning rate of the gates, which have no weight decay (default: {GATE_RATE:g})",
    )
    training.add_argument("--weight-decay", type=_rate, metavar="X", help="weight decay of AdamW (default: 0.05)")
    training.add_argument(
        "--layer-decay",
        type=_factor,
        metavar="FACTOR",
        help="multiply the learning rate by FACTOR for each layer below the classifier (default: 1; finetune: 0.75)",
    )
    training.add_argument(
        "--drop-path",
        type=_below_one,
        metavar="P",
        help="probability of stochastic depth, for timm models (default: 0; finetune: 0.1)",
    )
    training.add_argument(
        "--dropout",
        type=_below_one,
        metavar="P",
        help="probability of dropout, for vit and resvit (default: 0.1; scratch: 0)",
    )
    training.add_argument(
        "--warm-up",
        type=_share,
        metavar="SHARE",
        help="share of the steps in which the learning rate rises, from 0 to 1 (default: 0.1; paper: 0)",
    )
    training.add_argument(
        "--clip", type=_rate, metavar="NORM", help="largest gradient norm; 0: no limit (default: 1; paper: 0)"
    )
    training.add_argument(
        "--label-smoothing",
        type=_below_one,
        metavar="SHARE",
        help="label smoothing of the training loss (default: 0.1; probe, paper: 0)",
    )
    training.add_argument(
        "--head-first",
        action=argparse.BooleanOptionalAction,
        help="fit the classifier to frozen features before training (default: only in the recipe finetune, without "
        "--full-width)",
    )
    training.add_argument(
        "--augment",
        choices=CHOICES["augment"],
        help="random changes of the training images. small: shift, zoom, brightness and rotation up to 15 degrees; "
        "flip: also flips from left to right; mirror: also flips from top to bottom; rotate: also any angle, for cells "
        "and tissue (default: small, which is safe for anatomy; probe: none)",
    )
    training.add_argument(
        "--freeze",
        action=argparse.BooleanOptionalAction,
        help="train only the classifier, and with --full-width also the new attention; gates keep their initial value, "
        "and at 0 the residual adds nothing",
    )
    training.add_argument(
        "--class-weights",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="weight the classes in the loss by the inverse of their number of images",
    )
    data.add_argument(
        "--groups",
        metavar="CSV|patient|folder|phash",
        help="keep the images of a group in one split. CSV: a file with the columns file and group; patient: group "
        "DICOM files by PatientID, which the run does not store; folder: group the images of each folder inside the "
        "class folders (class/patient/image); phash: group near-identical images by a perceptual hash, which does not "
        "find the images of one patient (default: each image is its own group)",
    )
    data.add_argument(
        "--folds",
        type=_folds,
        metavar="K",
        help="divide the images into K test splits, with the classes in proportion and groups undivided, instead of "
        "drawing one at random; finetune tests one of them (--fold), compare all (default: no folds)",
    )
    data.add_argument(
        "--split-seed",
        type=_count,
        metavar="N",
        help="seed of the splits (default: that of the run), or of the folds (default: 0)",
    )
    data.add_argument(
        "--workers", type=_workers, default=0, metavar="N", help="number of processes that load images (default: 0)"
    )
    machine = parser.add_argument_group("machine", "These options are those of Lightning's Trainer.")
    machine.add_argument(
        "--precision",
        choices=("auto", *CHOICES["precision"]),
        help="auto: bf16-mixed where the device supports bfloat16 natively, else 32-true (default: 32-true; finetune, "
        "probe: auto)",
    )
    machine.add_argument(
        "--devices",
        default="auto",
        metavar="N",
        help="number of GPUs, or a list such as 0,1; without GPUs, number of processes (default: auto, all GPUs or one "
        "process)",
    )
    machine.add_argument(
        "--strategy", type=str.lower, metavar="NAME", default="auto", help="auto, ddp, fsdp, ... (default: auto)"
    )
    machine.add_argument(
        "--nodes", type=_positive, metavar="N", default=1, help="number of machines; torchrun sets it (default: 1)"
    )


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
        raise CommandError(
            f"--models {word}: unknown setting {setting!r}, expected {known}, init-values=NUMBER|none or full-width"
        )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**32 - 1")
    return int(text)


def _workers(text: str) -> int:
    most = 4 * (os.cpu_count() or 1)
    if _count(text) > most:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {most}, four times the number of CPU cores here")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    if int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is larger than 2**32 - 1")
    return int(text)


def _folds(text: str) -> int:
    if _positive(text) == 1:
        raise argparse.ArgumentTypeError("'1' is too few: cross-validation needs 2 folds or more")
    return int(text)


def _window(text: str) -> Window:
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        values = ()
    if not is_window(values):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not CENTER,WIDTH, two numbers such as 40,400 with a width above 0"
        )
    return values[0], values[1]


def _gate(text: str) -> float | Literal["none"]:
    if text == NO_GATE:
        return NO_GATE
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or none")
    if abs(value) > LARGEST_GATE:
        raise argparse.ArgumentTypeError(f"{text!r} is too large for float32")
    return value


def _rate_or_auto(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        value = _rate(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto or a number above 0") from None
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} trains nothing: expected auto, or a number above 0")
    return value


def _share(text: str) -> float:
    value = _rate(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _below_one(text: str) -> float:
    value = _share(text)
    if value == 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1, 1 excluded")
    return value


def _factor(text: str) -> float:
    value = _share(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1, 0 excluded")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number that is 0 or larger")
    return value
