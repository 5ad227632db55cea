"""Several callers at once: threads, and processes made by fork and by spawn, get the bits that one gets alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rsattn

if reasons := rsattn.backends("cpu")["cpu"].reasons:
    pytest.skip("; ".join(reasons), allow_module_level=True)

# A call forward and backward with everything in it, as bytes; large enough to be shared among threads.
CALL = """
import torch
import rsattn


def bits(seed, queries=130, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(2, queries, 3, 4, 32, generator=generator).to(dtype).requires_grad_()
    projected = torch.randn(2, queries, 128, generator=generator).to(dtype).requires_grad_()
    gamma = torch.randn(128, generator=generator).requires_grad_()
    mask = torch.rand(2, 1, queries, queries, generator=generator) > 0.3
    attention = rsattn.residual_attention_qkvpacked(qkv, mask, backend="cpu", return_received=True)
    joined = rsattn.add_best_head(projected, attention, gamma=gamma)
    grads = torch.autograd.grad(joined.float().square().sum() + attention.output.sum(), (qkv, projected, gamma))
    results = (*attention, joined, *grads)
    return b"".join(t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in results)
"""

THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

torch.set_num_threads(2)
dtypes = torch.float32, torch.bfloat16
kinds = [(seed, queries, dtype) for seed in range(3) for queries in (7, 130) for dtype in dtypes]
alone = [bits(*kind) for kind in kinds]
together = Barrier(6)


def caller(turn):
    torch.set_num_threads(1 + turn % 3)  # each thread's own
    together.wait()
    order = kinds[turn:] + kinds[:turn]
    return all(bits(*kind) == alone[kinds.index(kind)] for kind in order * 3)


sys.setswitchinterval(1e-5)
with ThreadPoolExecutor(6) as callers:
    assert all(callers.map(caller, range(6)))
"""

# The first call that loads the extension and chooses the instruction set, by all threads at the same time.
FIRST_CALLS = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

together = Barrier(6)


def caller(turn):
    together.wait()
    return bits(0)


with ThreadPoolExecutor(6) as callers:
    assert len(set(callers.map(caller, range(6)))) == 1
"""

FORK = """
import os
import signal

torch.set_num_threads(2)
before = bits(0)
child = os.fork()
if child == 0:
    signal.alarm(60)
    # The parent's threads are not here. PyTorch's own operations hang too if they are asked to use some (GNU OpenMP).
    torch.set_num_threads(1)
    os._exit(0 if bits(0) == before and bits(1) != before else 1)
_, status = os.waitpid(child, 0)
assert status == 0, f"the child: {status} (14 is a hang)"
assert bits(0) == before
"""

SPAWN = """
import multiprocessing

if __name__ == "__main__":
    before = bits(0)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map_async(bits, [0, 0, 0]).get(timeout=120) == [before] * 3
"""

# A data loader's workers are forks, and what they compute comes back through shared memory.
LOADER = """
class Attended(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.frombuffer(bytearray(bits(index)), dtype=torch.uint8)


torch.set_num_threads(2)
alone = [bits(index) for index in range(6)]
loader = torch.utils.data.DataLoader(Attended(), batch_size=None, num_workers=2, timeout=60)
assert [bytes(item.numpy()) for item in loader] == alone
"""


@pytest.mark.parametrize(
    "code", [THREADS, FIRST_CALLS, FORK, SPAWN, LOADER], ids=["threads", "first", "fork", "spawn", "loader"]
)
def test_callers_at_once_get_the_same_bits_as_one_alone(code: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"  # a file, for what spawn starts to import
    script.write_text(CALL + code)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
