"""The performance targets, and the measurements next to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from . import baselines
from .kinds import ceilings, gate, overhead, packed, received
from .kinds.ranking import NO_RANKING, WITH_RESIDUAL
from .results import Record, Run
from .shapes import Shape
from .tables import PASS, best_sdpa, between

NOT_MEASURED = (
    "**The full suite has not run on a GPU yet.** `bash bench/gpu_visit.sh FOLDER` runs it on a machine with a GPU and "
    "writes the result files to bench/results/; `python -m bench.report` then fills this table in."
)


@dataclass(frozen=True)
class Target:
    """A ratio with a limit.

    Attributes:
        value: the ratio in one run; None if it was not measured.
        at_most: whether the limit is an upper limit; otherwise it is a lower one.
    """

    words: str
    value: Callable[[Run], float | None]
    limit: float
    at_most: bool = False


def table(runs: Sequence[Run], targets: Sequence[Target]) -> str:
    """A row for each target: the measured range, the target, and whether every run meets it."""
    lines = ["| | measured | target | met |", "|---|---|---|---|"]
    for target in targets:
        values = [value for run in runs if (value := target.value(run)) is not None]
        goal = f"{'<=' if target.at_most else '>='} {target.limit}"
        if values:
            met_by = [value <= target.limit if target.at_most else value >= target.limit for value in values]
            met = "yes" if all(met_by) else "in some runs" if any(met_by) else "no"
            lines.append(f"| {target.words} | {between(values)} | {goal} | {met} |")
        else:
            lines.append(f"| {target.words} | not measured | {goal} | |")
    return "\n".join(lines)


Seconds = Callable[[Record], float | None]


def ratio(
    kind: str, length: int, dtype: str, train: bool, above: Seconds, below: Seconds, detail: str = ""
) -> Callable[[Run], float | None]:
    """The ratio of two times of the case with this kind, length, dtype, pass and detail."""

    def value(run: Run) -> float | None:
        for record in run.of(kind):
            case = record.case
            if (case.shape.length, case.dtype, case.train, case.detail) == (length, dtype, train, detail):
                top, bottom = above(record), below(record)
                return None if top is None or bottom is None else top / bottom
        return None

    return value


def named(name: str) -> Seconds:
    return lambda record: record.median(name) if name in record.seconds else None


def sdpa(record: Record) -> float | None:
    return named(best_sdpa(record))(record)


def sdpa_and(name: str) -> Seconds:
    """The time of the fastest SDPA plus that variant's."""

    def seconds(record: Record) -> float | None:
        attention, other = sdpa(record), named(name)(record)
        return None if attention is None or other is None else attention + other

    return seconds


def better_of_sdpa_and_eager(record: Record) -> float | None:
    return min((s for s in (sdpa(record), named(baselines.EAGER)(record)) if s is not None), default=None)


ours, cuda, eager = named(baselines.RSATTN), named(baselines.CUDA), named(baselines.EAGER)
sdpa_and_norms = sdpa_and(baselines.NORMS_ALONE)


def added(length: int, dtype: str, block: bool) -> Callable[[Run], float | None]:
    """The time of norms, best head and residual, over attention without them or over the whole block."""

    def value(run: Run) -> float | None:
        pairs = {(r.case.shape.length, r.case.dtype): r for r in run.of("ranking") if r.case.model}
        blocks = {(r.case.shape.length, r.case.dtype): r for r in run.of("block") if not r.case.train}
        pair, whole = pairs.get((length, dtype)), blocks.get((length, dtype))
        if pair is None or (block and whole is None):
            return None
        within = whole.median(baselines.RSATTN) if block and whole else pair.median(NO_RANKING)
        return (pair.median(WITH_RESIDUAL) - pair.median(NO_RANKING)) / within

    return value


def of_the_ceiling(run: Run, record: Record | None, amount: float, ceiling: str, most: float) -> float | None:
    """The rate of rsattn over the rate of the ceiling, in the same run."""
    found = [of for of in run.of("ceilings") if record and of.case.dtype == record.case.dtype]
    if not record or not found:
        return None
    return amount / record.median(baselines.RSATTN) / (most / min(found[0].seconds[ceiling]))


