from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # spawned workers are given this path too

from labelling import Counter, alive, misbehave, positive, square  # noqa: E402

from haljax.campaign import Oracle, OracleError, Outcome  # noqa: E402

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def collect(oracle: Oracle, jobs: dict) -> dict[object, Outcome]:
    outcomes: dict[object, Outcome] = {}

    def on_result(id, outcome):
        assert threading.current_thread() is threading.main_thread()
        assert id not in outcomes and outcome.id == id
        assert (outcome.result is None) != (outcome.error is None)
        outcomes[id] = outcome

    oracle.label(jobs, on_result)
    assert outcomes.keys() == jobs.keys()
    return outcomes


def gone(pid: int) -> bool:
    """Whether a process ends within a few seconds."""
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_labels_by_several_reused_processes():
    with Oracle(square, workers=2) as oracle:
        first = collect(oracle, {i: float(i) for i in range(10)})
        second = collect(oracle, {"a": 3.0})
        assert {i: o.result["y"] for i, o in first.items()} == {i: float(i * i) for i in range(10)}
        pids = {o.result["pid"] for o in first.values()}
        assert len(pids) == 2 and os.getpid() not in pids
        assert second["a"].result["pid"] in pids
        assert all(o.attempts == 1 and o.seconds >= 0 for o in first.values())
    assert all(map(gone, pids))


def test_every_misdeed_harms_only_its_own_label(tmp_path):
    deeds = ["raise", "quit", "sleep", "spin", "pause", "kill", "exit", "nan", "none"]
    jobs = {f"good {i}": {"do": "well"} for i in range(4)}
    for i, deed in enumerate(deeds):
        jobs |= {deed: {"do": deed}, f"good {4 + i}": {"do": "well"}}
    with Oracle(misbehave, workers=2, timeout_s=1.0, max_attempts=2) as oracle:
        outcomes = collect(oracle, jobs)
    for name, outcome in outcomes.items():
        if name.startswith("good"):
            assert outcome.result["y"] == 1.0 and outcome.attempts == 1, outcome
        else:
            assert outcome.attempts == 2 and "\n" not in outcome.error, outcome
    errors = {deed: outcomes[deed].error for deed in deeds}
    assert errors["raise"].startswith("RuntimeError: SCF did not converge (labelling.py:")
    assert errors["quit"].startswith("SystemExit: licence expired")
    assert errors["sleep"].startswith("TimeoutError: no label within 1 s (labelling.py:")
    for deed in ("spin", "pause"):
        assert errors[deed] == "TimeoutError: no label within 1 s, and its process had to be ended"
    assert errors["kill"] == "its process was ended by signal 9 (Killed)"
    assert errors["exit"] == "its process ended with exit code 3"
    assert errors["nan"] == "ValueError: label contains NaN or an infinity in forces, stress"
    assert errors["none"] == "TypeError: the label function returned NoneType instead of a dict"


@pytest.mark.parametrize("deed", ["raise", "kill"])
def test_second_attempt_may_succeed(tmp_path, caplog, deed):
    with Oracle(misbehave, workers=1, max_attempts=3) as oracle:
        outcomes = collect(oracle, {7: {"do": deed, "once": str(tmp_path / "mark")}})
    assert outcomes[7].result == {"y": 1.0} and outcomes[7].attempts == 2
    assert "label 7, attempt 1: " in caplog.text and "trying again" in caplog.text


def test_worker_that_dies_while_idle_is_replaced():
    with Oracle(square, workers=1, max_attempts=1) as oracle:
        pid = collect(oracle, {0: 1.0})[0].result["pid"]
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        time.sleep(0.2)  # the pool learns of it in a thread
        assert collect(oracle, {0: 2.0})[0].result["y"] == 4.0


def test_programs_that_a_hung_label_started_end_with_it(tmp_path):
    pids = tmp_path / "pid"
    with Oracle(misbehave, workers=1, timeout_s=0.5, max_attempts=1) as oracle:
        outcome = collect(oracle, {0: {"do": "child", "pids": str(pids)}})[0]
    assert outcome.error.startswith("TimeoutError")
    assert gone(int(pids.read_text()))


