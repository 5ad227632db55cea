"""DistributedDataParallel and FSDP2 on two processes: the gradients of one process that sees the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("parallel_worker.py")


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_give_the_gradients_of_one(how: str) -> None:
    """The worker compares them; see parallel_worker.py."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared["OMP_NUM_THREADS"] = "1"
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), how],
            env={**shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(said)
    assert all("same gradients" in text for text in said)
