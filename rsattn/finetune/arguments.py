"""The command lines of `rsattn finetune` and the commands on its runs. It imports no slow modules."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli.help import Help
from .argument_types import count, positive, renamed
from .chosen_options import DEFAULT_COMPARISON
from .config import ParserWithConfig
from .recipes import RECIPES
from .shared_arguments import Renamed, add_shared

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
    rsattn finetune --config runs/a --seed 1 --out runs/b
  add epochs to a finished run, up to 20 in all:
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
        type=count,
        metavar="N",
        help="seed of the splits, the weights, the order of the images, dropout and augmentation (default: 0; with "
        "--fold: its number)",
    )
    parser.add_argument("--fold", type=count, metavar="I", help="with --folds: the fold to test, from 0 to K-1")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="continue this run with the options it began with; --epochs N adds epochs to a finished "
        "run, up to N in all",
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
    parser.add_argument("--seeds", type=positive, metavar="K", help="use the seeds 0 to K-1 (default: 5)")
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
        type=renamed,
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
