"""The least time that an H100 needs at the shapes of the GPU targets, computed from its peak rates."""

from __future__ import annotations

import torch

from .shapes import real_shapes

BANDWIDTH, PRODUCTS = 3.0e12, 798e12
# 16 results of ex2 per clock and multiprocessor (CUDA C++ programming guide, arithmetic throughput, capability 9.0),
# 132 multiprocessors, at most 1.98 GHz.
EXPONENTIALS = 16 * 132 * 1.98e9
WORDS = (
    "Computed from the peak rates of one NVIDIA H100 80GB HBM3: 3.0 TB/s (a large copy), 798 TFLOP/s (an 8192-cubed "
    "bfloat16 product) and 4.2 exponentials per picosecond (16 per clock and multiprocessor). Microseconds, bfloat16, "
    "forward. From 257 tokens on, the induced norm's second pass computes the scores and their exponentials again."
)


def table() -> str:
    """A row for each shape: the time of its bytes alone, of its products alone and of its exponentials alone."""
    lines = ["| (B,H,N,E) | bytes | products | exponentials | largest | products, exponentials with the second pass |"]
    lines.append("|---|---|---|---|---|---|")
    for shape in real_shapes(torch.device("cuda")).values():
        scores = shape.batch * shape.heads * shape.length**2
        second = shape.length > 256
        times = {
            "bytes": shape.bytes(False, 2) / BANDWIDTH,
            "products": shape.flops(False) / PRODUCTS,
            "exponentials": scores / EXPONENTIALS,
        }
        largest = max(times, key=times.__getitem__)
        again = f"{1.5e6 * times['products']:.0f}, {2e6 * times['exponentials']:.0f}" if second else "-"
        cells = [f"{1e6 * seconds:.0f}" for seconds in times.values()]
        lines.append(f"| {shape} | {' | '.join(cells)} | {largest} | {again} |")
    return f"{WORDS}\n\n" + "\n".join(lines)
