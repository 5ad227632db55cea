"""`python -m bench.repeats`: on a GPU, check that large calls are correct and give the same bits every time.

A race between programs appears when many of them share a multiprocessor and run in several waves, which the small
shapes of tests/ never do. Each case is compared with float64 and then repeated, in the second half with another stream
at work. Each case appends a line of JSON, so that an interruption loses only one case.

    python -m bench.repeats --out repeats.jsonl --repeats 500
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import rsattn
from rsattn import call as core
from rsattn import philox, reference
from rsattn.backends.dispatch import BACKENDS
from rsattn.call import unpacked
from rsattn.contract import Norm

from .oracle import TOLERANCE, Oracle
from .shapes import Shape

Inputs = tuple[Tensor, ...]  # query, key, value and, if it is learned, a mask
NAMES = ("triton", "cuda")
# The last two only with a learned mask.
RESULTS = ("output", "norms", "best head", "dQ", "dK", "dV", "gradient of the mask", "attention received")
SIDE, PRODUCTS = 4096, 10  # the other stream multiplies matrices of this size this often: about 2 ms for each repeat


@dataclass(frozen=True)
class Call:
    """One call of the attention with its backward pass.

    Attributes:
        learned: the full axes of a learned mask: r (half the batch, which repeats), h, n and m; the others are 1. Empty
            for no mask. A call with a learned mask also returns the attention received.
    """

    shape: Shape
    dtype: str = "bfloat16"
    norm: Norm = "induced"
    dropout: float = 0.0
    learned: str = ""

    @property
    def title(self) -> str:
        words = [f"{self.shape} {self.dtype} {self.norm}"]
        words += [f"dropout {self.dropout}"] * bool(self.dropout)
        words += [f"learned mask {self.learned}"] * bool(self.learned)
        return ", ".join(words)

    @property
    def mask_shape(self) -> list[int]:
        batch, heads, length = self.shape.batch, self.shape.heads, self.shape.length
        return [size if axis in self.learned else 1 for axis, size in zip("rhnm", (batch // 2, heads, length, length))]


OTHER_NORMS: tuple[Norm, ...] = ("entrywise", "confidence")
SEVERAL_WAVES = (Shape(64, 12, 197, 64), Shape(32, 12, 577, 64))
CALLS = (
    *(Call(shape) for shape in SEVERAL_WAVES),
    *(Call(shape, norm=norm) for shape in SEVERAL_WAVES for norm in OTHER_NORMS),
    *(Call(shape, dropout=0.1) for shape in SEVERAL_WAVES),
    *(Call(shape, "float16") for shape in SEVERAL_WAVES),
    *(Call(shape, learned="hnm") for shape in SEVERAL_WAVES),
    *(Call(shape, norm="confidence", dropout=0.1, learned="hnm") for shape in SEVERAL_WAVES),
    Call(Shape(64, 12, 197, 64), norm="entrywise", learned="hm"),
    Call(Shape(32, 12, 577, 64), learned="nm"),
    Call(Shape(1024, 3, 49, 32), learned="rhnm"),
    Call(Shape(256, 12, 65, 64)),
    Call(Shape(64, 12, 257, 64)),
    Call(Shape(16, 12, 1370, 64)),
    Call(Shape(64, 6, 197, 128)),
    Call(Shape(16, 6, 577, 128)),
    Call(Shape(16, 4, 65, 768)),
    Call(Shape(64, 16, 100, 17)),
    Call(Shape(64, 16, 300, 1)),
    Call(Shape(16, 12, 197, 64), "float32"),
    Call(Shape(8, 12, 577, 64), "float32"),
)


@dataclass(frozen=True)
class Found:
    """The outcome for one call: `error` is empty if it is right, `different` counts the repeats with other bits."""

    call: str
    backend: str
    error: str
    repeats: int
    different: int
    seconds: float

    @property
    def good(self) -> bool:
        return not self.error and not self.different


def step(call: Call, backend: str, inputs: Inputs, upstream: Tensor) -> list[Tensor]:
    """The tensors that `RESULTS` names; dropout drops the same elements in every call."""
    torch.manual_seed(1)
    query, key, value, *mask = inputs
    result = rsattn.residual_attention(
        query,
        key,
        value,
        mask[0] if call.learned else None,
        call.dropout,
        norm=call.norm,
        backend=backend,
        return_received=bool(call.learned),
    )
    gradients = torch.autograd.grad(result.output, inputs, upstream)
    return [tensor.detach() for tensor in (*result[:3], *gradients, result.received) if tensor is not None]


def check(call: Call, backend: str, inputs: Inputs, upstream: Tensor, got: list[Tensor]) -> None:
    """Raise AssertionError if a result is not finite or differs from float64.

    The oracle checks the output and gradients of the first and the last head. It knows neither dropout nor masks: with
    dropout the reference, which drops the same elements, checks the outputs of all heads, and with a learned mask
    everything. The reference also checks all norms, and the norms check the best head.
    """
    results = dict(zip(RESULTS if call.learned else RESULTS[:6], got, strict=True))
    for name, tensor in results.items():
        if not tensor.isfinite().all():
            raise AssertionError(f"{name} is not finite everywhere")
    output, norms, best_head = got[:3]
    if not call.dropout and not call.learned:
        query, key, value = (tensor.detach() for tensor in inputs)
        Oracle(query, key, value, upstream).check(backend, output, None, tuple(got[3:]))
    for name, want in exact(call, inputs, upstream).items():
        error = float((results[name].double() - want).norm() / want.norm())
        if not error <= TOLERANCE[output.dtype]:
            raise AssertionError(f"{backend}: {name} is off by {error:.1e} of its size")
    if not torch.equal(norms.gather(1, best_head[:, None])[:, 0], norms.amax(1)):
        raise AssertionError(f"{backend}: the best head is not the one with the largest norm")


def exact(call: Call, inputs: Inputs, upstream: Tensor) -> dict[str, Tensor]:
    """The results of the reference in float64 that `check` compares, by name."""
    torch.manual_seed(1)
    seed = philox.draw_seed(upstream.device) if call.dropout else None
    leaves = [tensor.detach().double().requires_grad_(bool(call.learned)) for tensor in inputs]
    mask = leaves[3] if call.learned else None
    found = reference.attention(
        core.Call(tuple(leaves[:3]), mask, seed, call.dropout, norm=call.norm, return_received=bool(call.learned))
    )
    wanted = {"norms": found.norms}
    if call.dropout or call.learned:
        wanted["output"] = found.output.detach()
    if found.received is not None:
        wanted |= zip(RESULTS[3:7], torch.autograd.grad(found.output, leaves, upstream.double()), strict=True)
        wanted["attention received"] = found.received
    return wanted


def run(call: Call, backend: str, repeats: int, device: torch.device) -> Found:
    began = time.monotonic()
    torch.manual_seed(0)
    shape = call.shape
    packed = torch.randn(
        (shape.batch, shape.length, 3, shape.heads, shape.head_dim), device=device, dtype=getattr(torch, call.dtype)
    )
    query, key, value = unpacked(packed)
    mask = [torch.randn(call.mask_shape, device=device)] * bool(call.learned)
    inputs, upstream = tuple(tensor.requires_grad_() for tensor in (query, key, value, *mask)), torch.randn_like(query)
    different = torch.zeros((), dtype=torch.int64, device=device)
    try:
        first = step(call, backend, inputs, upstream)
        check(call, backend, inputs, upstream, first)
        disturb = disturbance(device)
        for number in range(repeats):
            if number > repeats // 2:
                disturb()
            again = step(call, backend, inputs, upstream)
            # NaN differs from everything, so it counts as a difference.
            different += torch.stack([(a != b).any() for a, b in zip(first, again)]).any()
        error = ""
    except Exception as problem:  # Triton's errors have no common base class
        error = f"{type(problem).__name__}: {problem}".strip().splitlines()[0]
    return Found(call.title, backend, error, repeats, int(different), round(time.monotonic() - began, 1))


def disturbance(device: torch.device) -> Callable[[], None]:
    """A function that puts work on another stream of a GPU, and does nothing on a CPU."""
    if device.type != "cuda":
        return lambda: None
    side, matrix = torch.cuda.Stream(device), torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16)

    def disturb() -> None:
        with torch.cuda.stream(side):
            for _ in range(PRODUCTS):
                torch.mm(matrix, matrix)

    return disturb


def cases(only: str) -> Iterator[tuple[Call, str]]:
    """Each call with each backend that supports it, if the title contains `only`."""
    for call in CALLS:
        for backend in NAMES:
            if takes(backend, call) and only in f"{call.title} {backend}":
                yield call, backend


def takes(backend: str, call: Call) -> bool:
    """Whether the backend supports the call."""
    limits, head_dim = BACKENDS[backend].limits, call.shape.head_dim
    small_enough = limits.max_head_dim is None or head_dim <= limits.max_head_dim
    return small_enough and head_dim % limits.head_dim_multiple == 0 and getattr(torch, call.dtype) in limits.dtypes


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.repeats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="run only the cases whose title contains this")
    parser.add_argument("--repeats", type=int, default=500, help="repeats of each case (default: 500)")
    parser.add_argument("--out", type=Path, help="append a line of JSON for each case to this file")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("python -m bench.repeats looks for races on a GPU, and PyTorch finds none here")
    bad = 0
    for call, backend in cases(given.only):
        found = run(call, backend, given.repeats, torch.device("cuda"))
        bad += not found.good
        words = found.error or f"{found.different} of {found.repeats} repeats differ" * bool(found.different)
        print(f"{'ok' if found.good else 'BAD':4}{found.seconds:6.1f} s  {backend:7}{found.call}  {words}", flush=True)
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps(asdict(found)) + "\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
