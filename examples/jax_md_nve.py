"""Constant-energy dynamics of a haljax model in jax-md: eight replicas at once, unbiased and biased.

python examples/jax_md_nve.py runs/alcu_emt/model.npz
"""

import sys

import jax
import jax.numpy as jnp
from alcu_start import structures
from ase import units
from ase.data import atomic_masses
from jax_md import simulate

import haljax as hx

jax.config.update("jax_enable_x64", True)
model = hx.load(sys.argv[1])
p = hx.potential(model)

atoms = structures()[6]
box = jnp.asarray(atoms.cell.array.T)  # jax-md has lattice vectors in columns
species = p.species(atoms)
mass = jnp.asarray(atomic_masses[atoms.numbers])
R = jnp.asarray(atoms.positions)
neighbours = p.neighbours(R, box, species, skin=0.5)


def conserved(tau: float, n_steps: int = 200) -> jax.Array:
    """Largest change of E - tau sigma plus kinetic energy, eV, of each replica."""

    def h(R, neighbor, **_):
        return p.biased(R, box=box, species=species, neighbor=neighbor, tau=tau)

    init, step = simulate.nve(h, lambda R, dR, **_: R + dR, dt=1.0 * units.fs)

    def total(state, neighbor):
        return h(state.position, neighbor) + jnp.sum(state.momentum**2 / (2 * state.mass))

    def replica(key):
        state = init(key, R, kT=600 * units.kB, mass=mass, neighbor=neighbours)

        def one(carry, _):
            state, neighbor = carry
            neighbor = neighbor.update(state.position)  # made anew where atoms have moved too far for it
            state = step(state, neighbor=neighbor)
            return (state, neighbor), total(state, neighbor)

        _, energies = jax.lax.scan(one, (state, neighbours), length=n_steps)
        return jnp.max(jnp.abs(energies - total(state, neighbours)))

    return jax.jit(jax.vmap(replica))(jax.random.split(jax.random.key(0), 8))


for tau in (0.0, 1.0):
    drift = conserved(tau)
    print(f"tau = {tau}: E - tau sigma + kinetic energy conserved to {float(drift.max()):.1e} eV over 200 fs")
