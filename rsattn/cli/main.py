"""The command `rsattn`, also `python -m rsattn`. An error is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ..backends.dispatch import BACKENDS
from ..bench import command as bench
from ..contract import MERGES, NORMS, SCOPES
from ..finetune import arguments, commands
from ..finetune.config import ParserWithConfig
from . import demo, info
from .command import CommandError, shown, why
from .demo.inputs import PATCH

# The float64 check stores the N x N probabilities of every head: about 2 GB per copy at this size.
LARGEST_IMAGE = 1024

DESCRIPTION = """\
Residual self-attention for vision transformers: a norm of their attention ranks the heads, and the output of
the best head is added to the projected output (Sharma & Verma, arXiv 2306.01594)."""

DEMO = """\
Run a ViT-B/16 with residual self-attention on an image.

The command checks the output of each block against the same block in float64.
It prints one row per block: the best head, the range of the norms, the error,
and the time beside that of the original block. It writes one file to DIR,
residual-attention.png: the image, the norm of every head with the best heads
marked, and the attention maps of the best heads."""

DEMO_EPILOG = """\
examples:
  use an image of a retina and random weights:
    rsattn demo
  download the ImageNet weights (about 350 MB) and use them:
    rsattn demo --pretrained
  use your own image and weights:
    rsattn demo --image slide.png --weights B_16_imagenet1k.pth --out slide

exit codes: 0 every block is within its error budget; 1 a block is not; 2 the
command cannot do what was asked: one line on stderr says why, and nothing is
written"""


class Parser(ParserWithConfig):
    """An `ArgumentParser` whose error message is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_one_line(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default that of the process; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows ? instead
    given = parsed(argv)
    try:
        code = _run(given)
        sys.stdout.flush()  # here, so that a closed pipe is not mistaken for another error
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it exits
        return 141  # the exit code of a process that SIGPIPE ended
    except CommandError as error:
        print(f"rsattn {given.command}: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:  # such as a folder without permission
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"rsattn {given.command}: {_one_line(f'{place}{why(error)}')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(_one_line("; ".join([f"rsattn {given.command}: interrupted", *map(str, stop.args)])), file=sys.stderr)
        return 130


def _one_line(message: str) -> str:
    return shown(" ".join(message.splitlines()))


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line `argv`; an invalid one ends the process."""
    return _parser().parse_args(argv)


def _run(given: argparse.Namespace) -> int:
    match given.command:
        case "demo":
            return _demo(given)
        case "bench":
            return _bench(given)
        case "finetune":
            return commands.finetune(given)
        case "compare":
            return commands.compare(given)
        case "predict":
            return commands.predict(given)
    return info.run()


def _demo(given: argparse.Namespace) -> int:
    options = {name: value for name, value in vars(given).items() if name != "command"}
    return demo.run(demo.DemoOptions(**options))


def _bench(given: argparse.Namespace) -> int:
    options = {name: value for name, value in vars(given).items() if name != "command"}
    return bench.run(bench.BenchOptions(**options))


def _parser() -> Parser:
    parser = Parser(prog="rsattn", description=DESCRIPTION)
    subparsers = parser.add_subparsers(
        dest="command", required=True, metavar="info|demo|bench|finetune|compare|predict"
    )
    subparsers.add_parser(
        "info",
        help="print versions, devices and backends, and why a backend cannot run",
        description="Print the versions, the devices and the backends, and why a backend cannot run.",
    )
    _add_demo(
        subparsers.add_parser(
            "demo",
            help="run a ViT-B/16 with residual attention on an image, check it, and draw attention maps",
            description=DEMO,
            epilog=DEMO_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    bench.add(subparsers)
    arguments.add_finetune(subparsers)
    arguments.add_compare(subparsers)
    arguments.add_predict(subparsers)
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", type=Path, metavar="PATH", help="input image (default: the retina of scikit-image)")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="file with a state_dict of the ViT-B/16 of pytorch_pretrained_vit; the position embeddings are resized to "
        "the image, and the classifier is not used (default: random weights)",
    )
    weights.add_argument("--pretrained", action="store_true", help="download and use the ImageNet weights")
    parser.add_argument(
        "--image-size",
        type=_image_size,
        default=224,
        metavar="S",
        help=f"size of the input square in pixels, a multiple of {PATCH} up to {LARGEST_IMAGE} (default: 224)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("rsattn-demo"),
        metavar="DIR",
        help="folder for the PNG file (default: rsattn-demo)",
    )
    parser.add_argument("--norm", choices=NORMS, default="induced", help="norm that ranks the heads (default: induced)")
    parser.add_argument(
        "--scope",
        choices=SCOPES,
        default="sample",
        help="choose a best head per sample, or one for the whole batch; no difference for one image (default: sample)",
    )
    parser.add_argument(
        "--merge",
        choices=MERGES,
        default="tile",
        help="add the best head's output to all channels (tile), or only to its own (slot) (default: tile)",
    )
    parser.add_argument(
        "--backend", choices=tuple(BACKENDS), help="backend to use (default: the fastest one available)"
    )
    parser.add_argument("--seed", type=_seed, default=0, help="seed of the random weights (default: 0)")


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**63 - 1")
    return int(text)


def _image_size(text: str) -> int:
    size = int(text) if text.isdecimal() else 0
    if not 0 < size <= LARGEST_IMAGE or size % PATCH:
        raise argparse.ArgumentTypeError(f"{text!r} is not a multiple of {PATCH} from {PATCH} to {LARGEST_IMAGE}")
    return size
