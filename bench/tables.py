"""The tables, in Markdown, from the raw times of one run, or as ranges from several runs on one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from . import baselines, fits
from .kinds import KINDS, ceilings, epilogue
from .kinds import bias as bias_kind
from .kinds import gate as gate_kind
from .kinds import overhead as overhead_kind
from .kinds import packed as packed_kind
from .kinds import received as received_kind
from .kinds.ranking import NO_RANKING, WITH_RESIDUAL
from .results import Record, Run, same_cases, with_kind

PASS = {False: "forward", True: "forward + backward"}
Column = tuple[str, Callable[[list[Record]], str]]


def _model(of: list[Record]) -> str:
    return of[0].case.model


_DTYPE_AND_PASS: tuple[Column, ...] = (
    ("dtype", lambda of: of[0].case.dtype),
    ("pass", lambda of: PASS[of[0].case.train]),
)


def heading(runs: Sequence[Run]) -> str:
    """The machine, the versions and the number of runs."""
    machine = runs[0].machine
    commits = ", ".join(sorted({run.machine["commit"] for run in runs}))
    code = f"commit {commits}" if commits else f"rsattn {machine['rsattn']}"
    facts = [machine["device"]]
    if machine["kind"] == "cuda":
        facts += [f"driver {machine['driver']}", f"CUDA {machine['cuda']}", f"triton {machine['triton']}"]
    else:
        facts += [f"threads: {machine['threads']}", machine["instruction set"]]
    times = "one run" if len(runs) == 1 else f"{len(runs)} runs, each in its own process, shown as ranges"
    if len({frozenset(record.case.kind for record in run.records) for run in runs}) > 1:
        times += ", of the runs that have the case"
    return f"{', '.join(facts)}, torch {machine['torch']}, {code}; {times}."


def attention(runs: Sequence[Run], lengths: Sequence[int] = ()) -> str:
    """At real shapes, or only those of some lengths: rsattn in milliseconds, the others as multiples of it."""
    return _table(
        [of for of in same_cases(runs, "attention") if not lengths or of[0].case.shape.length in lengths],
        [
            ("model", _model),
            ("(B,H,N,E)", lambda of: str(of[0].case.shape)),
            *_DTYPE_AND_PASS,
            ("rsattn, ms", lambda of: _milliseconds(of, lambda record: baselines.RSATTN)),
            (baselines.CUDA, lambda of: _multiple(of, lambda record: baselines.CUDA)),
            ("SDPA", lambda of: _multiple(of, best_sdpa) + _which_sdpa(of)),
            ("SDPA + norms", lambda of: _sdpa_and(of, baselines.NORMS_ALONE)),
            ("eager", lambda of: _multiple(of, _eager)),
            ("compiled", lambda of: _multiple(of, lambda record: baselines.COMPILED)),
            ("Flex", lambda of: _multiple(of, lambda record: baselines.FLEX)),
        ],
    )


def brief(runs: Sequence[Run], kind: str) -> str:
    """The columns that fit in a terminal, for the kinds "attention", "block" and "model"."""
    return _table(
        same_cases(runs, kind),
        [
            (kind, _model),
            *_DTYPE_AND_PASS,
            ("ms", lambda of: _milliseconds(of, lambda record: baselines.RSATTN)),
            ("SDPA", lambda of: _multiple(of, best_sdpa)),
            ("eager", lambda of: _multiple(of, _eager)),
        ],
    )


def roofline(runs: Sequence[Run]) -> str:
    """The work, the least time it takes at the measured ceilings, and the measured time."""
    runs = with_kind(runs, "attention")

    def floor(of: list[Record]) -> list[float]:
        return [max(_floors(run, record)) for run, record in zip(runs, of)]

    def bound(of: list[Record]) -> str:
        products, memory = _floors(runs[0], of[0])
        return "products" if products > memory else "memory"

    def reached(of: list[Record]) -> str:
        shares = [100 * least / record.median(baselines.RSATTN) for least, record in zip(floor(of), of)]
        return between(shares, "{:.0f} %")

    def work(of: list[Record]) -> tuple[float, float]:
        case = of[0].case
        return case.shape.flops(case.train), case.shape.bytes(case.train, case.itemsize)

    measured = [{of.case.dtype for of in run.of("ceilings")} for run in runs]
    return _table(
        [of for of in same_cases(runs, "attention") if all(of[0].case.dtype in dtypes for dtypes in measured)],
        [
            ("(B,H,N,E)", lambda of: str(of[0].case.shape)),
            *_DTYPE_AND_PASS,
            ("GFLOP", lambda of: f"{work(of)[0] / 1e9:.2f}"),
            ("MB", lambda of: f"{work(of)[1] / 1e6:.1f}"),
            ("FLOP per byte", lambda of: f"{work(of)[0] / work(of)[1]:.0f}"),
            ("bound by", bound),
            ("floor, ms", lambda of: between([1e3 * least for least in floor(of)], "{:.2f}")),
            ("rsattn, ms", lambda of: _milliseconds(of, lambda record: baselines.RSATTN)),
            ("floor / rsattn", reached),
        ],
    )


def device_ceilings(runs: Sequence[Run]) -> str:
    """The best rates of the device in these runs: the fastest call counts, not the median."""
    return _table(
        same_cases(runs, "ceilings"),
        [
            ("dtype", lambda of: of[0].case.dtype),
            (
                "matrix product, GFLOP/s",
                lambda of: between([_rate(record) / 1e9 for record in of], "{:.0f}"),
            ),
            ("copy, GB/s", lambda of: between([_bandwidth(record) / 1e9 for record in of], "{:.1f}")),
        ],
    )


def length(runs: Sequence[Run]) -> str:
    """Time with ranking and the residual, and peak memory, against the number of tokens."""
    forward = [of for of in same_cases(runs, "length") if not of[0].case.train]
    train = {of[0].case.shape: of for of in same_cases(runs, "length") if of[0].case.train}

    def peak(name: Callable[[Record], str]) -> Callable[[list[Record]], str]:
        return lambda of: _peak(train[of[0].case.shape], name) if of[0].case.shape in train else ""

    return _table(
        forward,
        [
            ("N", lambda of: str(of[0].case.shape.length)),
            ("rsattn with the residual, ms", lambda of: _milliseconds(of, lambda record: WITH_RESIDUAL)),
            ("SDPA, ms", lambda of: _milliseconds(of, best_sdpa)),
            ("eager, ms", lambda of: _milliseconds(of, _eager)),
            ("peak memory of a training step, MB: rsattn", peak(lambda record: baselines.RSATTN)),
            ("SDPA", peak(best_sdpa)),
            ("eager", peak(_eager)),
        ],
    )


def slopes(runs: Sequence[Run]) -> str:
    """The exponents with which time grows."""
    rows = []
    for words, kind, train, size in (
        (f"time against N, forward, N from {fits.SHORTEST}", "length", False, _long),
        (f"time against N, forward + backward, N from {fits.SHORTEST}", "length", True, _long),
        ("time against E, forward, N = 577", "width", False, _head_dim),
    ):
        found = [_slope(runs, kind, train, size, variant) for variant in (_ours, best_sdpa, _eager)]
        if any(found):
            rows.append([words, *found])
    return as_markdown(["exponent (95 % interval)", "rsattn", "SDPA", "eager"], rows)


def block(runs: Sequence[Run]) -> str:
    """The attention block with its projections."""
    return _table(
        same_cases(runs, "block"),
        [
            ("model", _model),
            ("batch", lambda of: str(of[0].case.shape.batch)),
            *_DTYPE_AND_PASS,
            ("rsattn, ms", lambda of: _milliseconds(of, lambda record: baselines.RSATTN)),
            ("SDPA", lambda of: _multiple(of, best_sdpa)),
            ("eager", lambda of: _multiple(of, _eager)),
            ("peak memory, MB: rsattn", lambda of: _peak(of, lambda record: baselines.RSATTN)),
            ("SDPA ", lambda of: _peak(of, best_sdpa)),
            ("eager ", lambda of: _peak(of, _eager)),
        ],
    )


def model(runs: Sequence[Run]) -> str:
    """The whole ViT, for which the paper claims almost the same cost."""
    return _table(
        same_cases(runs, "model"),
        [
            ("model", _model),
            ("batch", lambda of: str(of[0].case.shape.batch)),
            *_DTYPE_AND_PASS,
            ("patched, ms", lambda of: _milliseconds(of, lambda record: baselines.RSATTN)),
            ("patched / on SDPA", lambda of: _over(of, lambda record: baselines.SDPA)),
            ("patched / the library's own", lambda of: _over(of, _eager)),
            ("peak memory, MB: patched", lambda of: _peak(of, lambda record: baselines.RSATTN)),
            ("on SDPA", lambda of: _peak(of, lambda record: baselines.SDPA)),
            ("the library's own", lambda of: _peak(of, _eager)),
        ],
    )


def ranking(runs: Sequence[Run]) -> str:
    """What norms, best head and residual add to attention alone and, if it was timed, to the whole block."""
    runs = with_kind(runs, "ranking")
    blocks = [
        {(r.case.shape, r.case.dtype): r.median(baselines.RSATTN) for r in run.of("block") if not r.case.train}
        for run in runs
    ]

    def of_block(of: list[Record]) -> str:
        key = (of[0].case.shape, of[0].case.dtype)
        if any(key not in of_run for of_run in blocks):
            return ""
        return between([100 * _extra(r) / of_run[key] for r, of_run in zip(of, blocks)], "{:.1f} %")

    return _table(
        same_cases(runs, "ranking"),
        [
            ("model", _model),
            ("(B,H,N,E)", lambda of: str(of[0].case.shape)),
            ("dtype", lambda of: of[0].case.dtype),
            ("attention alone, ms", lambda of: _milliseconds(of, lambda record: NO_RANKING)),
            ("with norms, best head and residual, ms", lambda of: _milliseconds(of, lambda record: WITH_RESIDUAL)),
            ("added", lambda of: between([100 * _extra(r) / r.median(NO_RANKING) for r in of], "{:.1f} %")),
            ("share of the block", of_block),
        ],
    )


def residual(runs: Sequence[Run]) -> str:
    """The residual alone."""
    return _table(
        same_cases(runs, "epilogue"),
        [
            ("model", _model),
            ("dtype", lambda of: of[0].case.dtype),
            ("rsattn, us", lambda of: between([1e6 * record.median(baselines.RSATTN) for record in of], "{:.0f}")),
            ("eager / rsattn", lambda of: _multiple(of, _eager)),
            (
                "GB/s",
                lambda of: between([epilogue.moved(r.case) / r.median(baselines.RSATTN) / 1e9 for r in of], "{:.0f}"),
            ),
        ],
    )


def gate(runs: Sequence[Run]) -> str:
    """The residual with a gate, in microseconds, compared with the ungated one and with eager PyTorch's gate."""
    return _table(
        same_cases(runs, "gate"),
        [
            ("model", _model),
            ("(B,H,N,E)", lambda of: str(of[0].case.shape)),
            *_DTYPE_AND_PASS,
            ("gated, us", lambda of: between([1e6 * record.median(baselines.RSATTN) for record in of], "{:.0f}")),
            ("gated / ungated", lambda of: _over(of, lambda record: gate_kind.UNGATED)),
            ("target", lambda of: f"<= {gate_kind.AT_MOST:.2f}" if _model(of) in gate_kind.TARGETED else ""),
            ("eager / gated", lambda of: _multiple(of, _eager)),
        ],
    )