def products_at_577(run: Run) -> float | None:
    record = _case(run, 577, "float32")
    amount = record.case.shape.flops(False) if record else 0
    most = ceilings.flops(run.of("ceilings")[0].case) if run.of("ceilings") else 1
    return of_the_ceiling(run, record, amount, ceilings.PRODUCT, most)


def bytes_at_197(run: Run) -> float | None:
    record = _case(run, 197, "bfloat16")
    amount = record.case.shape.bytes(False, record.case.itemsize) if record else 0
    return of_the_ceiling(run, record, amount, ceilings.COPY, 2 * ceilings.COPIED)


def probabilities_saved(run: Run) -> float | None:
    """Peak memory of eager minus rsattn, training the ViT at 384 pixels, in units of P of all its blocks."""
    for record in run.of("model"):
        if (
            record.case.train
            and record.case.shape.length == 577
            and {baselines.RSATTN, baselines.EAGER} <= set(record.peaks)
        ):
            saved = record.peaks[baselines.EAGER] - record.peaks[baselines.RSATTN]
            return saved / (12 * record.case.shape.probabilities(record.case.itemsize))
    return None


def _case(run: Run, length: int, dtype: str) -> Record | None:
    for record in run.of("attention"):
        if (record.case.shape.length, record.case.dtype, record.case.train) == (length, dtype, False):
            return record
    return None


def _received(device: torch.device) -> list[Target]:
    without, alone = named(received.WITHOUT), named(received.ALONE)
    found = []
    for case in received.cases(device):
        of = partial(ratio, "received", case.shape.length, case.dtype, False, detail=case.detail)
        words = f"N = {case.shape.length}: {case.dtype} forward"
        if case.detail == received.COST:
            cost, share = of(ours, without), of(alone, without)
            found += [
                Target(f"{words}, with attention received / without", cost, received.AT_MOST, at_most=True),
                Target(f"{words}, attention received alone / without", share, received.ALONE_AT_MOST, at_most=True),
            ]
        else:
            words += ", (SDPA + eager attention received) / with"
            found.append(Target(words, of(sdpa_and(received.EAGER_ALONE), ours), received.AT_LEAST))
    return found


def _cpu() -> list[Target]:
    found = []
    for length in (197, 577):
        for words, dtype, train, limit in (
            ("float32 forward, SDPA / rsattn", "float32", False, 1.5),
            ("float32 forward + backward, the better of SDPA and eager / rsattn", "float32", True, 1.4),
            ("bfloat16 forward, the better of SDPA and eager / rsattn", "bfloat16", False, 2.0),
            ("bfloat16 forward + backward, the better of SDPA and eager / rsattn", "bfloat16", True, 2.0),
        ):
            other = sdpa if "SDPA /" in words else better_of_sdpa_and_eager
            found.append(Target(f"N = {length}: {words}", ratio("attention", length, dtype, train, other, ours), limit))
        for dtype in ("float32", "bfloat16"):
            cost = added(length, dtype, block=False)
            words = f"N = {length}: {dtype}, what norms, best head and residual add to attention alone"
            found.append(Target(words, cost, 0.05, at_most=True))
            every = ratio("threads", length, dtype, False, named("rsattn, 1 thread"), named("rsattn, all threads"))
            found.append(Target(f"N = {length}: {dtype}, two threads over one", every, 1.8))
    found.append(Target("N = 577: float32 forward, rate / a large matrix product's", products_at_577, 1.0))
    whole = ratio("model", 577, "float32", False, named(baselines.SDPA), ours)
    found.append(Target("ViT-B/16 at 384, on SDPA / patched", whole, 1.0))
    of_packed = partial(ratio, "packed", 197, train=True, below=ours, detail=packed.ALONE)
    for words, value, limit in (
        ("float32 forward + backward, SDPA / rsattn", of_packed(dtype="float32", above=sdpa), 1.5),
        ("bfloat16 forward + backward, eager / rsattn", of_packed(dtype="bfloat16", above=eager), 1.3),
    ):
        found.append(Target(f"N = 197, packed: {words}", value, limit))
    for case in (case for case in gate.cases(torch.device("cpu")) if case.model in gate.TARGETED):
        cost = ratio("gate", case.shape.length, case.dtype, case.train, ours, named(gate.UNGATED))
        words = f"N = {case.shape.length}: {case.dtype} {PASS[case.train]} of the residual, gated / ungated"
        found.append(Target(words, cost, gate.AT_MOST, at_most=True))
    found += _received(torch.device("cpu"))
    for case in overhead.cases(torch.device("cpu")):
        baseline = named(overhead.baseline(case))
        host = ratio("overhead", case.shape.length, case.dtype, case.train, ours, baseline, case.detail)
        words = f"host time, {overhead.words(case)}: rsattn / {overhead.baseline(case)}"
        found.append(Target(words, host, overhead.at_most(case), at_most=True))
    return found


