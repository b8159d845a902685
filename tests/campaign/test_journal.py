from __future__ import annotations

import errno
import json
import logging
import math
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from haljax.campaign import Journal, JournalError, read_journal, write_atomic

LABELLING = str(Path(__file__).with_name("labelling.py"))
ROOT = str(Path(__file__).parents[2])


def spawn(*arguments: str, **keywords) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, LABELLING, *arguments], env={**os.environ, "PYTHONPATH": ROOT}, cwd=ROOT, **keywords
    )


def write(path, *records):
    with Journal(path) as journal:
        for record in records:
            journal.append(record)


def test_kill_9_loses_no_acknowledged_record(tmp_path):
    path = tmp_path / "journal.jsonl"
    chance = random.Random(0)
    acknowledged = -1
    for _ in range(25):
        child = spawn("write_for_ever", str(path), stdout=subprocess.PIPE)
        first = child.stdout.readline()  # it is up and writing
        time.sleep(chance.uniform(0.0, 0.05))
        child.kill()
        rest = child.stdout.read()
        child.wait()
        acknowledged = max(acknowledged, *map(int, (first + rest).split()))
        tail = path.read_bytes().rpartition(b"\n")[2]
        with Journal(path) as journal:
            records = list(journal)
        assert [r["index"] for r in records] == list(range(len(records)))
        assert all(r["x"] == r["index"] / 3 for r in records)
        # At most the one record that was being written when it was killed is there beyond those acknowledged.
        assert acknowledged < len(records) <= acknowledged + 2
        assert not tail or len(records) == acknowledged + 1
    assert acknowledged > 50


@pytest.mark.parametrize("keep", [1, 5, -2])
def test_torn_last_line_is_cut_off_and_noted(tmp_path, caplog, keep):
    path = tmp_path / "journal.jsonl"
    write(path, {"i": 0}, {"i": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"i": 2, "forces": [0.1, 0.2]}\n'[:keep])
    if keep == -2:  # power loss may also leave zeros where data should be
        path.write_bytes(whole + b"\0" * 100)
    assert [r["i"] for r in read_journal(path)] == [0, 1]  # looking at it changes nothing
    with caplog.at_level(logging.WARNING), Journal(path) as journal:
        assert "torn last line" in caplog.text and str(path) in caplog.text
        assert path.read_bytes() == whole
        journal.append({"i": 2})
        assert [r["i"] for r in journal] == [0, 1, 2]


def test_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "journal.jsonl"
    write(path, {"i": 0}, {"i": 1})
    path.write_bytes(path.read_bytes()[:-1])
    write(path, {"i": 2})
    assert [r["i"] for r in read_journal(path)] == [0, 1, 2]


@pytest.mark.parametrize("damage", [b'{"i": 1', b"[1]", b"\xff\xfe", b""])
def test_corrupt_line_in_the_middle_names_file_and_line(tmp_path, damage):
    path = tmp_path / "journal.jsonl"
    write(path, {"i": 0}, {"i": 1}, {"i": 2})
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], damage, *lines[2:]]))
    with (
        Journal(path) as journal,
        pytest.raises(JournalError, match=r"journal\.jsonl, line 2 .*delete that line"),
    ):
        list(journal)


def test_second_writer_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    child = spawn("write_for_ever", str(path), stdout=subprocess.PIPE)
    child.stdout.readline()
    try:
        with pytest.raises(JournalError, match="in use: another process is running this campaign"):
            Journal(path)
        assert next(iter(read_journal(path)))["index"] == 0  # a report may look at it
    finally:
        child.kill()
        child.communicate()
    Journal(path).close()  # a killed writer leaves no lock behind


