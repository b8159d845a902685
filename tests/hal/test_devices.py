"""Replicas on several devices do what they do on one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

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
model = hx.fit(hx.ace_basis(("Al", "Cu"), 4.0, 2, 4), starts)
assert jax.device_count() == 8
results = []
for devices, batch in ((1, None), (2, 6), (8, None)):
    dynamics = Dynamics(
        temperature_K=600.0, n_steps=60, timestep_fs=2.0, tolerance=1e3, tau_rel=0.3, tau_history=10,
        devices=devices, replicas_per_batch=batch,
    )
    room = room_for(model.basis, dynamics.skin, starts)
    found = explore(model, dynamics, starts, jax.random.key(0), room, lambda _: 0)
    results.append({
        "energy": found.seen.energy[:6].tolist(),
        "positions": [a.positions.tolist() for a in found.candidates], "steps": [r["step"] for r in found.replicas],
    })
try:
    explore(model, dynamics.model_copy(update={"devices": 9}), starts, jax.random.key(0), {}, lambda _: 0)
except ValueError as error:
    print(error, file=sys.stderr)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def outcome():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_trajectories_are_those_of_one_device(outcome):
    (one, two, eight), _ = outcome
    for many in (two, eight):
        assert many["steps"] == one["steps"] == [60] * 6
        # programs of other widths order their sums in another way: 1e-16 of a force, grown over 60 steps
        np.testing.assert_allclose(many["positions"], one["positions"], atol=1e-9)
        np.testing.assert_allclose(many["energy"], one["energy"], atol=1e-10)


def test_more_devices_than_there_are_is_refused(outcome):
    assert "dynamics.devices = 9, but jax has 8 here: give at most that" in outcome[1]
