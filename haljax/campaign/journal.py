"""An append-only journal of JSON lines that survives kill -9, power loss and a full disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)


class JournalError(RuntimeError):
    """The journal cannot be opened, read or written; the message says what to do."""


class Journal:
    """The journal of one campaign, locked against other writers for as long as it is open.

    Opening repairs the only damage that a killed writer can leave, a torn last line: it is cut off, with a
    logged note. Its record was never acknowledged.

    Parameters
    ----------
    path
        The file; created when missing. Its directory must exist.

    Raises
    ------
    JournalError
        Another process has it open, or it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            # Not O_APPEND: `append` writes at a known place, so that it can be repeated or rolled back.
            self._file = open(self.path, "r+b", 0, opener=lambda name, mode: os.open(name, mode | os.O_CREAT))
        except OSError as error:
            raise JournalError(
                f"{self.path} cannot be opened: {error.strerror}. "
                "Choose a run directory that exists and is yours to write."
            ) from error
        try:
            self._lock()
            self._end = self._repair()
            sync_directory(self.path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and return once it is on the disk.

        Floats come back bit for bit; arrays are written as nested lists, tuples come back as lists.

        Raises
        ------
        JournalError
            The record holds NaN or something that JSON has no form for, or the disk is full. The journal is
            then as it was before.
        """
        line = encode(record, f"{self.path}: a record of type {record.get('type')!r}") + b"\n"
        start = self._end
        try:
            self._write(line, start)
        except KeyboardInterrupt:
            # The record is finished work, and to write it again at the same place is harmless.
            self._write(line, start)
            raise
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), start)
            raise JournalError(
                f"{self.path} cannot be written: {error.strerror}. Nothing recorded so far is lost; "
                "free some space on that disk and resume."
            ) from error

    def read(self) -> Iterator[dict[str, Any]]:
        """Replay all records from the first; raises as `read_journal`."""
        return read_journal(self.path)

    __iter__ = read

    def close(self) -> None:
        """Release the lock. Nothing is pending: every record is on the disk already."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(
                f"{self.path} is in use: another process is running this campaign. "
                "Wait for it or stop it, or choose another run directory."
            ) from error
        except OSError as error:  # some network file systems have no locks
            log.warning(
                "%s cannot be locked (%s): make sure that only one process runs this campaign",
                self.path,
                error.strerror,
            )

    def _repair(self) -> int:
        """Cut off a torn last line; returns the length of the file."""
        start = end = 0
        last = b""
        with open(self.path, "rb") as file:
            for last in file:
                start, end = end, end + len(last)
        if not last:
            return 0
        try:
            _decode(last)
        except ValueError:
            log.warning(
                "%s: dropped a torn last line (%d bytes) that a killed run had not finished writing",
                self.path,
                len(last),
            )
            os.ftruncate(self._file.fileno(), start)
            return start
        if not last.endswith(b"\n"):  # whole but for its end: a kill in mid write, or an editor
            os.pwrite(self._file.fileno(), b"\n", end)
            end += 1
        return end

    def _write(self, line: bytes, start: int) -> None:
        done = 0
        while done < len(line):
            done += os.pwrite(self._file.fileno(), line[done:], start + done)
        os.fsync(self._file.fileno())
        self._end = start + done


def read_journal(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Replay a journal without locking it, for instance to report on a campaign that is running.

    A torn or half-written last line is passed over.

    Raises
    ------
    JournalError
        A line before the last is not a record.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = _decode(line)
            except ValueError as error:
                if not file.peek(1):
                    return
                raise JournalError(
                    f"{path}, line {number} is not a record ({error}). The file was damaged or edited: put "
                    "it back from a copy, or delete that line; what it recorded is then lost and done again."
                ) from error
            yield record


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write a file so that at every instant, also after kill -9, it is whole: the old one or the new one.

    Raises
    ------
    JournalError
        It cannot be written, for instance because the disk is full. The old file is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except FileNotFoundError as error:
        raise JournalError(f"{path} cannot be written: there is no directory {path.parent}; make it first") from error
    except OSError as error:
        raise JournalError(
            f"{path} cannot be written: {error.strerror}. What was there before is untouched; "
            "free some space on that disk, or choose a directory that is yours to write, and resume."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # already renamed, as a rule
            temporary.unlink()


def encode(value: Any, what: str) -> bytes:
    """One line of JSON; `what` names the value in the JournalError raised when it has no such form."""
    try:
        return json.dumps(value, allow_nan=False, default=_as_list).encode()
    except ValueError as error:
        raise JournalError(
            f"{what} holds NaN or an infinity ({error}): check numbers before they are recorded."
        ) from error
    except TypeError as error:
        raise JournalError(
            f"{what} cannot be written as JSON: {error}. Give numbers, strings, lists and dicts."
        ) from error


def sync_directory(directory: Path) -> None:
    """Flush a directory: a new or renamed file survives power loss only once its directory is on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_list(array: Any) -> Any:
    if hasattr(array, "tolist"):  # numpy and JAX arrays and scalars
        return array.tolist()
    raise TypeError(f"{array!r} is of type {type(array).__name__}")


def _decode(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    return record
