from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # spawned workers are given this path too

from labelling import alive, misbehave  # noqa: E402
from test_oracle import gone  # noqa: E402

from haljax.campaign import Background, Oracle  # noqa: E402


def test_labels_come_when_they_are_ready(tmp_path):
    gate = tmp_path / "gate"
    slow, quick = {"do": "wait", "for": str(gate)}, {"do": "nothing"}
    seen = {}

    def on_result(id, outcome):
        assert threading.current_thread() is threading.main_thread()
        assert id not in seen
        seen[id] = outcome

    with Background(Oracle(misbehave, workers=2), on_result, at_most=1) as labels:
        labels.label({"slow": slow})
        assert not seen and labels.outstanding == {"slow"}
        labels.label({"a": quick, "b": quick})  # the straggler holds one worker, and nothing else up
        assert seen.keys() == {"a", "b"} and labels.outstanding == {"slow"}
        labels.label({"bad": {"do": "raise"}})
        assert "SCF did not converge" in seen["bad"].error and seen["bad"].attempts == 2
        labels.take()
        gate.touch()
        labels.finish()
        assert seen.keys() == {"a", "b", "bad", "slow"} and not labels.outstanding
        assert seen["slow"].result["y"] == 1.0
        pids = {o.result["pid"] for o in seen.values() if o.result}
    assert all(map(gone, pids)) and os.getpid() not in pids


def test_an_error_of_the_caller_ends_the_workers_and_loses_no_label(tmp_path):
    pids, seen = tmp_path / "pids", []
    jobs = {"quick": {"do": "nothing"}, "hangs": {"do": "child", "pids": str(pids)}}
    start = time.perf_counter()
    with (
        pytest.raises(KeyboardInterrupt),
        Background(Oracle(misbehave, workers=1), lambda id, outcome: seen.append(id), at_most=2) as labels,
    ):
        labels.label(jobs)
        while not (pids.exists() and pids.read_text()):
            assert time.perf_counter() - start < 60
            time.sleep(0.01)
        assert alive(int(pids.read_text()))
        raise KeyboardInterrupt
    assert gone(int(pids.read_text()))
    assert seen == ["quick"] and labels.outstanding == {"hangs"}


def test_what_the_oracle_raises_is_raised_where_labels_are_asked_for():
    def broken():
        raise ValueError("no executor today")

    with (
        pytest.raises(ValueError, match="no executor today"),
        Background(Oracle(misbehave, broken), lambda id, outcome: None, at_most=0) as labels,
    ):
        labels.label({"a": {"do": "nothing"}})
