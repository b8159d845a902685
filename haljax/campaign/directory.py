"""A run directory belongs to one campaign, and a campaign to one config."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from haljax.campaign.journal import Journal, JournalError, encode, read_journal, sync_directory

log = logging.getLogger(__name__)

JOURNAL_NAME = "journal.jsonl"
_ABSENT = object()


class CampaignExists(JournalError):
    """The run directory holds a campaign already, and resuming it was not asked for."""


class CampaignMismatch(JournalError):
    """The run directory holds a campaign with another config."""


def open_campaign(
    directory: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    resume: bool = False,
    may_change: Collection[str] = (),
) -> Journal:
    """Start a campaign in a directory, or resume the one that is there.

    A new journal begins with the record ``{"type": "start", "config", "versions"}``; each resumption appends
    one of type ``"resume"`` with the same keys.

    Parameters
    ----------
    directory
        Created when missing.
    config
        JSON-able; everything that the result depends on.
    resume
        Continue what is there. Where nothing is, the campaign simply starts.
    may_change
        Dotted keys, or tables of keys, that may differ on resumption, such as stopping limits: ``{"stop"}``.

    Returns
    -------
    Journal
        Open and locked.

    Raises
    ------
    CampaignExists
        There is a campaign, and `resume` is False.
    CampaignMismatch
        There is one with another config; the message lists each key that differs.
    JournalError
        The journal is in use, damaged or cannot be written.
    """
    directory = Path(directory)
    config = json.loads(encode(config, "the config"))  # as it will come back from the journal
    try:
        directory.mkdir(parents=True, exist_ok=True)
        sync_directory(directory.parent)
    except OSError as error:
        raise JournalError(
            f"the run directory {directory} cannot be made: {error.strerror}. Choose another."
        ) from error
    journal = Journal(directory / JOURNAL_NAME)
    try:
        first = next(journal.read(), None)
        if first is None:
            if resume:
                log.info("%s holds no campaign yet: starting one", directory)
            journal.append({"type": "start", "config": config, "versions": _versions()})
            return journal
        if not resume:
            raise CampaignExists(
                f"{directory} holds a campaign already: pass --resume (resume=True) to continue it, "
                "or choose another directory."
            )
        if first.get("type") != "start" or "config" not in first:
            raise JournalError(
                f"{journal.path} is not a campaign's journal: its first record is not a start. "
                "Choose another directory."
            )
        # As it was resumed last: what may change once, such as a reference that made no label, may not change back.
        latest = [r["config"] for r in journal.read() if r.get("type") in ("start", "resume") and "config" in r][-1]
        _compare(directory, first | {"config": latest}, config, may_change)
        journal.append({"type": "resume", "config": config, "versions": _versions()})
        return journal
    except BaseException:
        journal.close()
        raise


def recorded_config(directory: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """The config that the campaign in a directory ran with last; None where there is no campaign."""
    configs = [r["config"] for r in recorded(directory) if r.get("type") in ("start", "resume") and "config" in r]
    return configs[-1] if configs else None


def recorded(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All records of the campaign in a directory; none where there is no campaign."""
    journal = Path(directory) / JOURNAL_NAME
    return list(read_journal(journal)) if journal.exists() else []


@contextmanager
def clear_disk_errors(directory: Path) -> Iterator[None]:
    """Raise a full or read-only disk as a JournalError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise JournalError(
            f"{directory} cannot be written ({error.strerror}); no label is lost: free space and resume"
        ) from error


def _compare(directory: Path, first: Mapping[str, Any], config: Mapping[str, Any], may_change: Collection[str]) -> None:
    free = tuple(f"{key}." for key in may_change)
    changed = [line for key, line in _differences(first["config"], config) if not f"{key}.".startswith(free)]
    if changed:
        other = any(line.startswith("reference.") for line in changed)
        raise CampaignMismatch(
            f"{directory} belongs to a campaign with another config:\n  "
            + "\n  ".join(changed)
            + ("\nIt has labels of the former reference, with which those of another cannot be mixed." if other else "")
            + "\nSet these back to resume it, or choose another directory."
        )
    versions = [line for _, line in _differences(first.get("versions", {}), _versions())]
    if versions:
        log.warning("resuming with other versions than it started with: %s", "; ".join(versions))


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and readable line of every leaf that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            if old.get(key) is None and new.get(key) is None:
                continue  # a key of a later version, which is not used
            inner = f"{path}.{key}" if path else key
            yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
    elif old != new:
        was, now = ("absent" if value is _ABSENT else json.dumps(value) for value in (old, new))
        yield path, f"{path}: was {was}, now {now}"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("haljax", "jax", "jaxlib", "jax-md", "numpy", "ase"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