def threads(runs: Sequence[Run]) -> str:
    """The speedup of all threads over one."""

    def gain(what: str) -> Callable[[list[Record]], str]:
        return lambda of: between([r.median(f"{what}, 1 thread") / r.median(f"{what}, all threads") for r in of])

    return _table(
        same_cases(runs, "threads"),
        [
            ("(B,H,N,E)", lambda of: str(of[0].case.shape)),
            ("dtype", lambda of: of[0].case.dtype),
            ("rsattn, one thread / all", gain(baselines.RSATTN)),
            ("matrix product, one thread / all", gain(ceilings.PRODUCT)),
        ],
    )


def overhead(runs: Sequence[Run]) -> str:
    """The host time of a call and of PyTorch's call, in microseconds; on a CPU also the target for the ratio."""
    on_a_cpu = runs[0].machine["kind"] == "cpu"

    def baseline(record: Record) -> str:
        return overhead_kind.baseline(record.case)

    return _table(
        same_cases(runs, "overhead"),
        [
            ("(B,H,N,E)", lambda of: str(of[0].case.shape)),
            ("dtype", lambda of: of[0].case.dtype),
            ("rsattn's call", lambda of: overhead_kind.words(of[0].case)),
            ("PyTorch's", lambda of: overhead_kind.baseline(of[0].case)),
            ("PyTorch, us", lambda of: _microseconds(of, baseline)),
            ("rsattn, us", lambda of: _microseconds(of, lambda record: baselines.RSATTN)),
            ("rsattn / PyTorch", lambda of: _over(of, baseline)),
            ("target", lambda of: f"<= {overhead_kind.at_most(of[0].case)}" if on_a_cpu else ""),
        ],
    )


