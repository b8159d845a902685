"""Times ace-jax's design matrix in its own interpreter: TRAIN ORDER DEGREE CUTOFF ELEMENTS; see design_matrix.py."""

import json
import resource
import sys
import time

import jax

jax.config.update("jax_enable_x64", True)

from ace_jax.cli import _fit_config, _parse  # noqa: E402
from ace_jax.fit.pipeline import load_fit_data  # noqa: E402
from ace_jax.fit.pipeline.lstsq import lstsq_theta  # noqa: E402
from ace_jax.fit.pipeline.problem import build_problem  # noqa: E402
from ace_jax.fit.solve import stacked_design  # noqa: E402

train, order, degree, cutoff, elements = sys.argv[1:]
arguments = _parse(
    ["fit", "--train", train, "--test", train, "--elements", elements, "--order", order, "--max-degree", degree]
    + ["--rcut", cutoff, "--energy-key", "dft_energy", "--force-key", "dft_forces", "--e0", "lsq", "--out", "unused"]
)
config = _fit_config(arguments)
start = time.perf_counter()
data = load_fit_data(config, train=train, test=train)
problem = build_problem(config, data)
ready = time.perf_counter() - start


def rows():
    start = time.perf_counter()
    matrix, _ = jax.block_until_ready(stacked_design(problem.prob, data.ds_train, lstsq_theta(problem.prob)))
    return matrix.shape, time.perf_counter() - start


(_, first), (shape, again) = rows(), rows()
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"shape": shape, "prepare_s": ready, "first_s": first, "again_s": again, "peak_MiB": memory}))
