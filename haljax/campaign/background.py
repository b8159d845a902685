"""Labels computed while the caller goes on with something else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from haljax.campaign.oracle import Oracle, Outcome


class Background:
    """An oracle that works in a thread of its own. For use in a ``with``, at whose end it is closed.

    Parameters
    ----------
    on_result
        Called with the id and the outcome of each job, failed ones included, in the thread that calls one of the
        methods; what has finished when an exception ends the ``with`` is handed over too.
    at_most
        `label` waits only while more labels than these are outstanding.

    Attributes
    ----------
    outstanding : ids of the jobs that were given and whose outcome was not handed over yet.
    """

    def __init__(self, oracle: Oracle, on_result: Callable[[Any, Outcome], None], at_most: int) -> None:
        self.outstanding: set[Any] = set()
        self._oracle, self._on_result, self._at_most = oracle, on_result, at_most
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome | BaseException] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def label(self, jobs: Mapping[Any, Any]) -> None:
        """Ask for labels, a payload by its id, and hand over those that have finished: these or earlier ones."""
        self.outstanding |= set(jobs)
        for job in jobs.items():
            self._jobs.put(job)
        self._collect(self._at_most)

    def take(self) -> None:
        """Hand over what has finished, and wait for nothing."""
        self._collect(len(self.outstanding))

    def finish(self) -> None:
        """Wait for all that is outstanding."""
        self._collect(0)

    def _collect(self, at_most: int) -> None:
        while True:
            try:
                outcome = self._outcomes.get(block=len(self.outstanding) > at_most)
            except Empty:
                return
            if isinstance(outcome, BaseException):
                raise outcome
            self.outstanding.remove(outcome.id)
            self._on_result(outcome.id, outcome)

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
        self._jobs.put(None if error is None else InterruptedError())  # the last job; or: end what is running
        self._thread.join()
        self._oracle.close()
        if error is not None:
            with contextlib.suppress(Exception):  # what ended the campaign is what its caller is to hear of
                self.take()
