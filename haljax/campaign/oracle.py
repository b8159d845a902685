"""Labels through any Executor, by functions that may raise, hang, return NaN or end their process.

By default each worker is a spawned process (never forked: JAX has threads) with a pool of its own. So a label
that ends its process costs that label one attempt and the others nothing, however many run beside it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import logging
import multiprocessing
import os
import pickle
import signal
import textwrap
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent import futures
from concurrent.futures import BrokenExecutor, Executor, Future
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, NamedTuple, NoReturn, Self, cast

import numpy as np

log = logging.getLogger(__name__)

POLL_S = 0.05  # between two looks for further jobs while labels are computed
WATCH_S = 0.5  # between two looks after the workers
GRACE_S = 2.0  # beyond a worker's own time limit, after which it is ended from here


class OracleError(RuntimeError):
    """No label can be computed at all; the message says what to do."""


class Outcome(NamedTuple):
    """What became of one job: exactly one of `result` and `error` is None.

    `error` is one line, that of the last attempt; `seconds` is the wall time of the last attempt.
    """

    id: Hashable
    result: dict[str, Any] | None
    error: str | None
    attempts: int
    seconds: float


class Oracle:
    """Computes labels, several at once, and streams them as they finish.

    Parameters
    ----------
    function
        payload -> dict of numbers, strings, arrays and nested lists of them. A worker process loads it once
        and keeps it until a label fails, so it may hold a calculator.
    executor
        None: `workers` processes on this machine. Else any `concurrent.futures.Executor`, or a function that
        makes one, which is then closed with the oracle. Such an executor is handed all jobs at once; when it
        breaks, what is left fails.
    workers
        Number of processes; each is started when first needed. Not used with an executor.
    timeout_s
        Longest time for one attempt. It raises TimeoutError in the worker process; where that is not heeded
        (a hang in compiled code), the default executor ends the process soon after. Threads have no time-out.
    max_attempts
        A label that failed so many times is given up.
    validate
        validate(payload, result) raises when the result is not acceptable, for instance not converged.

    Raises
    ------
    OracleError
        `function` or `validate` cannot be sent to a process, or the processes do not start.
    """

    def __init__(
        self,
        function: Callable[[Any], dict[str, Any]],
        executor: Executor | Callable[[], Executor] | None = None,
        *,
        workers: int = 2,
        timeout_s: float | None = None,
        max_attempts: int = 2,
        validate: Callable[[Any, dict[str, Any]], None] | None = None,
    ) -> None:
        for name, value in (("workers", workers), ("max_attempts", max_attempts), ("timeout_s", timeout_s)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} = {value}: give a positive number")
        self._task: Any = (function, validate)
        self._given = executor
        self._executor = executor if isinstance(executor, Executor) else None
        self._seats: list[_Seat] = []
        self._workers, self._timeout_s, self._max_attempts = workers, timeout_s, max_attempts
        if executor is None:
            self._task = _pickled(self._task, f"the label function {function!r}", OracleError)
        elif timeout_s is not None and isinstance(executor, futures.ThreadPoolExecutor):
            log.warning("timeout_s = %g has no effect: threads cannot be timed out; use processes", timeout_s)

    def label(
        self,
        jobs: Mapping[Any, Any],
        on_result: Callable[[Any, Outcome], None],
        more: SimpleQueue[Any] | None = None,
    ) -> None:
        """Compute a label for each payload in `jobs`, by id.

        `on_result(id, outcome)` is called in this thread once for each job, as they finish, failed ones
        included. When it raises, and on Ctrl-C, the workers are ended and the exception propagates; the next
        call starts new ones.

        From the queue `more` another thread may give further jobs, (id, payload), until it gives None, after which
        what is left is finished, or an exception, which is raised here.
        """
        waiting = deque((id, payload, 1) for id, payload in jobs.items())
        running: dict[Future[_Attempt], _Run] = {}
        try:
            while waiting or running or more is not None:
                more = _take(more, waiting, wait=not (waiting or running))
                while waiting and (self._given is not None or len(running) < self._workers):
                    id, payload, attempt = waiting.popleft()
                    try:
                        future, seat = self._submit(id, payload, {run.seat for run in running.values()})
                        running[future] = _Run(id, payload, attempt, time.perf_counter(), seat)
                    except _Refused as refusal:
                        on_result(id, Outcome(id, None, str(refusal), attempt - 1, 0.0))
                look = WATCH_S if more is None else POLL_S
                lost = self._watch(running)
                done = futures.wait(running, 0 if lost else look, return_when=futures.FIRST_COMPLETED).done
                for future in done | lost:
                    run = running.pop(future)
                    result, error, seconds = self._collect(future, run)
                    if error is not None and run.attempt < self._max_attempts:
                        log.warning("label %s, attempt %d: %s; trying again", run.id, run.attempt, error)
                        waiting.append((run.id, run.payload, run.attempt + 1))
                    else:
                        on_result(run.id, Outcome(run.id, result, error, run.attempt, seconds))
        except BaseException:
            self._abort(running)
            raise

    def close(self) -> None:
        """End the workers, and the executor where the oracle made it."""
        while self._seats:
            self._seats.pop().pool.shutdown()
        if self._executor is not None and self._executor is not self._given:
            self._executor.shutdown()
            self._executor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, id: Hashable, payload: Any, busy: set[_Seat | None]) -> tuple[Future[_Attempt], _Seat | None]:
        if self._given is not None:
            try:
                if self._executor is None:
                    self._executor = cast(Callable[[], Executor], self._given)()
                return self._executor.submit(_attempt, self._task, payload, self._timeout_s, False), None
            except RuntimeError as error:  # BrokenExecutor is one, and so is a shutdown
                message = f"the executor takes no more work ({_one_line(error)}): resume with a new one"
                raise _Refused(message) from error
        parcel = _pickled(payload, f"the payload of label {id}", _Refused)
        seat = next((seat for seat in self._seats if seat not in busy), None)
        if seat is None:
            self._seats.append(seat := _Seat())
        try:
            return seat.pool.submit(_attempt, self._task, parcel, self._timeout_s, True), seat
        except BrokenExecutor:  # it died while idle, through no fault of this label
            self._bury(seat)
            return self._submit(id, payload, busy)

    def _watch(self, running: Mapping[Future[_Attempt], _Run]) -> set[Future[_Attempt]]:
        """End workers that are dead or overdue, with what they have started; those of which the pool never learns.

        It learns of a death only when nobody holds the worker's descriptors any more, and a program that the worker
        started may, long after.
        """
        lost, now = set(), time.perf_counter()
        for future, run in running.items():
            if (seat := run.seat) is None or future.done():
                continue
            if seat.killed is not None:
                if now - seat.killed > GRACE_S:
                    lost.add(future)
                continue
            overdue = self._timeout_s is not None and now - run.started > _most(self._timeout_s)
            if overdue or seat.dead():
                seat.overdue, seat.killed = overdue, now
                seat.kill()
        return lost

    def _collect(self, future: Future[_Attempt], run: _Run) -> _Attempt:
        seconds = time.perf_counter() - run.started
        if not future.done():
            assert run.seat is not None
            return _Attempt(None, self._bury(run.seat, seconds), seconds)
        if future.cancelled():
            return _Attempt(None, "the executor cancelled it", seconds)
        failure = future.exception()
        if failure is None:
            return future.result()
        if run.seat is not None and isinstance(failure, BrokenExecutor):
            return _Attempt(None, self._bury(run.seat, seconds), seconds)
        return _Attempt(None, f"the executor brought no label back: {_one_line(failure)}", seconds)

    def _bury(self, seat: _Seat, seconds: float = 0.0) -> str:
        """Remove a dead worker; says what it died of."""
        self._seats.remove(seat)
        seat.kill()
        if seat.ready.exception() is not None:
            raise OracleError(
                "the worker processes do not start. Each of them imports the main script anew: keep what "
                "starts the campaign under `if __name__ == '__main__':`, in a file, not on standard input."
            )
        code = seat.exit_code()
        if self._timeout_s is not None and (seat.overdue or (code == 1 and seconds > self._timeout_s)):
            return f"TimeoutError: no label within {self._timeout_s:g} s, and its process had to be ended"
        if code < 0:
            return f"its process was ended by signal {-code} ({signal.strsignal(-code)})"
        return f"its process ended with exit code {code}"

    def _abort(self, running: Mapping[Future[_Attempt], _Run]) -> None:
        while self._seats:
            self._seats.pop().kill()
        for future in running:
            future.cancel()
        if self._executor is not None and self._executor is not self._given:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None


def _take(more: SimpleQueue[Any] | None, waiting: deque, wait: bool) -> SimpleQueue[Any] | None:
    """Move what another thread has given to the waiting jobs; None when it has given the last."""
    with contextlib.suppress(Empty):
        while more is not None:
            given = more.get(block=wait)
            if isinstance(given, BaseException):
                raise given
            if given is None:
                return None
            waiting.append((*given, 1))
            wait = False
    return more


class _Seat:
    """A worker process."""

    overdue = False
    killed: float | None = None  # when, because it was dead or overdue

    def __init__(self) -> None:
        self.pool = futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start_worker)
        try:
            with _interrupts_held():
                self.ready = self.pool.submit(os.getpid)
                # Private; the public kill_workers (Python 3.14) tells no exit code and spares subprocesses.
                ((self.pid, self.process),) = self.pool._processes.items()
        except KeyboardInterrupt:
            self.kill()
            raise

    def dead(self) -> bool:
        return self.ready.done() and self.process.exitcode is not None

    def exit_code(self) -> int:
        """Once it has ended; the pool's own thread may have learned of it and not noted it yet."""
        for _ in range(500):
            if (code := self.process.exitcode) is not None:
                return code
            time.sleep(0.01)
        return 0

    def kill(self) -> None:
        """End the process, and what programs it has started, whatever it is doing."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: the latter for a dead group
            os.killpg(self.pid, signal.SIGKILL)
        self.process.kill()  # while it starts it has no group of its own yet
        self.pool.shutdown(wait=False, cancel_futures=True)


class _Run(NamedTuple):
    id: Hashable
    payload: Any
    attempt: int
    started: float
    seat: _Seat | None


class _Attempt(NamedTuple):
    result: dict[str, Any] | None
    error: str | None
    seconds: float


class _Refused(Exception):
    """A job that could not be submitted."""


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back a Ctrl-C until the end, and from a process that is started, which inherits the mask."""
    main = threading.current_thread() is threading.main_thread()
    held: list[int] = []  # what other threads take in, which the mask does not bind
    handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(number)) if main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main:
            signal.signal(signal.SIGINT, handler)
    if held:
        signal.raise_signal(signal.SIGINT)


