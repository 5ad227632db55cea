"""Stop on Ctrl-C between two steps, where nothing is unfinished."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

from lightning.pytorch import Callback


class StopBetweenSteps(Callback):
    """As a context manager: the first Ctrl-C waits for the end of the step, the second one stops at once.

    Elsewhere, Ctrl-C can interrupt the writing of a checkpoint, or a log queue, which then blocks forever. Forked
    processes that load images get Ctrl-C too, and leave it to this one, which ends them.

    Attributes:
        began: whether training has begun; before, Lightning restores the checkpoint.
    """

    def __init__(self) -> None:
        self.began = False
        self._asked = False
        self._process = os.getpid()
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("stopping after this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    def on_train_start(self, *_: Any) -> None:
        self.began = True

    def on_train_batch_end(self, *_: Any) -> None:
        self._stop_if_asked()

    def on_validation_batch_end(self, *_: Any) -> None:
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._asked:
            raise KeyboardInterrupt
