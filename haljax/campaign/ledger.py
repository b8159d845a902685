"""A campaign's records in memory, as they are in its journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from haljax.campaign.journal import Journal

Job = TypeVar("Job")


class Ledger:
    """The records of a journal by their kind; what is added goes to the disk first. The base of each half's campaign.

    Attributes
    ----------
    labels : what `kept` keeps of each label, by its id.
    failures : how often, in different runs, each label has failed.
    dropped : labels that the user has taken out.
    requests : what each iteration asked for. iterations : the finished ones, oldest first.
    """

    def __init__(self, directory: Path, journal: Journal, progress: Callable[[dict[str, Any]], Any]) -> None:
        self.directory, self.journal, self.progress = directory, journal, progress
        self.labels: dict[str, Any] = {}
        self.failures: Counter[str] = Counter()
        self.dropped: set[str] = set()
        self.requests: dict[int, dict[str, Any]] = {}
        self.iterations: list[dict[str, Any]] = []
        for record in journal.read():
            self._remember(record)

    def kept(self, record: dict[str, Any]) -> Any:
        """What of a label's record is worth its memory."""
        return record

    def record(self, record: dict[str, Any]) -> None:
        self.journal.append(record)
        self._remember(record)

    def folder(self, iteration: int) -> Path:
        folder = self.directory / "iterations" / f"{iteration:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def spent_s(self) -> float:
        """Wall time of the finished iterations."""
        return sum(sum(iteration["seconds"].values()) for iteration in self.iterations)

    def last_failure(self) -> str:
        failures = [record["error"] for record in self.journal.read() if record["type"] == "failed"]
        return failures[-1] if failures else "none was recorded"

    def given_up(self, asked: Iterable[str]) -> set[str]:
        """Of labels asked for together, those that are not worth another try: that failed where others did not, or in
        two runs, between which what labels could be mended; and those that were dropped."""
        asked = set(asked)
        most = 0 if asked & (set(self.labels) | self.dropped) else 1
        return {id for id in asked if self.failures[id] > most or id in self.dropped}

    def waiting(self, jobs: Mapping[str, Job]) -> dict[str, Job]:
        """Of jobs asked for together, those that have no label and are worth a try: the one rule on resumption."""
        left_out = self.given_up(jobs) | set(self.labels)
        return {id: job for id, job in jobs.items() if id not in left_out}

    def drop(self, ids: Iterable[str]) -> None:
        """Take labels out for good; ValueError where one is not there."""
        ids = list(ids)
        if unknown := [id for id in ids if id not in self.labels and id not in self.dropped]:
            near = get_close_matches(unknown[0], self.labels, 3) or list(self.labels)[:3]
            raise ValueError(f"there is no label {', '.join(unknown)} to drop; there are {', '.join(near)}, ...")
        for id in ids:
            if id not in self.dropped:
                self.record({"type": "drop", "id": id})

    def _remember(self, record: dict[str, Any]) -> None:
        if record["type"] == "label":
            self.labels[record["id"]] = self.kept(record)
        elif record["type"] == "drop":
            self.labels.pop(record["id"], None)
            self.dropped.add(record["id"])
        elif record["type"] == "failed":
            self.failures[record["id"]] += 1
        elif record["type"] == "request":
            self.requests[record["iteration"]] = record
        elif record["type"] == "iteration":
            self.iterations.append(record)
