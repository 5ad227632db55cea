"""Ctrl-C between two steps, where nothing is half done."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

from lightning.pytorch import Callback


class StopBetweenSteps(Callback):
    """Inside it as a context, the first Ctrl-C waits for the step to end, and only the second one does not.

    Anywhere else it may fall into the writing of a checkpoint, or into a log's queue, which then is waited for without
    end.

    Attributes:
        began: whether training has begun; until then, Lightning restores what a checkpoint has.
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
        print("stopping after this step; once more Ctrl-C stops at once", file=sys.stderr, flush=True)

    def on_train_start(self, *_: Any) -> None:
        self.began = True

    def on_train_batch_end(self, *_: Any) -> None:
        self._stop_if_asked()

    def on_validation_batch_end(self, *_: Any) -> None:
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._asked:
            raise KeyboardInterrupt
