"""Label functions that spawned workers can import, and scripts that the tests run and kill."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def square(x: float) -> dict[str, Any]:
    return {"y": x * x, "pid": os.getpid()}


def misbehave(payload: dict[str, Any]) -> dict[str, Any]:
    """Do to itself what payload["do"] says; "once" leaves a mark and behaves the second time."""
    what = payload["do"]
    if mark := payload.get("once"):
        if Path(mark).exists():
            return {"y": 1.0}
        Path(mark).touch()
    if what == "raise":
        raise RuntimeError("SCF did not\nconverge")
    if what == "quit":
        sys.exit("licence expired")
    if what == "sleep":
        time.sleep(1000)
    if what == "wait":
        while not Path(payload["for"]).exists():
            time.sleep(0.01)
    if what == "spin":
        sum(range(10**15))  # holds the interpreter: no signal handler runs
    if what == "pause":  # lets go of the interpreter and never comes back
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        ctypes.CDLL(None).pause()
    if what == "child":
        Path(payload["pids"]).write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        ctypes.CDLL(None).pause()
    if what == "orphan":  # a program that inherits what it can, and outlives the worker
        os.system(payload["command"] + " & echo $! > " + payload["pids"])
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(3)
    if what == "nan":
        return {"energy": 1.0, "forces": [[0.0, 1.0], [float("nan"), 0.0]], "stress": np.full(6, np.inf)}
    if what == "none":
        return None  # type: ignore[return-value]
    return {"y": 1.0, "pid": os.getpid()}


class Counter:
    """Counts its own calls, so that a test can see whether a worker keeps it."""

    calls = 0

    def __call__(self, payload: str) -> dict[str, int]:
        self.calls += 1
        if payload == "fail":
            raise RuntimeError("bad state")
        return {"calls": self.calls}


def positive(payload: float, result: dict[str, Any]) -> None:
    if payload < 0:
        raise ValueError("not converged")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a zombie has ended, and only waits for a parent to ask


def write_for_ever(path: str) -> None:
    """Acknowledge each record on standard output once `append` has returned."""
    from haljax.campaign import Journal

    with Journal(path) as journal:
        index = sum(1 for _ in journal)
        while True:
            journal.append({"index": index, "x": index / 3, "pad": "x" * (index * 7919 % 20000)})
            os.write(1, f"{index}\n".encode())
            index += 1


def label_for_ever(directory: str) -> None:
    """Leave the pids of two workers in files, and hang in a label."""
    from haljax.campaign import Oracle

    with Oracle(report_and_hang, workers=2) as oracle:
        oracle.label({i: f"{directory}/{i}" for i in range(4)}, print)


def report_and_hang(path: str) -> dict[str, Any]:
    child = subprocess.Popen(["sleep", "1000"])
    Path(path + ".part").write_text(f"{os.getpid()} {child.pid}")
    os.rename(path + ".part", path)
    time.sleep(1000)
    return {}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    globals()[sys.argv[1]](*sys.argv[2:])