def packed(runs: Sequence[Run]) -> str:
    """Packed and unpacked training steps: packed in milliseconds, the others as multiples of it."""
    return _table(
        same_cases(runs, "packed"),
        [
            ("model", _model),
            ("(B,H,N,E)", lambda of: str(of[0].case.shape)),
            ("dtype", lambda of: of[0].case.dtype),
            ("forward + backward of", lambda of: of[0].case.detail),
            ("rsattn packed, ms", lambda of: _milliseconds(of, lambda record: baselines.RSATTN)),
            ("rsattn unpacked", lambda of: _multiple(of, lambda record: packed_kind.UNPACKED)),
            ("SDPA", lambda of: _multiple(of, best_sdpa) + _which_sdpa(of)),
            ("eager", lambda of: _multiple(of, _eager)),
        ],
    )


def received(runs: Sequence[Run]) -> str:
    """What the attention received adds to a forward pass, its time alone, and the ways to get it without rsattn."""
    every = same_cases(runs, "received")
    recomputed = {
        (of[0].case.shape, of[0].case.dtype): of for of in every if of[0].case.detail == received_kind.RECOMPUTED
    }

    def sdpa_and(name: str) -> Callable[[list[Record]], str]:
        def cell(of: list[Record]) -> str:
            beside = recomputed.get((of[0].case.shape, of[0].case.dtype))
            return "" if beside is None else _sdpa_and(beside, name)

        return cell

    return _table(
        [of for of in every if of[0].case.detail == received_kind.COST],
        [
            ("model", _model),
            ("(B,H,N,E)", lambda of: str(of[0].case.shape)),
            ("dtype", lambda of: of[0].case.dtype),
            ("forward with received, ms", lambda of: _milliseconds(of, lambda record: baselines.RSATTN)),
            ("with / without", lambda of: _over(of, lambda record: received_kind.WITHOUT)),
            ("received alone / forward without", _received_alone),
            ("(SDPA + eager) / with", sdpa_and(received_kind.EAGER_ALONE)),
            ("(SDPA + flash-colreduce) / with", sdpa_and(received_kind.COLREDUCE)),
        ],
    )