def test_floats_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "journal.jsonl"
    x = np.random.default_rng(0).normal(size=(50, 3)) * 10.0 ** np.arange(-150, 150, 6)[:, None]
    x = np.concatenate([x, [[5e-324, -0.0, 1.7976931348623157e308]]])
    write(path, {"x": x, "one": np.float32(0.1), "n": np.int64(3), "t": (1, 2)})
    (record,) = read_journal(path)
    np.testing.assert_array_equal(np.array(record["x"]).view(np.int64), x.view(np.int64))
    assert record["one"] == float(np.float32(0.1)) and record["n"] == 3 and record["t"] == [1, 2]


@pytest.mark.parametrize("value", [math.nan, [1.0, math.inf], np.array([[0.0, np.nan]]), {"a": -math.inf}])
def test_nan_is_refused(tmp_path, value):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        with pytest.raises(JournalError, match="type 'label' holds NaN"):
            journal.append({"type": "label", "forces": value})
        journal.append({"i": 0})
    assert [*read_journal(path)] == [{"i": 0}]


def test_what_json_cannot_hold_is_named(tmp_path):
    with Journal(tmp_path / "j") as journal, pytest.raises(JournalError, match="'label'.*type set"):
        journal.append({"type": "label", "x": {1, 2}})


def test_missing_directory(tmp_path):
    with pytest.raises(JournalError, match="nowhere.*run directory that exists"):
        Journal(tmp_path / "nowhere" / "journal.jsonl")


def test_append_syncs_before_it_returns(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (fsync(fd), synced.append(os.readlink(f"/proc/self/fd/{fd}"))))
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        assert synced == [str(tmp_path)]
        journal.append({"i": 0})
        assert synced == [str(tmp_path), str(path)]


@pytest.fixture
def small_files():
    """Files may not grow beyond 4096 bytes; of a longer write, what fits is written, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_that_fills_up(tmp_path, small_files):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"i": 0, "pad": "x" * 3000})
        before = path.read_bytes()
        with pytest.raises(JournalError, match=r"journal\.jsonl cannot be written.*is lost; free some space.*resume"):
            journal.append({"i": 1, "pad": "x" * 3000})
        assert path.read_bytes() == before
        journal.append({"i": 2})  # a smaller one still fits
        small_files()
        journal.append({"i": 3, "pad": "x" * 3000})
    assert [r["i"] for r in read_journal(path)] == [0, 2, 3]


def test_full_device(tmp_path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, journal._file.fileno())
        os.close(full)
        with pytest.raises(JournalError, match=os.strerror(errno.ENOSPC)):
            journal.append({"i": 0})


@pytest.mark.parametrize("where", ["before", "between", "after"])
def test_ctrl_c_while_appending_keeps_the_record(tmp_path, monkeypatch, where):
    path = tmp_path / "journal.jsonl"
    pwrite = os.pwrite
    interrupts = [KeyboardInterrupt]

    def interrupted(fd, data, offset):
        if not interrupts:
            return pwrite(fd, data, offset)
        if where != "before":
            pwrite(fd, data[: 5 if where == "between" else None], offset)
        raise interrupts.pop()

    with Journal(path) as journal:
        monkeypatch.setattr(os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append({"i": 0, "pad": "x" * 100})
        journal.append({"i": 1})
        assert [r["i"] for r in journal] == [0, 1]


def test_write_atomic_replaces_whole_files(tmp_path):
    path = tmp_path / "model.npz"
    write_atomic(path, b"old")
    write_atomic(path, "neu: Å")
    assert path.read_text(encoding="utf-8") == "neu: Å"
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


def test_write_atomic_on_a_full_disk_keeps_the_old_file(tmp_path, small_files):
    path = tmp_path / "model.npz"
    write_atomic(path, b"old")
    with pytest.raises(JournalError, match=r"model\.npz cannot be written.*untouched.*free some space"):
        write_atomic(path, b"x" * 5000)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


def test_journal_is_plain_json_lines(tmp_path):
    path = tmp_path / "journal.jsonl"
    write(path, {"type": "label", "energy": -1.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"type": "label", "energy": -1.5}]
