"""Peak memory: all memory that a call uses while it runs, from any allocator, and nothing else."""

import sys

import numpy as np
import pytest
import torch

from rsattn.bench import memory

CPU = torch.device("cpu")
MB = 1_000_000
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measured with Linux's /proc; run it on Linux")


def test_a_temporary_is_seen():
    def call(index):
        return float(torch.ones(50 * MB // 4).sum())

    # Pages are counted in batches of up to 64 a thread; other threads may allocate meanwhile.
    assert memory.peak(call, CPU) == pytest.approx(50 * MB, abs=4 * MB)


def test_what_is_not_torchs_is_seen_too():
    def call(index):
        return float(np.ones(50 * MB // 8).sum())

    assert memory.peak(call, CPU) == pytest.approx(50 * MB, abs=4 * MB)


def test_what_was_freed_before_hides_nothing():
    torch.ones(8 * MB // 4)  # once such a block is freed, blocks up to this size come from the heap
    blocks = [torch.ones(MB // 4) for _ in range(60)]
    last = torch.ones(MB // 4)  # above them: the heap cannot shrink by itself
    del blocks

    def call(index):
        blocks = [torch.ones(MB // 4) for _ in range(40)]
        return len(blocks)

    assert memory.peak(call, CPU) == pytest.approx(40 * MB, abs=4 * MB)
    del last


def test_an_earlier_peak_is_forgotten():
    torch.ones(100 * MB // 4)
    assert memory.peak(lambda index: None, CPU) < 4 * MB


def test_none_where_it_cannot_be_counted(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR", tmp_path)
    assert memory.peak(lambda index: None, CPU) is None