# (B,H,N,E) -> the largest forward / best SDPA, the smallest (best SDPA + flash-colreduce) / forward, and the largest
# (forward + backward) / best SDPA's.
_GPU_SHAPES = {
    Shape(64, 12, 197, 64): (0.90, 1.8, 1.0),
    Shape(64, 12, 257, 64): (0.95, 1.8, 1.0),
    Shape(32, 12, 577, 64): (1.15, 1.5, 1.1),
    Shape(32, 16, 1025, 64): (1.3, 1.3, 1.15),
    Shape(4, 12, 4096, 64): (1.5, 1.2, 1.2),
}


# The largest forward / best SDPA for backend="cuda".
_CUDA_SHAPES = {Shape(64, 12, 197, 64): 0.85, Shape(32, 12, 577, 64): 0.95, Shape(32, 16, 1025, 64): 1.1}


def _gpu() -> list[Target]:
    found = []
    for shape, (forward, with_norms, both) in _GPU_SHAPES.items():
        of = partial(ratio, "attention", shape.length, "bfloat16")
        found += [
            Target(f"{shape}: forward / best SDPA", of(False, ours, sdpa), forward, at_most=True),
            Target(f"{shape}: (best SDPA + flash-colreduce) / forward", of(False, sdpa_and_norms, ours), with_norms),
            Target(f"{shape}: forward + backward / best SDPA's", of(True, ours, sdpa), both, at_most=True),
        ]
    for shape, forward in _CUDA_SHAPES.items():
        value = ratio("attention", shape.length, "bfloat16", False, cuda, sdpa)
        found.append(Target(f"{shape}: {baselines.CUDA} forward / best SDPA", value, forward, at_most=True))
    value = ratio("attention", 197, "bfloat16", True, cuda, sdpa)
    found.append(Target(f"64,12,197,64: {baselines.CUDA} forward + backward / best SDPA's", value, 0.9, at_most=True))
    for words, train, limit in (("forward", False, 3.0), ("forward + backward", True, 2.0)):
        value = ratio("attention", 65, "bfloat16", train, eager, ours)
        found.append(Target(f"16,4,65,768: eager / {words}", value, limit))
    for length in (197, 577):
        share = added(length, "bfloat16", block=True)
        words = f"N = {length}: norms, best head and residual, of the attention block"
        found.append(Target(words, share, 0.05, at_most=True))
    found += [
        Target("N = 197: bytes moved forward, rate / a large copy's", bytes_at_197, 0.6),
        Target(
            "ViT-B/16 at 384: training step, patched / on SDPA",
            ratio("model", 577, "bfloat16", True, ours, named(baselines.SDPA)),
            1.03,
            at_most=True,
        ),
        Target("ViT-B/16 at 384: memory that eager needs more, in sizes of P", probabilities_saved, 1.0),
    ]
    return found + _received(torch.device("cuda"))


CPU, GPU = _cpu(), _gpu()
