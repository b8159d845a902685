"""Times ace-jax's ASE calculator in its own interpreter: MODEL STRUCTURE REPEATS; see acejax.py."""

import json
import sys
import time

import jax

jax.config.update("jax_enable_x64", True)

from ace_jax.calc import ACECalculator  # noqa: E402
from ase.io import read  # noqa: E402

atoms = read(sys.argv[2])
atoms.calc = ACECalculator(sys.argv[1])
times = []
for _ in range(int(sys.argv[3]) + 2):
    atoms.positions[0, 0] += 1e-4
    start = time.perf_counter()
    atoms.get_forces()
    times.append(time.perf_counter() - start)
times = sorted(times[2:])
print(json.dumps({"median_s": times[len(times) // 2], "spread_s": times[-1] - times[0]}))
