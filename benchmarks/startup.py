"""How long one waits: the import, the command's help, and the first dynamics of a campaign whose programs are cached.

    python benchmarks/startup.py

Every figure is the wall time of a fresh process, the median of several; the import is given beyond that of numpy,
measured in turn. The campaign is one of 12 labelled Al-Cu cells and 8 replicas, run twice over one compilation cache:
what counts is the time from the start of the process to the first block of dynamics (100 steps).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ase.io import write
from common import row
from refit import labelled

REPEATS = 9


def seconds(*command: str, **environment: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)
    return time.perf_counter() - start


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    python = sys.executable
    kinds = {
        "numpy": (python, "-c", "import numpy"),
        "haljax": (python, "-c", "import numpy, haljax"),
        "help": (python, "-m", "haljax.cli", "--help"),
    }
    for command in kinds.values():
        seconds(*command)  # files into memory
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(REPEATS):
        for name, command in kinds.items():
            times[name].append(seconds(*command))
    median = {name: statistics.median(values) for name, values in times.items()}
    beyond = statistics.median(a - b for a, b in zip(times["haljax"], times["numpy"], strict=True))
    row("startup", what="import haljax, beyond numpy", seconds=beyond, numpy_s=median["numpy"])
    row("startup", what="haljax --help", seconds=median["help"])
    with tempfile.TemporaryDirectory() as folder:
        write(f"{folder}/start.xyz", labelled(12, 0))
        for name in ("compiled anew", "compiled before"):
            row("startup", what=f"first dynamics of a campaign, {name}", **campaign(folder, name))


def campaign(folder: str, name: str) -> dict[str, float]:
    """Seconds from the start of the process to each of its first stages."""
    here = Path(__file__).with_name("_first_dynamics.py")
    start = time.time()
    done = subprocess.run(
        [sys.executable, here, f"{folder}/{name}", f"{folder}/start.xyz"],
        capture_output=True,
        text=True,
        env=os.environ | {"HALJAX_CACHE_DIR": f"{folder}/cache"},
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return {f"{what}_s": at - start for what, at in json.loads(done.stdout.splitlines()[-1]).items()}


if __name__ == "__main__":
    main()
