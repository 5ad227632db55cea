"""`python -m bench.report`: rebuild the tables and plots of the documents from the result files.

    python -m bench.report                    rewrite README.md, docs/speed.md and bench/README.md, and the plots
    python -m bench.report --show FILE ...    print the tables of these runs of one machine and change no file

A table stands between `<!-- bench DEVICE TABLE -->` and `<!-- end -->`; DEVICE is cpu or gpu. A table without results
says so.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from . import floors, in_short, plots, tables, targets
from .results import Run, committed, read

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "speed.md", ROOT / "bench" / "README.md")
MARK = re.compile(r"(<!-- bench (cpu|gpu) ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
FINE_TUNED = (197, 577)  # the lengths of a ViT-B/16 at 224 and at 384 pixels
KINDS = {"cpu": "cpu", "gpu": "cuda"}
NOT_IN_THESE_RUNS = (
    "**Not measured yet**: no committed run has this. `rsattn bench` measures it, and `python -m bench.report` then "
    "fills this table in."
)


def everything(runs: Sequence[Run]) -> str:
    """All tables of these runs in Markdown."""
    parts = [tables.heading(runs), "Columns without a unit are multiples of rsattn's time: above 1, rsattn is faster."]
    for name, table in {**tables.TABLES, "times of other cases": tables.other_times}.items():
        if text := table(runs):
            parts += [f"## {name}", text]
    return "\n\n".join(parts) + "\n"


def summary(runs: Sequence[Run]) -> str:
    """The tables that fit in a terminal, in Markdown."""
    parts = [tables.heading(runs)]
    parts += [
        "The last two columns are multiples of rsattn's time: above 1, rsattn is faster. SDPA, PyTorch's own "
        "attention, computes no norms."
    ]
    parts += [tables.brief(runs, kind) for kind in ("attention", "block", "model")]
    parts += [tables.slopes(runs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def filled(text: str) -> str:
    """The document with its tables rebuilt."""
    results = {name: list(committed(kind).values()) for name, kind in KINDS.items()}

    def between_marks(found: re.Match[str]) -> str:
        device, name = found[2], found[3]
        match name:
            case "floors":
                parts = [floors.table()]
            case "in short":
                parts = [in_short.table(results[device]) or NOT_IN_THESE_RUNS]
            case _:
                parts = _of_every_machine(device, name, results[device]) or [targets.NOT_MEASURED]
        return f"{found[1]}\n" + "\n\n".join(parts) + f"\n\n{found[4]}"

    return MARK.sub(between_marks, text)


def _of_every_machine(device: str, name: str, results: Sequence[list[Run]]) -> list[str]:
    """The table of each machine that has it, under the machine's name if there are several machines."""
    found = {runs[0].machine["device"]: text for runs in results if (text := _table(device, name, runs))}
    if name == "heading" or len(results) < 2:
        return list(found.values()) or [NOT_IN_THESE_RUNS] * bool(results)
    return [part for machine, text in found.items() for part in (f"{machine}:", text)] or [NOT_IN_THESE_RUNS]


def _table(device: str, name: str, runs: list[Run]) -> str:
    match name:
        case "heading":
            return tables.heading(runs)
        case "targets":
            return targets.table(runs, targets.GPU if device == "gpu" else targets.CPU)
        case "fine tuning":
            return tables.attention(runs, FINE_TUNED)
    return tables.TABLES[name](runs)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show", type=Path, nargs="+", metavar="FILE", help="print the tables of these runs and exit")
    given = parser.parse_args()
    if given.show:
        print(everything([read(path) for path in given.show]), end="")
        return
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text()))
    for kind in KINDS.values():
        for runs in list(committed(kind).values())[-1:]:  # one machine is enough to show the growth
            for path in plots.write(runs, ROOT / "docs" / kind):
                print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
