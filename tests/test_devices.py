"""Replicas, windows and rows of the design matrix on several devices are what they are on one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

import haljax as hx
from haljax.structures import with_labels

SCRIPT = """
import json, sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
import haljax as hx
from ase.build import bulk
from ase.calculators.emt import EMT
from haljax.config import Dynamics
from haljax.hal.acquisition import explore, room_for
from haljax.structures import with_labels

def cell(seed):
    rng = np.random.default_rng(seed)
    atoms = bulk("Al", "fcc", a=3.9, cubic=True) * (2, 1, 1)
    atoms.symbols[rng.permutation(8)[:4]] = "Cu"
    atoms.positions += 0.1 * rng.standard_normal(atoms.positions.shape)
    atoms.calc = EMT()
    return with_labels(atoms, atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())

starts = [cell(i) for i in range(6)]
backend, jax.default_backend = jax.default_backend, lambda: "gpu"  # where rows are shared out
model = hx.fit(hx.ace_basis(("Al", "Cu"), 4.0, 2, 4), starts, solver="brr")
jax.default_backend = backend
assert jax.device_count() == 8
results = []
for devices, batch in ((1, None), (2, 6), (8, None)):
    dynamics = Dynamics(
        temperature_K=600.0, pressure_GPa=0.0, n_steps=60, timestep_fs=2.0, tolerance=1e3, tau_rel=0.3, tau_history=10,
        swap_interval=20, devices=devices, replicas_per_batch=batch,
    )
    room = room_for(model.basis, dynamics.skin, starts)
    found = explore(model, dynamics, starts, jax.random.key(0), room, lambda _: 0)
    results.append({
        "energy": found.seen.energy[:6].tolist(), "moves": found.seen.cell_moves[:6].tolist(),
        "positions": [a.positions.tolist() for a in found.candidates], "steps": [r["step"] for r in found.replicas],
    })
from haljax.lattice import Conditions, Supercell, sample_windows
from haljax.lattice.monte_carlo import Counters
ring, up = Supercell([[8, 0, 0], [0, 1, 0], [0, 0, 1]]), np.ones((1, 8), int)
bonds = ((0.02, ((0, 0, 0, 0, 1), (1, 0, 0, 0, 1))),)
kappa = np.linspace(0.1, 0.9, 70)[:, None]
given = Conditions(np.full(70, 300.0), kappa, np.full((70, 1), 0.05))
windows = [
    sample_windows(
        jax.random.key(1), bonds, ring, Counters(up, (1,), 8), given,
        precision=0.02, min_passes=100, max_passes=2000, devices=devices,
    )
    for devices in (1, 2, None)
]
for other in windows[1:]:
    for name, a, b in zip(other._fields, other, windows[0]):
        if name != "series":
            np.testing.assert_array_equal(a, b, err_msg=name)
assert len(set(windows[0].n_passes)) > 2  # the batch shrank
try:
    sample_windows(
        jax.random.key(1), bonds, ring, Counters(up, (1,), 8), Conditions([300.0], [[0.5]], [[0.05]]),
        precision=0.02, min_passes=10, max_passes=10, devices=9,
    )
except ValueError as error:
    print(error, file=sys.stderr)
try:
    explore(model, dynamics.model_copy(update={"devices": 9}), starts, jax.random.key(0), {}, lambda _: 0)
except ValueError as error:
    print(error, file=sys.stderr)
import os
from haljax.devices import cores
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
assert cores() == 1
print(json.dumps({"replicas": results, "mean": np.asarray(model.posterior.mean).tolist()}))
"""


@pytest.fixture(scope="module")
def outcome():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_trajectories_are_those_of_one_device(outcome):
    one, two, eight = outcome[0]["replicas"]
    for many in (two, eight):
        assert many["steps"] == one["steps"] == [60] * 6 and many["moves"] == one["moves"]
        # Programs of other widths order their sums in another way; the bias, a product in float32, differs by some
        # 1e-7 of itself, grown over 60 steps.
        np.testing.assert_allclose(many["positions"], one["positions"], atol=1e-5)
        np.testing.assert_allclose(many["energy"], one["energy"], atol=1e-5)


def test_a_fit_on_eight_devices_is_that_on_one(outcome):
    rng = [np.random.default_rng(i) for i in range(6)]
    starts = []
    for r in rng:
        atoms = bulk("Al", "fcc", a=3.9, cubic=True) * (2, 1, 1)
        atoms.symbols[r.permutation(8)[:4]] = "Cu"
        atoms.positions += 0.1 * r.standard_normal(atoms.positions.shape)
        atoms.calc = EMT()
        starts.append(with_labels(atoms, atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    model = hx.fit(hx.ace_basis(("Al", "Cu"), 4.0, 2, 4), starts, solver="brr")
    mean = np.asarray(model.posterior.mean)
    np.testing.assert_allclose(outcome[0]["mean"], mean, atol=1e-9 * np.abs(mean).max())


def test_more_devices_than_there_are_is_refused(outcome):
    assert "dynamics.devices = 9, but jax has 8 here: give at most that" in outcome[1]
    assert "devices = 9, but JAX has 8 here: give at most that." in outcome[1]
