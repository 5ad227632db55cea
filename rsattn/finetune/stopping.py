"""Stop on Ctrl-C between two steps, where nothing is unfinished."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

from lightning.pytorch import Callback


class StopBetweenSteps(Callback):
    """As a context manager: the first Ctrl-C waits for the end of the step, the second one stops at once.

    Elsewhere, Ctrl-C can interrupt the writing of a checkpoint, or a log queue, which then blocks forever.

    Attributes:
        began: whether training has begun; before, Lightning restores the checkpoint.
    """

    def __init__(self) -> None:
        self.began = False
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
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
