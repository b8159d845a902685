"""Times Lennard-Jones dynamics of torch-sim in its own interpreter: REPLICAS STEPS PARAMETERS; see replicas.py."""

import json
import sys
import time

import torch
import torch_sim as ts
from ase import units
from ase.build import bulk
from torch_sim.models.lennard_jones import LennardJonesModel

torch.set_num_threads(1)
replicas, steps, parameters = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
made = []
for seed in range(replicas):
    atoms = bulk("Ar", cubic=True) * 2
    atoms.rattle(0.05, seed=seed)
    made.append(atoms)
model = LennardJonesModel(**parameters, dtype=torch.float64, device=torch.device("cpu"))
state = ts.io.atoms_to_state(made, torch.device("cpu"), torch.float64)
kT = torch.tensor(300 * units.kB, dtype=torch.float64)
dt = torch.tensor(1.0 * units.fs, dtype=torch.float64)
gamma = torch.tensor(0.01 / units.fs, dtype=torch.float64)
state = ts.nvt_langevin_init(state, model, kT=kT)


def run(state):
    for _ in range(steps):
        state = ts.nvt_langevin_step(state, model, dt=dt, kT=kT, gamma=gamma)
    return state


run(state)
times = []
for _ in range(3):
    start = time.perf_counter()
    run(state)
    times.append((time.perf_counter() - start) / steps)
print(sorted(times)[1])
