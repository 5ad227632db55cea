"""Ctrl-C in training."""

from __future__ import annotations

import os
import signal

import pytest

from rsattn.finetune.stopping import StopBetweenSteps


def test_forked_processes_leave_ctrl_c_to_the_first(capfd: pytest.CaptureFixture[str]) -> None:
    """A terminal sends it to all of them."""
    with StopBetweenSteps():
        process = os.fork()
        if process == 0:
            try:
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGINT)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert capfd.readouterr().err == ""
