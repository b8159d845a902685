"""Many replicas: microseconds per atom and step of biased dynamics, where they go, and the driver's own part.

    python benchmarks/replicas.py [--cores 1] [--replicas 1 4 16 64 256] [--dtype float64] [--peer-python PATH]
        [--no-peer]

Replicas of 32 atoms, Al-Cu, order 3, degree 9, as a campaign runs them, checks and all. The parts of a step are the
differences between runs without them. The driver itself is seen with a Lennard-Jones potential in the same replicas,
beside torch-sim (``pip install torch-sim-atomistic ase``, there or in an environment of its own) with its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

STEPS = 200
ARGON = {"sigma": 3.405, "epsilon": 0.0104, "cutoff": 8.5}  # Å, eV


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    # Before XLA counts its threads; the peer's process inherits it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    campaign(options)
    if options.dtype == "float64":
        parts(options.cores)
        driver(options)


def campaign(options: argparse.Namespace) -> None:
    """Replicas as a campaign explores with them, and that no program is compiled for a number of replicas anew."""
    from common import row

    from haljax.hal.trajectory import _block

    times: list[float] = []
    for n in options.replicas:
        times.append(explored(n, precision=options.dtype))
        row(
            "replicas", replicas=n, cores=options.cores, dtype=options.dtype, us_per_atom_and_step=times[-1],
            to_the_best=times[-1] / min(times), compiled_programs=_block._cache_size(),
        )  # fmt: skip


def parts(cores: int, n: int = 8) -> None:
    """Where the time of a step goes, by leaving one thing after another out; negative is noise."""
    import jax.numpy as jnp
    from common import row
    from step_cost import unbiased

    from haljax.md import Hamiltonian, hamiltonian

    model, _ = known()
    nothing = Hamiltonian(lambda params, system, *_: jnp.sum(0 * system.positions), model.basis.cutoff)
    whole, swaps, cells = explored(n), explored(n, swap_interval=10), explored(n, pressure_GPa=0.0)
    steps = stepped(n, hamiltonian(model.basis))
    still = stepped(n, hamiltonian(model.basis), timestep=0.0)
    row(
        "replicas", parts_of_a_step="us per atom", replicas=n, cores=cores, whole=whole,
        checks_of_forces_and_committee=whole - steps, swap_every_10_steps=swaps - whole,
        cell_move_every_10_steps=cells - whole, neighbour_lists=steps - still,
        sigma=still - stepped(n, unbiased(model.basis), timestep=0.0),
        integrator_and_bookkeeping=stepped(n, nothing, timestep=0.0),
    )  # fmt: skip


def driver(options: argparse.Namespace) -> None:
    """Lennard-Jones argon in the same replicas, float64, beside torch-sim."""
    import jax.numpy as jnp
    from common import row

    from haljax.md import Hamiltonian
    from haljax.structures import vectors

    def lennard_jones(params, system, neighbours, tau):
        d, z = vectors(system, neighbours, 2 * ARGON["cutoff"])
        six = (ARGON["sigma"] ** 2 / jnp.sum(d**2, axis=-1)) ** 3
        inside = (z >= 0) & (jnp.sum(d**2, axis=-1) < ARGON["cutoff"] ** 2)
        return 2 * ARGON["epsilon"] * jnp.sum(jnp.where(inside, six**2 - six, 0.0))

    for n in (1, 8, 64):
        result = {"haljax_us_per_atom_and_step": stepped(n, Hamiltonian(lennard_jones, ARGON["cutoff"]), argon(n))}
        if not options.no_peer:
            script = Path(__file__).parent / "peers" / "_time_torch_sim.py"
            command = [options.peer_python, str(script), str(n), str(STEPS), json.dumps(ARGON)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            result["torch_sim_us_per_atom_and_step"] = 1e6 * float(done.stdout.split()[-1]) / n / 32
            result["ratio"] = result["torch_sim_us_per_atom_and_step"] / result["haljax_us_per_atom_and_step"]
        row("replicas", potential="Lennard-Jones", replicas=n, cores=options.cores, **result)


def argon(n: int) -> list:
    from ase.build import bulk

    made = []
    for seed in range(n):
        atoms = bulk("Ar", cubic=True) * 2
        atoms.rattle(0.05, seed=seed)
        made.append(atoms)
    return made


@lru_cache
def known():
    """A model, and dynamics that nothing stops."""
    from refit import labelled

    import haljax as hx
    from haljax.config import Dynamics

    model = hx.fit(hx.ace_basis(("Al", "Cu"), 5.0, 3, 9), labelled(12, 0))
    unbounded = dict(tolerance=1e9, max_force=1e9, max_temperature_K=1e9, max_pressure_GPa=1e9, min_distance=0.0)
    return model, Dynamics(temperature_K=300.0, n_steps=STEPS, **unbounded)


def explored(n: int, **changes) -> float:
    """Microseconds per atom and step of n replicas in a round of a campaign."""
    import jax
    from common import median_seconds
    from refit import labelled

    from haljax.hal.acquisition import explore, room_for

    model, dynamics = known()
    starts = labelled(1, 2) * n
    room, dynamics = room_for(model.basis, dynamics.skin, starts), dynamics.model_copy(update=changes)

    def round_() -> None:
        explore(model, dynamics, starts, jax.random.key(0), room, lambda _: None)

    median, _ = median_seconds(round_, repeats=max(1, min(5, 32 // n)))
    return 1e6 * median / STEPS / n / 32


def stepped(n: int, hamiltonian, atoms: list | None = None, timestep: float = 1.0) -> float:
    """Microseconds per atom and step of the bare steps of n replicas, in batches as a campaign makes them."""
    from common import median_seconds
    from refit import labelled
    from step_cost import STEPS, as_campaign, steps

    from haljax.hal.acquisition import _width
    from haljax.potentials import parameters_of

    params, batch = as_campaign(parameters_of(known()[0])), _width(n, n, 32, devices=1, n_cores=1)
    elements, atoms = ("Al", "Cu") if atoms is None else ("Ar",), atoms or labelled(1, 2) * n
    run = steps(hamiltonian, params, elements, atoms[:batch], 1.0, timestep=timestep)
    median, _ = median_seconds(lambda: [run() for _ in range(n // batch)])
    return 1e6 * median / STEPS / n / 32


if __name__ == "__main__":
    main()
