"""Labels computed while the caller goes on with something else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from haljax.campaign.oracle import Oracle, Outcome


class Background:
    """An oracle that works in a thread of its own, with `label` as `Oracle` has it, but for the waiting.

    Parameters
    ----------
    oracle
        Closed with this object, by ``with``.
    at_most
        `label` waits only while more labels than these are outstanding.

    Attributes
    ----------
    outstanding : ids of the jobs that were given and have no outcome yet.
    """

    def __init__(self, oracle: Oracle, at_most: int) -> None:
        self.outstanding: set[Any] = set()
        self._at_most = at_most
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome | BaseException] = SimpleQueue()
        self._oracle = oracle
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def label(self, jobs: Mapping[Any, Any], on_result: Callable[[Any, Outcome], None]) -> None:
        """Ask for labels, and hand over those that have finished: these or earlier ones, in this thread."""
        self.outstanding |= set(jobs)
        for job in jobs.items():
            self._jobs.put(job)
        self._collect(on_result, self._at_most)

    def finish(self, on_result: Callable[[Any, Outcome], None]) -> None:
        """Wait for all that is outstanding."""
        self._collect(on_result, 0)

    def _collect(self, on_result: Callable[[Any, Outcome], None], at_most: int) -> None:
        while True:
            try:
                outcome = self._outcomes.get(block=len(self.outstanding) > at_most)
            except Empty:
                return
            if isinstance(outcome, BaseException):
                raise outcome
            self.outstanding.remove(outcome.id)
            on_result(outcome.id, outcome)

    def _work(self) -> None:
        try:
            self._oracle.label({}, lambda _, outcome: self._outcomes.put(outcome), self._jobs)
        except BaseException as error:
            self._outcomes.put(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._jobs.put(error)  # None: no more jobs; else what is running is ended
        self._thread.join()
        self._oracle.close()
