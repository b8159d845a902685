"""A campaign's records in memory, as they are in its journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from haljax.campaign.journal import Journal


class Ledger:
    """The records of a journal by their kind; what is added goes to the disk first. The base of each half's campaign.

    Attributes
    ----------
    labels : what `kept` keeps of each label, by its id.
    failures : how often, in different runs, each label has failed.
    requests : what each iteration asked for. iterations : the finished ones, oldest first.
    """

    def __init__(self, directory: Path, journal: Journal, progress: Callable[[dict[str, Any]], Any]) -> None:
        self.directory, self.journal, self.progress = directory, journal, progress
        self.labels: dict[str, Any] = {}
        self.failures: Counter[str] = Counter()
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
        two runs, between which what labels could be mended."""
        asked = set(asked)
        return {id for id in asked if self.failures[id] > (0 if asked & set(self.labels) else 1)}

    def _remember(self, record: dict[str, Any]) -> None:
        if record["type"] == "label":
            self.labels[record["id"]] = self.kept(record)
        elif record["type"] == "failed":
            self.failures[record["id"]] += 1
        elif record["type"] == "request":
            self.requests[record["iteration"]] = record
        elif record["type"] == "iteration":
            self.iterations.append(record)
