"""`python -m bench.cpu`: the compiled CPU kernels beside SDPA, eager and compiled PyTorch, and the matrix product.

Every group of variants is verified, then timed interleaved in one process; ratios are between medians. The raw times
go to bench/results/<processor>/cpu.json. `--show FILE...` prints the tables again, of several runs as ranges: between
processes, the placement of memory alone moves a ratio by a tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import rsattn
from rsattn import backend_cpu
from rsattn.dispatch import kernels_of

from . import peers
from .interleave import Times, fastest, interleave, median
from .peers import Shape

SHAPES = [Shape(8, 12, 197, 64), Shape(4, 12, 577, 64)]
LONG = Shape(2, 12, 1370, 64)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SQUARE = 1536  # of the matrix product that serves as ceiling
NO_NORM = 3  # csrc/cpu/kernels.h, Norm::none
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each variant (default 15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (default: torch's)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--no-model", action="store_true", help="leave out the whole ViT-B/16")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the raw times go (default: see above)")
    parser.add_argument("--show", type=Path, nargs="+", metavar="FILE", help="print the tables of these runs and stop")
    arguments = parser.parse_args()
    if arguments.show:
        show([json.loads(path.read_text()) for path in arguments.show])
        return
    reasons = rsattn.backends("cpu")["cpu"].reasons
    if reasons:
        raise SystemExit("; ".join(reasons))
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.rounds, not arguments.no_compile, not arguments.no_model)
    path = arguments.out or RESULTS / folder_name(result["processor"]) / "cpu.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n")
    show([result])
    print(f"\nraw times: {path}")


def measure(rounds: int, with_compile: bool, with_model: bool) -> dict[str, Any]:
    result: dict[str, Any] = machine()
    groups = [(shape, name, train) for shape in SHAPES for name in DTYPES for train in (False, True)]
    groups += [(LONG, name, False) for name in DTYPES]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=rounds * (len(groups) + 5))

        def tick() -> None:
            progress.advance(bar)

        result["attention"] = []
        for shape, name, train in groups:
            progress.update(bar, description=f"{shape} {name}{' with backward' if train else ''}")
            times = attention(shape, DTYPES[name], train, with_compile and shape is not LONG, rounds, tick)
            result["attention"].append({"shape": str(shape), "dtype": name, "train": train, "times": times})
        progress.update(bar, description="cost of ranking")
        result["ranking"] = [
            {"shape": str(s), "dtype": d, "times": ranking(s, DTYPES[d], rounds, tick)} for s in SHAPES for d in DTYPES
        ]
        if with_model:
            progress.update(bar, description="ViT-B/16 at 384")
            result["model"] = model(rounds, tick)
    result["threads_scaling"] = [
        {"shape": str(s), "dtype": d, "times": scaling(s, DTYPES[d], rounds)} for s in SHAPES for d in DTYPES
    ]
    return result


def attention(
    shape: Shape, dtype: torch.dtype, train: bool, with_compile: bool, rounds: int, tick: Callable[[], None]
) -> Times:
    """Ours, the peers, and a square matrix product as the rate the machine can reach."""
    tensors = peers.packed(shape, dtype)
    dense = [tensor.contiguous() for tensor in tensors]
    upstream = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype) if train else None
    variants: dict[str, tuple[peers.Peer, list[Tensor]]] = {
        "ours": (peers.ours, tensors),
        "sdpa": (peers.sdpa, tensors),
        "sdpa contiguous": (peers.sdpa, dense),
        "eager": (peers.eager, tensors),
    }
    if with_compile:
        variants["compiled"] = (peers.compiled(), tensors)
    for peer, inputs in variants.values():
        peers.verify(peer, inputs, upstream)
    if with_compile:
        variants["compiled"] = (peers.compiled(), tensors)  # verified on one sample, compiled again for the batch
    calls = {name: peers.step(peer, inputs, upstream) for name, (peer, inputs) in variants.items()}
    square = torch.randn(SQUARE, SQUARE).to(dtype)
    return interleave({**calls, "matrix product": lambda: square @ square}, rounds, tick)


def ranking(shape: Shape, dtype: torch.dtype, rounds: int, tick: Callable[[], None]) -> Times:
    """The same kernel with and without norms, best head and residual."""
    backend = kernels_of("cpu")
    assert isinstance(backend, backend_cpu.CpuBackend)
    tensors = peers.packed(shape, dtype)
    projected = torch.randn(shape.batch, shape.length, shape.heads * shape.width).to(dtype)
    query, key, value = tensors
    scale = shape.width**-0.5

    def full() -> None:
        result = backend.forward(query, key, value, None, None, 0.0, scale, "induced", "sample")
        backend.add_best_head(projected, result.output, result.best_head, "tile", projected)

    def bare() -> None:
        result = backend.results(query)
        torch.ops.rsattn_C.cpu_forward(
            query, key, value, None, None, 0.0, scale, NO_NORM, True, backend.variant, *result
        )

    return interleave({"full": full, "bare": bare}, 2 * rounds, tick)


class SdpaAttention(torch.nn.Module):
    """pytorch_pretrained_vit's attention through SDPA: what its block would cost at its best."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q, self.k, self.v = attention.proj_q, attention.proj_k, attention.proj_v
        self.heads = attention.n_heads

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.unflatten(2, (self.heads, -1)).transpose(1, 2)

        joined = peers.sdpa(split(self.q(x)), split(self.k(x)), split(self.v(x)))
        return joined.transpose(1, 2).flatten(2)


