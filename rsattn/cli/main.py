"""The command `rsattn`, also `python -m rsattn`. An error is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import rsattn

from ..backends.dispatch import BACKENDS
from ..bench import command as bench
from ..contract import MERGES, NORMS, SCOPES
from ..finetune import arguments, commands
from ..finetune.config import ParserWithConfig
from . import demo, info
from .command import CommandError, shown, why
from .demo.inputs import PATCH
from .help import Help
from .suggestions import unrecognized, with_closest_choice

# The float64 check stores the N x N probabilities of every head: about 2 GB per copy at this size.
LARGEST_IMAGE = 1024

DESCRIPTION = """\
Residual self-attention for vision transformers: a norm of their attention ranks the heads, and the output of
the best head is added to the projected output (Sharma & Verma, arXiv 2306.01594)."""

DEMO = """\
Train a small ViT with residual self-attention to read a digit on a fundus
photograph, and show where its heads look.

Training takes about a minute, once: the trained model is kept in
~/.cache/rsattn, or $XDG_CACHE_HOME/rsattn. With --pretrained or --weights the
model is ViT-B/16 instead, and the image a fundus photograph or your own.

Each block's output is checked against the same block in float64. The terminal
shows a row per block: its best head, the spread of its heads' norms, its
error, its time beside the library's own block. DIR gets a figure,
residual-attention.png: the image, the norm of every head with the winners
marked, and where the winners look."""

DEMO_EPILOG = """\
examples:
  rsattn demo               the small ViT; writes
                            rsattn-demo/residual-attention.png
  rsattn demo --pretrained  ViT-B/16 with ImageNet weights, downloaded once
                            (about 350 MB)
  rsattn demo --image slide.png --weights B_16_imagenet1k.pth --out slide

exit codes: 0 every block is within its error budget; 1 a block is not; 2 the
command cannot do what was asked: one line on stderr says why, and nothing is
written"""


class Parser(ParserWithConfig):
    """An `ArgumentParser` whose error message is one line."""

    def error(self, message: str) -> NoReturn:
        _complain(f"{self.prog}: {with_closest_choice(message)} (see {self.prog} --help)")
        self.exit(2)


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
        _complain(f"rsattn {given.command}: {error}")
        return 2
    except OSError as error:  # such as a folder without permission
        place = "" if error.filename is None else f"{error.filename}: "
        _complain(f"rsattn {given.command}: {place}{why(error)}")
        return 2
    except KeyboardInterrupt as stop:
        _complain("; ".join([f"rsattn {given.command}: interrupted", *map(str, stop.args)]))
        return 130


def _complain(message: str) -> None:
    """Print an error as one line; a terminal narrower than the line gets breaks between words."""
    line = shown(" ".join(message.splitlines()))
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
    print(line, file=sys.stderr)


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line `argv`; an invalid one ends the process."""
    parser, of_command = _parsers()
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        of_command[given.command].error(unrecognized(unknown, of_command[given.command]._option_string_actions))
    return given


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
        case "test":
            return commands.test(given)
        case "export":
            return commands.export(given)
    return info.run()


def _demo(given: argparse.Namespace) -> int:
    options = {name: value for name, value in vars(given).items() if name != "command"}
    return demo.run(demo.DemoOptions(**options))


def _bench(given: argparse.Namespace) -> int:
    options = {name: value for name, value in vars(given).items() if name != "command"}
    return bench.run(bench.BenchOptions(**options))


def _parsers() -> tuple[Parser, Mapping[str, argparse.ArgumentParser]]:
    """The parser of the command line, and those of the single commands."""
    parser = Parser(prog="rsattn", description=DESCRIPTION, epilog="rsattn COMMAND --help describes a command.")
    parser.add_argument("--version", action="version", version=f"rsattn {rsattn.__version__}")
    subparsers = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="info|demo|bench|finetune|compare|predict|test|export"
    )
    subparsers.add_parser(
        "info",
        help="print versions, devices and backends, and why a backend cannot run",
        description="Print the versions, the devices and the backends, and why a backend cannot run. Then import the "
        "packages of each command, which takes some seconds, and print what is missing or broken and how to mend it.",
    )
    _add_demo(
        subparsers.add_parser(
            "demo",
            help="train a small ViT with it, check every block, draw where the heads look",
            description=DEMO,
            epilog=DEMO_EPILOG,
            formatter_class=Help,
        )
    )
    bench.add(subparsers)
    arguments.add_finetune(subparsers)
    arguments.add_compare(subparsers)
    arguments.add_predict(subparsers)
    arguments.add_test(subparsers)
    arguments.add_export(subparsers)
    return parser, subparsers.choices


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image", type=Path, metavar="PATH", help="an image for ViT-B/16 (default: scikit-image's retina)"
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="a state_dict of pytorch_pretrained_vit's ViT-B/16 in a torch file; its position embeddings are "
        "resized to the image, its classifier is not used",
    )
    weights.add_argument("--pretrained", action="store_true", help="download and use the ImageNet weights")
    parser.add_argument(
        "--image-size",
        type=_image_size,
        metavar="S",
        help=f"side of the square ViT-B/16 sees, a multiple of {PATCH} up to {LARGEST_IMAGE} (default: 224)",
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
        help="choose a best head per sample, or one for the whole batch (default: sample)",
    )
    parser.add_argument("--merge", choices=MERGES, default="tile", help="how the best head is added (default: tile)")
    parser.add_argument("--backend", choices=tuple(BACKENDS), help="default: the fastest that runs here")
    parser.add_argument("--seed", type=_seed, default=0, help="of the small ViT's training (default: 0)")


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**63 - 1")
    return int(text)


def _image_size(text: str) -> int:
    size = int(text) if text.isdecimal() else 0
    if not 0 < size <= LARGEST_IMAGE or size % PATCH:
        raise argparse.ArgumentTypeError(f"{text!r} is not a multiple of {PATCH} from {PATCH} to {LARGEST_IMAGE}")
    return size
