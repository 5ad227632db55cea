"""Invented runs with simple numbers."""

from rsattn.bench.cases import Case
from rsattn.bench.results import Record, Run
from rsattn.bench.shapes import Shape

MACHINE = {
    "device": "Some CPU, family 1 model 2",
    "kind": "cpu",
    "torch": "9.9",
    "rsattn": "1.2.3",
    "commit": "abc1234",
    "threads": 4,
    "instruction set": "fast",
}
GPU = {
    "device": "Some GPU",
    "kind": "cuda",
    "torch": "9.9",
    "triton": "8.8",
    "driver": "777",
    "cuda": "13.0",
    "commit": "abc1234",
}


def record(kind, shape, seconds, *, dtype="float32", train=False, model="", detail="", peaks=None, left_out=None):
    times = {name: value if isinstance(value, list) else [value] * 3 for name, value in seconds.items()}
    return Record(Case(kind, Shape(*shape), dtype, train, model, detail), times, peaks or {}, left_out or {})


def run(*records, machine=MACHINE):
    return Run(dict(machine), list(records))


def growing(train, ours, exponent=2.0, factor=1.0):
    """Records of the kind "length", whose times are a power of N."""
    peaks = {ours: 1_000_000, "SDPA packed": 500_000, "eager": 9_000_000}
    return [
        record(
            "length",
            (1, 2, n, 64),
            {
                ours: factor * n**exponent * 1e-9,
                "SDPA packed": 2e-9 * n**exponent,
                "SDPA contiguous": 3e-9 * n**exponent,
                "eager": 1e-9 * n**2.5,
            },
            train=train,
            peaks={name: n * bytes_ for name, bytes_ in peaks.items()},
        )
        for n in (64, 512, 1024, 2048, 4096)
    ]
