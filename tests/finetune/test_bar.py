"""The progress bar of a training; what it shows is tested in test_running.py."""

from __future__ import annotations

import pickle

from rsattn.cli.terminal import Terminal
from rsattn.finetune.bar import RunBar


def test_it_can_be_sent_to_a_new_process() -> None:
    """`--strategy ddp_spawn` does so."""
    with pickle.loads(pickle.dumps(RunBar(Terminal()))) as bar:
        bar.on_train_batch_end()
