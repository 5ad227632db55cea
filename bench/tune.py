"""`python -m bench.tune`: time the usable rows of candidates.json on this GPU and rewrite kernels/configs.json.

    python -m bench.tune --only stream_forward     only the slots whose name contains this
    python -m bench.tune --dry-run                 print before and after, write nothing

Each candidate is checked against float64 before it is timed. The candidates of a slot run in turns with the shipped
row. The fastest replaces it, as a row for this GPU's architecture, if it is faster by at least `WORTH`. Afterwards run
the tests, `python -m rsattn.kernels.resources --write` and the benchmarks.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from rsattn.kernels import configs, launch
from rsattn.kernels.configs import Config

from . import baselines, candidates, clock
from .candidates import Slot, first_in_the_table
from .cases import Case
from .inputs import Inputs, checker
from .shapes import Shape

CONFIGS = Path(configs.__file__).with_name("configs.json")
WORTH = 0.02  # a smaller difference is noise
SECONDS = 1.0
BACKWARD = ("row_backward", "square_backward", "query_gradient", "key_value_gradient")


def usable(slot: Slot, arch: str) -> list[Config]:
    """The slot's candidates that need no local memory, as rows for an architecture."""
    good = {row for row, cost in candidates.committed() if cost.usable}
    return [replace(row, arch=arch) for row in slot.candidates() if row in good]


def shipped(slot: Slot, arch: str) -> Config:
    """The row that the slot's calls use now."""
    row = configs.find(slot.row.kernel, arch, slot.row.itemsize, slot.head_dim, slot.length, dropout=False)
    if row is None:
        raise SystemExit(f"configs.json has no row for {slot.name} on {arch}")
    return row


def fastest(slot: Slot, device: torch.device, arch: str) -> tuple[Config, float, float]:
    """The fastest row, its seconds and the shipped row's seconds, for the launches that use the slot's kernel."""
    train = slot.row.kernel in BACKWARD
    case = Case("attention", Shape(slot.batch, slot.heads, slot.length, slot.head_dim), "bfloat16", train)
    inputs = Inputs.random(case, device)
    check = checker(inputs.oracle(), train)
    step = inputs.step(baselines.rsattn_default)
    now = shipped(slot, arch)
    rows = {"shipped": now} | {str(index): row for index, row in enumerate(usable(slot, arch)) if row != now}
    timers = {}
    for name, row in rows.items():
        call = _with_row(row, step)
        try:
            check(name, call(0))
            timers[name] = clock.timer(clock.Variant(call), device, len(inputs.sets))
        except Exception as error:  # Triton's errors have no common base class
            if name == "shipped":
                raise
            print(f"  left out {_sizes(row)}: {str(error).splitlines()[0]}")
    times = clock.interleave(timers, len(inputs.sets), SECONDS)
    medians = {name: statistics.median(own) for name, own in times.items()}
    for name in sorted(medians, key=medians.__getitem__):
        print(f"  {1e6 * medians[name]:9.1f} us  {_sizes(rows[name])}{'  (shipped)' if name == 'shipped' else ''}")
    best = min(medians, key=medians.__getitem__)
    return rows[best], medians[best], medians["shipped"]


def improvements(
    slots: Iterable[Slot], measure: Callable[[Slot], tuple[Config, float, float]]
) -> Iterator[tuple[list[Config], str]]:
    """The new table and the gain, after each slot for which `measure` (see `fastest`) found a better row."""
    table = list(configs.table())
    for slot in slots:
        print(f"{slot.name}; at {slot.batch},{slot.heads},{slot.length},{slot.head_dim}", flush=True)
        row, seconds, before = measure(slot)
        if seconds < (1 - WORTH) * before:
            table = replaced(table, slot, row)
            yield table, f"{slot.name}: {1e6 * before:.1f} -> {1e6 * seconds:.1f} us"


def replaced(table: Sequence[Config], slot: Slot, row: Config) -> list[Config]:
    """The table with this row for the slot on the row's architecture.

    The row takes the place of the old row for the same calls, or comes before all rows that serve other architectures
    too.
    """
    kept = [old for old in table if not _same_calls(old, row)]
    first = next(
        (index for index, old in enumerate(kept) if old.kernel == row.kernel and _takes_calls_of(old, slot, row.arch)),
        len(kept),
    )
    return [*kept[:first], row, *kept[first:]]


def write(table: Sequence[Config], path: Path = CONFIGS) -> None:
    path.write_text("[\n" + ",\n".join(f"  {json.dumps(asdict(row))}" for row in table) + "\n]\n")


def _same_calls(old: Config, new: Config) -> bool:
    fields = ("kernel", "arch", "itemsize", "max_width", "max_keys", "dropout")
    return all(getattr(old, field) == getattr(new, field) for field in fields)


def _takes_calls_of(old: Config, slot: Slot, arch: str) -> bool:
    return old.fits(slot.row.kernel, arch, slot.row.itemsize, slot.head_dim, slot.length, dropout=False)


def _with_row(row: Config, step: Callable[[int], Any]) -> Callable[[int], Any]:
    def call(index: int) -> Any:
        with first_in_the_table([row]):
            return step(index)

    return call


def _sizes(row: Config) -> str:
    return (
        f"block_m {row.block_m}, block_n {row.block_n}, block_e {row.block_e}, warps {row.warps}, stages {row.stages}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="tune only the slots whose name contains this")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("tuning needs a GPU; python -m bench.candidates reports what can be found without one")
    device = torch.device("cuda")
    arch = launch.architecture(torch.zeros(1, device=device).device)
    slots = [slot for slot in candidates.SLOTS if given.only in slot.name]
    changes = []
    for table, words in improvements(slots, lambda slot: fastest(slot, device, arch)):
        changes.append(words)
        if not given.dry_run:
            write(table)
    print("\n".join(changes) or "no candidate was faster by enough to change a row")


if __name__ == "__main__":
    main()
