"""A campaign's first stages, for startup.py: RUN_DIRECTORY LABELLED_STRUCTURES; prints when each was reached."""

import json
import os
import sys
import time

import haljax.cli as cli

cli.main.callback()  # what the command sets for its process: x64 and the compilation cache

from haljax import HAL  # noqa: E402

CONFIG = {
    "directory": sys.argv[1],
    "start": {"structures": sys.argv[2]},
    "reference": {"calculator": "ase.calculators.emt.EMT"},
    "basis": {"elements": ["Al", "Cu"], "cutoff": 5.5, "order": 3, "max_degree": 8},
    "dynamics": {"replicas": 8, "temperature_K": 600.0, "tau_rel": 0.1, "n_steps": 1000, "tolerance": 100.0},
    "labels": {"per_iteration": 1},
    "stop": {"max_iterations": 1},
}
reached: dict[str, float] = {}


def progress(event):
    reached.setdefault({"fit": "start", "evaluate": "fitted"}.get(event["stage"], event["stage"]), time.time())
    if event["stage"] == "dynamics":  # its first block of steps is done
        print(json.dumps(reached), flush=True)
        os._exit(0)


HAL(CONFIG, progress=progress).run()