@pytest.mark.parametrize("command", ["sleep 60", "setsid sleep 20"], ids=["of its group", "of its own"])
def test_a_program_that_outlives_its_worker_holds_nothing(tmp_path, command):
    """It holds the worker's descriptors, so that the pool does not learn of the death; one of a group of its own is
    not even ended with the worker. With no time limit."""
    pids, start = tmp_path / "pid", time.monotonic()
    with Oracle(misbehave, workers=2, max_attempts=1) as oracle:
        job = {"do": "orphan", "pids": str(pids), "command": command}
        outcomes = collect(oracle, {0: job, 1: {"do": "well"}, 2: {"do": "well"}})
    assert outcomes[0].error == "its process was ended by signal 9 (Killed)"
    assert outcomes[1].result["y"] == outcomes[2].result["y"] == 1.0
    assert time.monotonic() - start < 15  # those programs would take longer
    if command.startswith("sleep"):
        assert gone(int(pids.read_text()))


def test_results_stream_as_they_finish(tmp_path):
    """The first job in is the last out: it ends only once the others' labels have been handed over."""
    order = []
    done = tmp_path / "done"

    def on_result(id, outcome):
        order.append(id)
        if id == "b":
            done.touch()

    jobs = {"slow": {"do": "wait", "for": str(done)}, "a": {"do": "well"}, "b": {"do": "well"}}
    with Oracle(misbehave, workers=2, timeout_s=30.0, max_attempts=1) as oracle:
        oracle.label(jobs, on_result)
    assert order == ["a", "b", "slow"]


def test_function_is_kept_until_a_label_fails():
    with Oracle(Counter(), workers=1, max_attempts=1) as oracle:
        outcomes = collect(oracle, dict(enumerate(["ok", "ok", "fail", "ok"])))
    assert [outcomes[i].result and outcomes[i].result["calls"] for i in range(4)] == [1, 2, None, 1]


def test_validate():
    with Oracle(square, workers=1, validate=positive, max_attempts=1) as oracle:
        outcomes = collect(oracle, {0: 1.0, 1: -1.0})
    assert outcomes[0].result["y"] == 1.0
    assert outcomes[1].error.startswith("ValueError: not converged (labelling.py:")


def test_unpicklable_function_is_named():
    with pytest.raises(OracleError, match=r"label function <function .*<lambda>.*top level.*dotted path"):
        Oracle(lambda payload: {"y": payload})


def test_unpicklable_payload_fails_alone():
    with Oracle(square, workers=1) as oracle:
        outcomes = collect(oracle, {0: threading.Lock(), 1: 2.0})
    assert "payload of label 0 cannot be sent to a worker" in outcomes[0].error and outcomes[0].attempts == 0
    assert outcomes[1].result["y"] == 4.0


@pytest.mark.parametrize("bad", [{"workers": 0}, {"timeout_s": -1.0}, {"max_attempts": 0}])
def test_senseless_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Oracle(square, **bad)


def test_on_result_that_raises_ends_the_workers():
    pids = []

    def on_result(id, outcome):
        pids.append(outcome.result["pid"])
        raise OSError("disk full")

    with Oracle(misbehave, workers=2) as oracle:
        start = time.monotonic()
        with pytest.raises(OSError, match="disk full"):
            oracle.label({0: {"do": "well"}, 1: {"do": "sleep"}}, on_result)
        assert time.monotonic() - start < 60  # it does not wait for the sleeper
        assert gone(pids[0])
        assert collect(oracle, {0: {"do": "well"}})[0].result["y"] == 1.0  # and can be used again


# ------------------------------------------------------------------------------------------- other executors


