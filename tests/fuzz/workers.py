"""Checks plans in separate processes, so that a crash or a hang is a finding and does not end the campaign."""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from .judging import Finding, judge
from .plan import Plan

Judge = Callable[[Plan], list[Finding]]

# Seconds for one call. A few calls take a second, and a loaded machine takes longer.
PATIENCE = 120


@dataclass(frozen=True)
class Outcome:
    """The findings of a call."""

    number: int
    plan: Plan
    findings: tuple[Finding, ...]


class Worker:
    """A process and its current call."""

    def __init__(self, context: Any, judge: Judge, patience: float) -> None:
        self.patience = patience
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, judge), daemon=True)
        self.process.start()
        theirs.close()
        self.job: tuple[int, Plan] | None = None
        self.started = False
        self.since = math.inf

    def give(self, job: tuple[int, Plan]) -> None:
        self.job = job
        if self.started:
            self.since = time.monotonic()
        self.pipe.send(job[1])

    def take(self) -> Outcome | None:
        """The outcome of its call, which may have ended the process. None if the worker has only started."""
        assert self.job is not None
        try:
            findings = self.pipe.recv()
            if findings is None:
                self.started, self.since = True, time.monotonic()
                return None
        except (EOFError, ConnectionResetError):
            self.process.join()
            findings = [Finding("crash", f"the process ended with {_words(self.process.exitcode)}")]
        number, plan = self.job
        self.job = None
        return Outcome(number, plan, tuple(findings))

    def give_up(self) -> Outcome:
        assert self.job is not None
        number, plan = self.job
        self.stop()
        return Outcome(number, plan, (Finding("hang", f"no result after {self.patience:.0f} s"),))

    @property
    def late(self) -> bool:
        return self.job is not None and time.monotonic() - self.since > self.patience

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Pool:
    """A number of workers, which are restarted when they end."""

    def __init__(self, count: int, judge: Judge, patience: float) -> None:
        # The server has imported PyTorch but computed nothing, so new processes start at once. Before Python 3.12 it
        # finds this module only where PYTHONPATH says where it is, and rsattn anywhere.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["rsattn", __name__])
        self._judge, self._patience = judge, patience
        self._workers = [self._start() for _ in range(count)]

    def judge(self, jobs: Iterator[tuple[int, Plan]]) -> Iterator[Outcome]:
        """The outcomes of numbered plans, in the order in which they finish."""
        for index in range(len(self._workers)):
            self._give(index, jobs)
        while busy := [worker for worker in self._workers if worker.job is not None]:
            ready = wait([worker.pipe for worker in busy], timeout=1.0)
            for index, worker in enumerate(self._workers):
                outcome = worker.take() if worker.pipe in ready else worker.give_up() if worker.late else None
                if outcome is None:
                    continue
                if outcome.plan.hostile and outcome.findings and worker.process.is_alive():
                    worker.stop()  # a call that was not rejected may have written anywhere and may crash a later call
                if not worker.process.is_alive():
                    self._workers[index] = self._start()
                self._give(index, jobs)
                yield outcome

    def one(self, plan: Plan) -> Outcome:
        return next(self.judge(iter([(0, plan)])))

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()

    def _start(self) -> Worker:
        return Worker(self._context, self._judge, self._patience)

    def _give(self, index: int, jobs: Iterator[tuple[int, Plan]]) -> None:
        if (job := next(jobs, None)) is not None:
            self._workers[index].give(job)


@contextmanager
def pool(count: int, judge: Judge = judge, patience: float = PATIENCE) -> Iterator[Pool]:
    """A pool of workers that ends with the context. A call that takes longer than `patience` seconds is a hang."""
    workers = Pool(count, judge, patience)
    try:
        yield workers
    finally:
        workers.close()


def _work(pipe: Connection, judge: Judge) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the campaign, which ends its workers
    pipe.send(None)  # started; the import of PyTorch does not count as time of the first call
    while True:
        plan = pipe.recv()
        try:
            findings = judge(plan)
        except Exception:
            findings = [Finding("error in the judge", traceback.format_exc())]
        pipe.send(findings)


def _words(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