def model(rounds: int, tick: Callable[[], None]) -> dict[str, Any]:
    """ViT-B/16 at 384 pixels (N = 577), float32 inference: patched, and the same weights on SDPA."""
    from pytorch_pretrained_vit import ViT

    torch.manual_seed(0)
    patched = ViT("B_16_imagenet1k", pretrained=False, image_size=384).eval()
    plain = ViT("B_16_imagenet1k", pretrained=False, image_size=384).eval()
    plain.load_state_dict(patched.state_dict())
    images = torch.randn(2, 3, 384, 384)
    with torch.no_grad():
        before = plain.transformer(plain.patch_embedding(images).flatten(2).transpose(1, 2))
        for block in plain.transformer.blocks:
            block.attn = SdpaAttention(block.attn)
        after = plain.transformer(plain.patch_embedding(images).flatten(2).transpose(1, 2))
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    rsattn.patch(patched)

    def run(vit: torch.nn.Module) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return vit(images)

        return call

    return {"batch": 2, "times": interleave({"ours": run(patched), "sdpa": run(plain)}, max(5, rounds // 3), tick)}


@contextmanager
def threads(count: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def scaling(shape: Shape, dtype: torch.dtype, rounds: int) -> Times:
    """One thread and two, and the same for a matrix product: what the machine itself gives."""
    tensors = peers.packed(shape, dtype)
    square = torch.randn(SQUARE, SQUARE).to(dtype)

    step = peers.step(peers.ours, tensors, None)
    times: Times = {}
    for _ in range(3):  # changing the number of threads is not part of what is timed, so rounds come in blocks
        for count in (1, 2):
            with threads(count):
                block = interleave({f"ours {count}": step, f"product {count}": lambda: square @ square}, rounds // 3)
            for name, seconds in block.items():
                times.setdefault(name, []).extend(seconds)
    return times


def machine() -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
        ).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction set": backend_cpu.variants()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "rsattn": rsattn.__version__,
        "commit": commit,
    }


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.*)$", text, re.MULTILINE))
    return (
        f"{fields.get('model name', platform.machine())}, family {fields.get('cpu family')} model {fields.get('model')}"
    )


def folder_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def show(runs: list[dict[str, Any]]) -> None:
    """The tables of one run, or the ranges of several on one machine."""
    console = Console(width=120)
    names = ("processor", "threads", "instruction set", "torch", "commit")
    about = ", ".join(f"{name} {' '.join(sorted({str(run[name]) for run in runs}))}" for name in names)
    console.print(f"[bold]{about}[/bold]; medians; (B,H,N,E); ratios above 1: ours is faster")
    console.print(attention_table([run["attention"] for run in runs]))
    console.print(other_table(runs))


def between(values: list[float], form: str) -> str:
    """One value, or the smallest and the largest of several."""
    low, high = (form.format(value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def attention_table(runs: list[list[dict[str, Any]]]) -> Table:
    table = Table("shape", "dtype", "pass", "ours ms", "SDPA x", "eager x", "compiled x", "of the matrix product")
    for rows in zip(*runs):
        first, every = rows[0], [row["times"] for row in rows]
        shape = Shape(*map(int, first["shape"].split(",")))
        flops = shape.flops * (3.5 if first["train"] else 1.0)
        own = [median(times, "ours") for times in every]

        def ratio(*names: str, own: list[float] = own, every: list[Times] = every) -> str:
            if names[0] not in every[0]:
                return "-"
            return between([fastest(times, *names) / mine for times, mine in zip(every, own)], "{:.2f}")

        rates = [2 * SQUARE**3 / median(times, "matrix product") for times in every]
        table.add_row(
            first["shape"],
            first["dtype"],
            "forward + backward" if first["train"] else "forward",
            between([1e3 * seconds for seconds in own], "{:.2f}"),
            ratio("sdpa", "sdpa contiguous"),
            ratio("eager"),
            ratio("compiled"),
            between([flops / mine / rate for mine, rate in zip(own, rates)], "{:.2f}"),
        )
    return table


def other_table(runs: list[dict[str, Any]]) -> Table:
    table = Table("what", "shape", "dtype", "value")
    for rows in zip(*(run["ranking"] for run in runs)):
        shares = [100 * (median(row["times"], "full") / median(row["times"], "bare") - 1) for row in rows]
        name = "norms, best head and residual cost"
        table.add_row(name, rows[0]["shape"], rows[0]["dtype"], between(shares, "{:+.1f} %"))
    for rows in zip(*(run["threads_scaling"] for run in runs)):
        for label, name in (("two threads instead of one", "ours"), ("the same, matrix product", "product")):
            gains = [median(row["times"], f"{name} 1") / median(row["times"], f"{name} 2") for row in rows]
            table.add_row(label, rows[0]["shape"], rows[0]["dtype"], between(gains, "{:.2f}x"))
    models = [run["model"] for run in runs if "model" in run]
    if models:
        gains = [median(model["times"], "sdpa") / median(model["times"], "ours") for model in models]
        batch = f"batch {models[0]['batch']}"
        table.add_row("ViT-B/16 at 384, SDPA / patched", batch, "float32", between(gains, "{:.2f}x"))
    return table


if __name__ == "__main__":
    main()