def _pickled(value: Any, what: str, kind: type[Exception]) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:  # PicklingError, TypeError, AttributeError, and whatever __reduce__ raises
        raise kind(
            f"{what} cannot be sent to a worker process ({_one_line(error)}). Use functions that a module "
            "defines at its top level, and give a calculator as a dotted path and keyword arguments."
        ) from error


# -------------------------------------------------------------------------------------- in the worker process


def _start_worker() -> None:
    # A group of its own: Ctrl-C at the terminal stays with the caller, and programs started here die with it.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _attempt(task: Any, payload: Any, timeout_s: float | None, own: bool) -> _Attempt:
    """One attempt at a label. `own`: in a process of the default executor, with task and payload pickled."""
    start = time.perf_counter()
    try:
        function, validate = _load(task) if own else task
        payload = pickle.loads(payload) if own else payload
        with _time_limit(timeout_s, own):
            result = function(payload)
            if not isinstance(result, dict):
                raise TypeError(f"the label function returned {type(result).__name__} instead of a dict")
            if bad := [str(key) for key, value in result.items() if not _finite(value)]:
                raise ValueError(f"label contains NaN or an infinity in {', '.join(bad)}")
            if validate is not None:
                validate(payload, result)
    except (Exception, SystemExit) as error:
        _load.cache_clear()  # the next attempt is not to inherit a calculator in a bad state
        return _Attempt(None, _one_line(error), time.perf_counter() - start)
    finally:
        if own:
            faulthandler.cancel_dump_traceback_later()
    return _Attempt(result, None, time.perf_counter() - start)


