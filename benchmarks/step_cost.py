"""What the bias costs: a biased step beside an unbiased one, and energy and forces beside ace-jax's calculator.

    python benchmarks/step_cost.py [--peer-python PATH] [--no-peer]

32 atoms, some 700 functions. A step is a Langevin step of a replica as a campaign makes it, with the campaign's float32
factor of the covariance; "exact" is one with the model's own factor. The unbiased one moves under E alone, without
sigma. One replica, and eight at once (per replica).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import jax
import jax.numpy as jnp
import numpy as np
from ase import units
from ase.build import bulk
from ase.data import atomic_masses, atomic_numbers
from common import median_seconds, paired_seconds, row
from peers import acejax
from refit import labelled

import haljax as hx
from haljax.bayes import triangular_blocks
from haljax.hal.trajectory import room
from haljax.md import Hamiltonian, Replica, advance, hamiltonian
from haljax.potentials import Parameters, n_features, parameters_of, total_energy
from haljax.rows import examples, reference_densities
from haljax.structures import from_atoms, neighbour_list, neighbour_state, required_stencil, stack

STEPS, SKIN = 50, 0.5


def unbiased(basis) -> Hamiltonian:
    return Hamiltonian(
        lambda params, system, neighbours, tau: total_energy(basis, params, system, neighbours), basis.cutoff
    )


def as_campaign(params: Parameters, dtype=np.float64) -> Parameters:
    """The parameters with which a campaign makes steps."""
    blocks = tuple(block.astype(jnp.float32) for block in triangular_blocks(params.factor))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)._replace(factor=blocks)


def steps(h: Hamiltonian, params, elements: tuple, atoms: list, tau: float, dtype=np.float64, timestep: float = 1.0):
    """A compiled call that makes STEPS steps of these replicas at 300 K; the time step in fs."""
    systems = [from_atoms(a, elements) for a in atoms]
    capacity, systems = room(systems, h.cutoff + SKIN), stack(systems)
    stencil = tuple(int(n) for n in required_stencil(systems.cell[0], systems.pbc[0], h.cutoff + SKIN))
    systems, params = jax.tree.map(
        lambda x: jnp.asarray(x, dtype if x.dtype == np.float64 else x.dtype), (systems, params)
    )
    lists = jax.vmap(lambda s: neighbour_state(s, h.cutoff, SKIN, capacity, stencil))(systems)
    n = len(atoms)
    zeros = jnp.zeros(systems.positions.shape, dtype)
    masses = jnp.asarray([atomic_masses[atomic_numbers[e]] for e in elements], dtype)
    keys = jax.vmap(jax.random.key)(jnp.arange(n))
    replicas = Replica(systems, zeros, zeros, jnp.tile(masses, (n, 1)), jnp.full(n, tau, dtype), keys)
    ones = jnp.ones(n, dtype)
    kT, dt, friction = 300 * units.kB * ones, timestep * units.fs * ones, 0.01 / units.fs * ones

    @jax.jit
    def run(params, replicas, lists):
        return advance(h, params, replicas, lists, kT, dt, friction, STEPS, SKIN, stencil)

    return lambda: run(params, replicas, lists)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    basis = hx.ace_basis(("Al", "Cu"), 5.0, 3, 9)
    model = hx.fit(basis, labelled(12, 0))
    for dtype in (jnp.float64, jnp.float32):
        for n in (1, 8, 64, 512) if jax.default_backend() == "gpu" else (1, 8):
            atoms = labelled(1, 2) * n
            plain = steps(unbiased(basis), parameters_of(model), basis.elements, atoms, 0.0, dtype)
            for name, params in (
                ("campaign", as_campaign(parameters_of(model), dtype)),
                ("exact", parameters_of(model)),
            ):
                with_bias = steps(hamiltonian(basis), params, basis.elements, atoms, 1.0, dtype)
                biased, alone, ratio = paired_seconds(with_bias, plain)
                per_step = 1e6 / STEPS / n / 32
                row(
                    "step_cost",
                    functions=len(basis),
                    replicas=n,
                    dtype=jnp.dtype(dtype).name,
                    bias=name,
                    biased_us_per_atom=biased * per_step,
                    unbiased_us_per_atom=alone * per_step,
                    ratio=ratio[1],
                    ratio_quartiles=[float(f"{ratio[0]:.3g}"), float(f"{ratio[2]:.3g}")],
                )

    silicon = hx.ace_basis(("Si",), 5.5, 3, 14), bulk("Si", cubic=True) * 3
    for name, b, atoms in (
        ("Al-Cu, order 3, degree 9", basis, labelled(1, 2)[0].copy()),
        ("Si, order 3, degree 14", *silicon),
    ):
        atoms.rattle(0.05, seed=1)
        result = energy_and_forces(model, b, atoms)
        if not options.no_peer:
            theirs = acejax.times(options.peer_python, atoms, b.elements, b.order, b.max_degree, b.cutoff, 20)
            result["ace_jax_calculator_us_per_atom"] = theirs["calculator"]["median_s"] / len(atoms) * 1e6
            result["ratio_of_calculators"] = result["ace_jax_calculator_us_per_atom"] / result["calculator_us_per_atom"]
        row("energy_and_forces", case=name, atoms=len(atoms), functions=len(b), **result)


def energy_and_forces(model, basis, atoms) -> dict[str, float]:
    """µs/atom of the jitted function with a list at hand, and of the ASE calculator, list included."""
    params = parameters_like(basis)
    system = from_atoms(atoms, basis.elements)
    system, found = jax.tree.map(jnp.asarray, (system, neighbour_list(system, basis.cutoff)))

    @jax.jit
    def call(positions):
        return jax.value_and_grad(lambda R: total_energy(basis, params, system._replace(positions=R), found))(positions)

    seconds, spread = median_seconds(lambda: call(system.positions))
    atoms = atoms.copy()
    atoms.calc = hx.Calculator(model_like(model, basis))
    per_atom = 1e6 / len(atoms)
    return {
        "energy_and_forces_us_per_atom": seconds * per_atom,
        "spread": spread * per_atom,
        "calculator_us_per_atom": calculator_seconds(atoms) * per_atom,
    }


def parameters_like(basis) -> Parameters:
    m = len(basis)
    crystals = list(examples(basis, [bulk(element) for element in basis.elements]))
    density = jnp.asarray(reference_densities(basis, crystals))
    return Parameters(
        jnp.zeros(basis.n_species),
        jnp.linspace(-1.0, 1.0, m) / m,
        jnp.eye(n_features(basis)),
        jnp.stack(basis.core_radii),
        density,
    )


def model_like(model, basis):
    p = parameters_like(basis)
    return replace(
        model,
        basis=basis,
        radii=np.asarray(p.radii),
        near=1.15 * np.asarray(basis.core_radii[1]),
        density=np.asarray(p.density),
        posterior=model.posterior._replace(mean=jnp.concatenate([p.mean, p.e0])),
        spread=model.spread._replace(factor=p.factor),
    )


def calculator_seconds(atoms, repeats: int = 20) -> float:
    times = []
    for _ in range(repeats + 2):
        atoms.positions[0, 0] += 1e-4
        start = time.perf_counter()
        atoms.get_forces()
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))


if __name__ == "__main__":
    main()