def _received_alone(of: list[Record]) -> str:
    if any({received_kind.ALONE, received_kind.WITHOUT} - set(record.seconds) for record in of):
        return ""
    return between([r.median(received_kind.ALONE) / r.median(received_kind.WITHOUT) for r in of])


def bias(runs: Sequence[Run]) -> str:
    """A training step of blocks with a learned position bias."""

    def flex(of: list[Record]) -> str:
        refused = any(baselines.FLEX in record.left_out for record in of)
        return "cannot run" if refused else _multiple(of, lambda record: baselines.FLEX)

    return _table(
        [of for of in same_cases(runs, "bias") if all(record.seconds for record in of)],
        [
            ("attention block", lambda of: f"{of[0].case.detail}, {_model(of)}"),
            ("(B,H,N,E)", lambda of: str(of[0].case.shape)),
            *_DTYPE_AND_PASS,
            ("patched, ms", lambda of: _milliseconds(of, lambda record: baselines.RSATTN)),
            (bias_kind.LIBRARY, lambda of: _multiple(of, _librarys)),
            ("Flex", flex),
            ("peak memory, MB: patched", lambda of: _peak(of, lambda record: baselines.RSATTN)),
            (f"peak memory, MB: {bias_kind.LIBRARY}", lambda of: _peak(of, _librarys)),
            ("peak memory, MB: Flex", lambda of: _peak(of, lambda record: baselines.FLEX)),
        ],
    )


def left_out(runs: Sequence[Run]) -> str:
    """The variants that could not be timed, and why."""
    found = {
        (record.case.title, name): why
        for run in runs
        for record in run.records
        for name, why in record.left_out.items()
    }
    return as_markdown(["case", "variant", "why"], [[*key, why] for key, why in found.items()])


TABLES: dict[str, Callable[[Sequence[Run]], str]] = {
    "attention": attention,
    "ceilings": device_ceilings,
    "roofline": roofline,
    "length": length,
    "ranking": ranking,
    "slopes": slopes,
    "received": received,
    "block": block,
    "bias": bias,
    "model": model,
    "residual": residual,
    "gate": gate,
    "threads": threads,
    "packed": packed,
    "overhead": overhead,
    "left out": left_out,
}


def other_times(runs: Sequence[Run]) -> str:
    """The medians of all variants of the cases that no other table shows."""

    def is_shown(record: Record) -> bool:
        alone = [Run(runs[0].machine, [record])]
        return any(table(alone) for name, table in TABLES.items() if name != "left out")

    def of_variant(of: list[Record], name: str) -> list[str]:
        return [of[0].case.title, name, _milliseconds(of, lambda record: name), _multiple(of, lambda record: name)]

    hidden = [of for kind in KINDS for of in same_cases(runs, kind) if not is_shown(of[0])]
    names = ["case", "variant", "ms", "multiple of rsattn's"]
    return as_markdown(names, [of_variant(of, name) for of in hidden for name in of[0].seconds])


