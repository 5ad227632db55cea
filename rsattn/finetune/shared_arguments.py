"""The arguments that `rsattn finetune` and `rsattn compare` share."""

from __future__ import annotations

import argparse
import sys

from ..contract import MERGES, NORMS, SCOPES
from .argument_types import (
    below_one,
    config,
    count,
    factor,
    folds,
    gate,
    positive,
    rate,
    rate_or_auto,
    share,
    window,
    workers,
)
from .chosen_options import GATE_RATE
from .options import CHOICES, LOGGERS
from .recipes import RECIPES


class Renamed(argparse.Action):
    """An earlier name of a switch, which still works and prints the new name."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, name: str | None = None
    ) -> None:
        print(f"{parser.prog}: {name} is now --{self.dest.replace('_', '-')}", file=sys.stderr)
        setattr(namespace, self.dest, True)


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
        type=gate,
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
        type=config,
        metavar="FILE|RUN",
        help="read options from a YAML file, or those of an earlier run from its folder; options on the command line "
        "override them",
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
        type=positive,
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
        type=window,
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
        type=positive,
        metavar="N",
        help="number of epochs (default: 12; probe: 30; scratch: 60; paper: 20)",
    )
    training.add_argument(
        "--least-steps",
        type=count,
        metavar="N",
        help="train for more epochs where --epochs takes fewer than N steps (default: 0; finetune: 120; probe, "
        "scratch: 300; with --epochs: 0)",
    )
    training.add_argument(
        "--restarts",
        type=positive,
        nargs="+",
        metavar="EPOCH",
        help="let the learning rate rise and fall again after these epochs; --resume RUN --epochs N does so (default: "
        "one rise and fall)",
    )
    training.add_argument(
        "--patience",
        type=count,
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
        "--batch-size", type=positive, metavar="N", help="images per step and device (default: 16; scratch: 32)"
    )
    training.add_argument(
        "--lr",
        type=rate_or_auto,
        metavar="RATE|auto",
        help="learning rate; auto: try three, and keep the one with the lowest validation loss (default: 1e-3 for "
        "random weights, --freeze, cnn and resnet18; else, and for alexnet, 1e-4)",
    )
    training.add_argument(
        "--gate-lr",
        type=rate,
        metavar="RATE",
        help=f"learning rate of the gates, which have no weight decay (default: {GATE_RATE:g})",
    )
    training.add_argument("--weight-decay", type=rate, metavar="X", help="weight decay of AdamW (default: 0.05)")
    training.add_argument(
        "--layer-decay",
        type=factor,
        metavar="FACTOR",
        help="multiply the learning rate by FACTOR for each layer below the classifier (default: 1; finetune: 0.75)",
    )
    training.add_argument(
        "--drop-path",
        type=below_one,
        metavar="P",
        help="probability of stochastic depth, for timm models (default: 0; finetune: 0.1)",
    )
    training.add_argument(
        "--dropout",
        type=below_one,
        metavar="P",
        help="probability of dropout, for vit and resvit (default: 0.1; scratch: 0)",
    )
    training.add_argument(
        "--warm-up",
        type=share,
        metavar="SHARE",
        help="share of the steps in which the learning rate rises, from 0 to 1 (default: 0.1; paper: 0)",
    )
    training.add_argument(
        "--clip", type=rate, metavar="NORM", help="largest gradient norm; 0: no limit (default: 1; paper: 0)"
    )
    training.add_argument(
        "--label-smoothing",
        type=below_one,
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
        type=folds,
        metavar="K",
        help="divide the images into K test splits, with the classes in proportion and groups undivided, instead of "
        "drawing one at random; finetune tests one of them (--fold), compare all (default: no folds)",
    )
    data.add_argument(
        "--split-seed",
        type=count,
        metavar="N",
        help="seed of the splits (default: that of the run), or of the folds (default: 0)",
    )
    data.add_argument(
        "--workers", type=workers, default=0, metavar="N", help="number of processes that load images (default: 0)"
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
        "--nodes", type=positive, metavar="N", default=1, help="number of machines; torchrun sets it (default: 1)"
    )
