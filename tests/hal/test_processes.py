"""A campaign whose replicas are shared out over two processes of jax.distributed on this machine."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

import haljax as hx
from haljax.hal.reference import decode
from tests.hal.test_campaign import config, no_pictures, records  # noqa: F401

PORTS = 65535 - 2**12 + 1  # the first of those that jax takes for a job of SLURM, by the job's number


def free_job():
    """The number of a job whose port nobody listens on."""
    while True:
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            port = listener.getsockname()[1]
        job = port % 2**12
        with socket.socket() as listener:
            try:
                listener.bind(("localhost", PORTS + job))
                return job
            except OSError:
                continue


def haljax(*arguments, processes=2, flags=("", "")):
    """The command, started as often as srun would, on as many nodes of one machine: (exit code, output) of each.

    ``flags`` : of XLA, for each process.
    """
    job = free_job()
    started = []
    for process in range(processes):
        slurm = {
            "SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(processes),
            "SLURM_PROCID": str(process), "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": str(processes),
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " " + flags[process],
        }  # fmt: skip
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "haljax.cli", "hal", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | slurm,
            )
        )
    try:
        outputs = [p.communicate(timeout=300)[0] for p in started]
    finally:
        for p in started:
            p.kill()
    return [(p.returncode, output) for p, output in zip(started, outputs, strict=True)]


def toml(folder, setup):
    """A file of the config; JSON is TOML where only strings, numbers and lists are values."""
    lines = [f"{k} = {json.dumps(v)}" for k, v in setup.items() if not isinstance(v, dict)]
    for table, values in setup.items():
        if isinstance(values, dict):
            lines += [f"[{table}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
    (folder / "my.toml").write_text("\n".join(lines))
    return str(folder / "my.toml")


def test_a_campaign_in_two_processes_finds_what_it_finds_in_one(tmp_path, no_pictures):  # noqa: F811
    folders = {name: tmp_path / name for name in ("one", "two")}
    for folder in folders.values():
        folder.mkdir()
    dynamics = {"replicas": 4, "replicas_per_batch": 2}
    hx.HAL(config(folders["one"], dynamics=dynamics)).run()
    setup = config(folders["two"], dynamics=dynamics | {"processes": 2})
    (code, output), (other_code, other) = haljax(toml(folders["two"], setup))
    assert (code, other_code) == (0, 0), output + other
    assert "2 iterations done" in output and "iteration" not in other
    one, two = (records(folder, "request") for folder in folders.values())
    assert [r["iteration"] for r in two] == [1, 2]
    for a, b in zip(one, two, strict=True):
        assert [(r["status"], r["step"]) for r in a["replicas"]] == [(r["status"], r["step"]) for r in b["replicas"]]
        assert list(a["jobs"]) == list(b["jobs"])
        # The batches are the same, so the programs are: only the threads that sum a product may differ.
        assert b["score"] == pytest.approx(a["score"], rel=1e-9)
    found = [{r["id"]: decode(r) for r in records(folder, "label")} for folder in folders.values()]
    for id, atoms in found[0].items():
        np.testing.assert_allclose(found[1][id].positions, atoms.positions, atol=1e-7)


TWO_DEVICES = "--xla_force_host_platform_device_count=2"


def test_what_ends_one_process_ends_the_other_and_the_campaign_resumes(tmp_path):
    setup = config(tmp_path, dynamics={"processes": 2, "devices": 2}, stop={"max_iterations": 1})
    path = toml(tmp_path, setup)
    (code, output), (other_code, other) = haljax(path, flags=(TWO_DEVICES, ""))
    assert (code, other_code) == (1, 1)
    assert "error: process 1 has ended: dynamics.devices = 2, but jax has 1 here" in output
    assert "error: dynamics.devices = 2, but jax has 1 here" in other

    toml(tmp_path, setup | {"dynamics": setup["dynamics"] | {"timestep_fs": 400.0}})
    (code, output), (other_code, other) = haljax(path, "--resume", flags=(TWO_DEVICES, TWO_DEVICES))
    assert (code, other_code) == (1, 1)
    assert "error: iteration 1: no replica stayed safe" in output
    assert "error: process 0 has ended: iteration 1: no replica stayed safe" in other

    del setup["dynamics"]["devices"]  # as many as both have
    toml(tmp_path, setup)
    (code, output), (other_code, other) = haljax(path, "--resume", flags=(TWO_DEVICES, ""))
    assert (code, other_code) == (0, 0), output + other
    assert "1 iterations done" in output


def test_processes_that_are_not_there(tmp_path):
    setup = config(tmp_path, dynamics={"processes": 2})
    with pytest.raises(RuntimeError, match=r"dynamics.processes = 2, but this one stands alone .* by srun or mpirun"):
        hx.HAL(setup).run()
    ((code, output),) = haljax(toml(tmp_path, setup), processes=1)
    assert code == 1 and "dynamics.processes = 2, but there are 1: start this 2 times" in output