def best_sdpa(record: Record) -> str:
    """The name of the fastest SDPA kernel; if none ran, a name that no variant has."""
    kinds = [name for name in record.seconds if name.startswith(baselines.SDPA)]
    return min(kinds, key=record.median, default="no SDPA")


def _which_sdpa(of: list[Record]) -> str:
    """On a GPU, the name of the fastest kernel."""
    kinds = {best_sdpa(record).removeprefix(baselines.SDPA) for record in of}
    return "" if kinds & {" packed", " contiguous", "no SDPA"} else f" ({', '.join(sorted(k.strip() for k in kinds))})"


def _sdpa_and(of: list[Record], name: str) -> str:
    """The time of the fastest SDPA plus that variant's, over rsattn's."""
    if any(name not in record.seconds or best_sdpa(record) not in record.seconds for record in of):
        return ""
    return between([(r.median(best_sdpa(r)) + r.median(name)) / r.median(baselines.RSATTN) for r in of])


def _extra(record: Record) -> float:
    return record.median(WITH_RESIDUAL) - record.median(NO_RANKING)


def _over(of: list[Record], name: Callable[[Record], str]) -> str:
    """rsattn's time over that variant's."""
    if any(name(record) not in record.seconds for record in of):
        return ""
    return between([record.median(baselines.RSATTN) / record.median(name(record)) for record in of])


def _multiple(of: list[Record], name: Callable[[Record], str]) -> str:
    """That variant's time over rsattn's."""
    if any(name(record) not in record.seconds for record in of):
        return ""
    return between([record.median(name(record)) / record.median(baselines.RSATTN) for record in of])


def _milliseconds(of: list[Record], name: Callable[[Record], str]) -> str:
    if any(name(record) not in record.seconds for record in of):
        return ""
    return between([1e3 * record.median(name(record)) for record in of])


def _microseconds(of: list[Record], name: Callable[[Record], str]) -> str:
    if any(name(record) not in record.seconds for record in of):
        return ""
    return between([1e6 * record.median(name(record)) for record in of], "{:.1f}")


def _peak(of: list[Record], name: Callable[[Record], str]) -> str:
    if any(name(record) not in record.peaks for record in of):
        return ""
    return between([record.peaks[name(record)] / 1e6 for record in of], "{:.1f}")


def _slope(
    runs: Sequence[Run], kind: str, train: bool, size: Callable[[Record], int], variant: Callable[[Record], str]
) -> str:
    found = fits.of_runs(runs, kind, train, size, variant)
    return "" if found is None else str(found)


def _ours(record: Record) -> str:
    return WITH_RESIDUAL if WITH_RESIDUAL in record.seconds else baselines.RSATTN


def _eager(record: Record) -> str:
    return baselines.EAGER


def _librarys(record: Record) -> str:
    return bias_kind.LIBRARY


def _long(record: Record) -> int:
    return record.case.shape.length


def _head_dim(record: Record) -> int:
    return record.case.shape.head_dim


def _rate(record: Record) -> float:
    return ceilings.flops(record.case) / min(record.seconds[ceilings.PRODUCT])


def _bandwidth(record: Record) -> float:
    return 2 * ceilings.COPIED / min(record.seconds[ceilings.COPY])


def _floors(run: Run, record: Record) -> tuple[float, float]:
    """The seconds of its products and of its bytes at the ceilings of the same run."""
    case = record.case
    (ceiling,) = [of for of in run.of("ceilings") if of.case.dtype == case.dtype]
    products = case.shape.flops(case.train) / _rate(ceiling)
    return products, case.shape.bytes(case.train, case.itemsize) / _bandwidth(ceiling)


def between(values: Iterable[float], form: str = "{:.2f}") -> str:
    """One value, or the smallest and the largest of several."""
    values = list(values)
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _table(cases: list[list[Record]], columns: list[Column]) -> str:
    rows = [[cell(of) for _, cell in columns] for of in cases]
    return as_markdown([name for name, _ in columns], rows)


def as_markdown(names: list[str], rows: list[list[str]]) -> str:
    """A table without its empty columns; an empty string without rows."""
    if not rows:
        return ""
    kept = [index for index in range(len(names)) if any(row[index] for row in rows)]
    return "\n".join(_lines([names[i].strip() for i in kept], [[row[i] or "-" for i in kept] for row in rows]))


def _lines(names: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
