"""`pytest bench/ --benchmark-only`: one table for each shape, dtype and pass, a row for each way to compute it.

pytest-benchmark times one row after the other, so on a noisy machine its ratios drift; `python -m bench.cpu` lets the
variants take turns.
"""

import pytest
import torch

import rsattn

from . import peers
from .peers import Shape

SHAPES = [Shape(8, 12, 197, 64), Shape(4, 12, 577, 64), Shape(16, 4, 65, 768)]
PEERS = {"rsattn": peers.ours, "sdpa (no norms)": peers.sdpa, "eager": peers.eager}
REASONS = rsattn.backends("cpu")["cpu"].reasons


@pytest.mark.skipif(bool(REASONS), reason="; ".join(REASONS))
@pytest.mark.parametrize("train", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("peer", PEERS)
def test_cpu(benchmark, shape, dtype, train, peer):
    benchmark.group = f"{shape} {str(dtype).removeprefix('torch.')} {'forward + backward' if train else 'forward'}"
    benchmark.name = peer
    tensors = peers.packed(shape, dtype)
    upstream = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype) if train else None
    peers.verify(PEERS[peer], tensors, upstream)
    benchmark.pedantic(peers.step(PEERS[peer], tensors, upstream), rounds=7, warmup_rounds=2)
