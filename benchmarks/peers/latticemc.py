"""icet's mchammer and smol as peers in lattice Monte Carlo, one process each on one thread.

Install them beside haljax or in an environment of their own (``pip install icet==4.0 smol==0.5.7``), whose interpreter
is then named with ``--peer-python``. They run on the same lattice, with random ECIs of their own clusters (the cost of
a step does not depend on the values) within cutoffs shorter than those of LixCoO2's expansion, which favours them. CPU
time is counted, as for haljax.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path


def steps_per_second(python: str, code: str, case: str, steps: int, timeout: float = 300.0) -> dict:
    """Tried flips per second of ``code`` ("mchammer", "smol") in ``case`` ("fcc", "LixCoO2")."""
    script = Path(__file__).with_name("_time_lattice_mc.py")
    # smol's OpenMP threads would wait for each other
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    try:
        done = subprocess.run(
            [python, str(script), code, case, str(steps)],
            capture_output=True, text=True, env=environment, timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"did not end within {timeout} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    answer = json.loads(done.stdout.splitlines()[-1])
    return {
        "flips_per_s": answer["steps"] / answer["seconds"], "sites": answer["sites"], "parameters": answer["parameters"]
    }  # fmt: skip
