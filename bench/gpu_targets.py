"""What the GPU kernels are meant to reach, beside what they did."""

from __future__ import annotations

from collections.abc import Sequence

from . import peers
from .results import Run
from .shapes import Shape
from .tables import best_sdpa

NOT_MEASURED = (
    "**Not measured yet**: no GPU has run this. `bash bench/gpu_visit.sh`, on a machine that has one, tests, times and "
    "leaves its files in bench/results/; `python -m bench.report` then fills this in."
)

# (B,H,N,E) -> most of forward / best SDPA, least of (best SDPA + flash-colreduce) / forward, most of forward +
# backward / best SDPA's; then least of eager / ours, forward and forward + backward.
TARGETS: dict[Shape, tuple[float | None, float | None, float | None, float | None, float | None]] = {
    Shape(64, 12, 197, 64): (0.90, 1.8, 1.0, None, None),
    Shape(64, 12, 257, 64): (0.95, 1.8, 1.0, None, None),
    Shape(32, 12, 577, 64): (1.15, 1.5, 1.1, None, None),
    Shape(32, 16, 1025, 64): (1.3, 1.3, 1.15, None, None),
    Shape(4, 12, 4096, 64): (1.5, 1.2, 1.2, None, None),
    Shape(16, 4, 65, 768): (None, None, None, 3.0, 2.0),
}
NAMES = (
    "forward / best SDPA",
    "(best SDPA + flash-colreduce) / forward",
    "forward + backward / best SDPA's",
    "eager / forward",
    "eager / forward + backward",
)
AT_MOST = (True, False, True, False, False)


def targets(runs: Sequence[Run]) -> str:
    """A row for each shape and ratio: what was reached, what was meant, in bfloat16."""
    lines = ["| (B,H,N,E) | ratio | reached | meant | |", "|---|---|---|---|---|"]
    for shape, meant in TARGETS.items():
        for name, at_most, limit, values in zip(NAMES, AT_MOST, meant, _reached(runs, shape)):
            if limit is None:
                continue
            words = f"{'<=' if at_most else '>='} {limit}"
            if not values:
                lines.append(f"| {shape} | {name} | not measured | {words} | |")
                continue
            met = all(value <= limit if at_most else value >= limit for value in values)
            low, high = f"{min(values):.2f}", f"{max(values):.2f}"
            reached = low if low == high else f"{low} to {high}"
            lines.append(f"| {shape} | {name} | {reached} | {words} | {'yes' if met else 'no'} |")
    return "\n".join(lines)


def _reached(runs: Sequence[Run], shape: Shape) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in NAMES]
    for run in runs:
        records = {record.case.train: record for record in run.of("attention") if record.case.shape == shape}
        for train, record in records.items():
            ours = record.median(peers.RSATTN)
            sdpa = record.median(best_sdpa(record)) if best_sdpa(record) in record.seconds else None
            if sdpa is not None:
                found[2 if train else 0].append(ours / sdpa)
            if not train and sdpa is not None and peers.NORMS_ALONE in record.seconds:
                found[1].append((sdpa + record.median(peers.NORMS_ALONE)) / ours)
            if peers.EAGER in record.seconds:
                found[4 if train else 3].append(record.median(peers.EAGER) / ours)
    return found
