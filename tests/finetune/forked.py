"""`rsattn` in a process of its own that needs no imports, because it is forked from this one.

Starting Python and importing Lightning takes longer than the short runs of the tests. A process that has used CUDA
cannot be forked; there the new process imports everything.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from rsattn.cli.main import main

COMMAND = Path(__file__).with_name("command.py")


class Forked(AbstractContextManager["Forked"]):
    """A process with one thread that runs `rsattn WORDS` in a session of its own; `said` gets its two outputs."""

    def __init__(
        self,
        words: Sequence[str],
        said: Path,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn" if torch.cuda.is_initialized() else "fork")
        self.said = said
        self.process = context.Process(target=_run, args=(words, said, environment or {}, before))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def ended(self) -> bool:
        return not self.process.is_alive()

    def signal(self, number: int) -> None:
        """To the process alone, not to those that it started."""
        os.kill(self.pid, number)

    def code(self) -> int | None:
        """Wait for the end; the exit code, negative for a signal."""
        self.process.join(300)
        return self.process.exitcode

    def __exit__(self, *_: object) -> None:
        if not self.ended():
            self.process.kill()
        self.process.join()


def _run(words: Sequence[str], said: Path, environment: Mapping[str, str], before: Callable[[], None] | None) -> None:
    os.setsid()
    with said.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        os.dup2(file.fileno(), 1)  # of the processes that this one starts
        os.dup2(file.fileno(), 2)
        os.environ.update(environment)
        # Lightning starts further processes with sys.argv, or with the module of __spec__, as in `python -m pytest`.
        sys.argv, sys.modules["__main__"].__spec__ = [str(COMMAND), *words], None
        torch.set_num_threads(1)
        if before is not None:
            before()
        sys.exit(main(words))