@pytest.mark.parametrize("factory", [False, True])
def test_threads(factory):
    with ThreadPoolExecutor(2) as pool:
        made = []

        def make():
            made.append(ThreadPoolExecutor(2))
            return made[-1]

        with Oracle(lambda x: {"y": 1 / x}, make if factory else pool) as oracle:
            outcomes = collect(oracle, {0: 0.0, 1: 1.0, 2: 2.0})
        assert outcomes[0].error.startswith("ZeroDivisionError: ") and outcomes[0].attempts == 2
        assert outcomes[2].result == {"y": 0.5}
        assert pool.submit(int).result() == 0  # what was given is left open
        if factory:
            (mine,) = made
            with pytest.raises(RuntimeError, match="after shutdown"):
                mine.submit(int)


def test_threads_cannot_be_timed_out(caplog):
    with ThreadPoolExecutor(1) as pool, Oracle(square, pool, timeout_s=1.0) as oracle:
        assert collect(oracle, {0: 2.0})[0].result["y"] == 4.0
    assert "threads cannot be timed out" in caplog.text


def test_processes_of_ones_own_time_out():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        outcomes = collect(
            Oracle(misbehave, pool, timeout_s=0.5, max_attempts=1), {0: {"do": "sleep"}, 1: {"do": "well"}}
        )
    assert outcomes[0].error.startswith("TimeoutError: no label within 0.5 s")
    assert outcomes[1].result["y"] == 1.0


def test_broken_executor_becomes_failures():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        outcomes = collect(Oracle(misbehave, pool), {i: {"do": "kill"} for i in range(3)})
    assert all("takes no more work (BrokenProcessPool" in o.error for o in outcomes.values())


def test_executor_that_cancels():
    class Cancelling(Executor):
        def submit(self, function, /, *args, **kwargs):
            future: Future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    assert collect(Oracle(square, Cancelling()), {0: 1.0})[0].error == "the executor cancelled it"


# ------------------------------------------------------------------------------ the end of the main process


def hang(tmp_path: Path, **keywords) -> tuple[subprocess.Popen, list[int]]:
    """A process whose labels hang, and the pids of its workers and of the programs they have started."""
    child = subprocess.Popen(
        [sys.executable, str(HERE / "labelling.py"), "label_for_ever", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **keywords,
    )
    files = [tmp_path / "0", tmp_path / "1"]
    while not all(f.exists() for f in files) and child.poll() is None:
        time.sleep(0.02)
    return child, [int(pid) for f in files for pid in f.read_text().split()]


def test_ctrl_c_ends_everything_and_prints_nothing_else(tmp_path):
    child, pids = hang(tmp_path, start_new_session=True)
    assert all(map(alive, pids))
    os.killpg(child.pid, signal.SIGINT)  # as the terminal does: to the whole foreground group
    out, err = child.communicate(timeout=20)
    assert child.returncode in (-signal.SIGINT, 130) and out == ""
    assert err.count("Traceback") == 1 and err.rstrip().endswith("KeyboardInterrupt")
    assert all(map(gone, pids))


def test_ctrl_c_while_the_workers_start(tmp_path):
    for delay in (0.0, 0.05, 0.1, 0.2):
        child = subprocess.Popen(
            [sys.executable, str(HERE / "labelling.py"), "label_for_ever", str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        tasks = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        while len(tasks.read_text().split()) < 2 and child.poll() is None:  # resource tracker, first worker
            time.sleep(0.005)
        started = [int(pid) for pid in tasks.read_text().split()]
        time.sleep(delay)
        os.killpg(child.pid, signal.SIGINT)
        err = child.communicate(timeout=20)[1]
        assert err.count("Traceback") == 1 and err.rstrip().endswith("KeyboardInterrupt"), err
        assert all(map(gone, started))


def test_kill_9_leaves_no_worker_behind(tmp_path):
    child, pids = hang(tmp_path)
    child.kill()
    child.communicate(timeout=20)
    assert all(map(gone, pids))


def test_script_without_a_main_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nsys.path.insert(0, sys.argv[1])\n"
        "from labelling import square\nfrom haljax.campaign import Oracle\n"
        "Oracle(square).label({0: 1.0}, print)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(HERE)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "OracleError: the worker processes do not start" in done.stderr
    assert "__name__ == '__main__'" in done.stderr
