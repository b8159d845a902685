from __future__ import annotations

from haljax.campaign import Journal, Ledger

RECORDS = [
    {"type": "start"},
    {"type": "request", "iteration": 0, "jobs": {"a": 1, "b": 2}},
    {"type": "label", "id": "a", "energy": 1.5},
    {"type": "failed", "id": "b", "error": "the disk of the node is full"},
    {"type": "iteration", "iteration": 0, "seconds": {"label": 2.0, "fit": 0.5}},
    {"type": "failed", "id": "c", "error": "it was killed"},
    {"type": "iteration", "iteration": 1, "seconds": {"fit": 0.25}},
]


class Energies(Ledger):
    def kept(self, record):
        return record["energy"]


def state(ledger):
    return ledger.labels, ledger.requests, ledger.iterations, ledger.spent_s(), ledger.last_failure()


def test_what_is_recorded_is_what_is_read_again(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        written = Energies(tmp_path, journal, print)
        assert state(written) == ({}, {}, [], 0, "none was recorded")
        for record in RECORDS:
            written.record(record)
        before = state(written)
    with Journal(path) as journal:
        assert state(Energies(tmp_path, journal, print)) == before
        assert Ledger(tmp_path, journal, print).labels == {"a": RECORDS[2]}
    labels, requests, iterations, spent, failure = before
    assert labels == {"a": 1.5} and requests == {0: RECORDS[1]} and iterations == [RECORDS[4], RECORDS[6]]
    assert spent == 2.75 and failure == "it was killed"


def test_folders_of_iterations(tmp_path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        folder = Ledger(tmp_path, journal, print).folder(12)
    assert folder == tmp_path / "iterations" / "0012" and folder.is_dir()