@contextlib.contextmanager
def _time_limit(timeout_s: float | None, own: bool) -> Iterator[None]:
    """Raise TimeoutError after a while, in the main thread of a worker process; elsewhere do nothing."""
    main_thread = threading.current_thread() is threading.main_thread()
    if timeout_s is None or not main_thread or multiprocessing.parent_process() is None:
        yield
        return
    signal.signal(signal.SIGALRM, functools.partial(_time_out, timeout_s))
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    if own:  # ends the process; needs neither the interpreter nor signals, so it ends compiled code too
        faulthandler.dump_traceback_later(_most(timeout_s) - GRACE_S, exit=True, file=_null())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def _most(timeout_s: float) -> float:
    """Seconds after which nothing in a worker has heeded its time limit."""
    return 1.1 * timeout_s + 1.0 + GRACE_S


def _time_out(timeout_s: float, number: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError(f"no label within {timeout_s:g} s")


@functools.lru_cache(maxsize=1)
def _load(task: bytes) -> Any:
    return pickle.loads(task)


@functools.cache
def _null() -> Any:
    return open(os.devnull, "w")


def _finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    if isinstance(value, str | bytes) or value is None:
        return True
    array = np.asarray(value)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


def _one_line(error: BaseException) -> str:
    """Type, message and, where known, place of an exception outside this module."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 500, placeholder=" ...") + place
