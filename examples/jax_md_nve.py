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
species = jnp.asarray([model.basis.elements.index(symbol) for symbol in atoms.symbols])
mass = jnp.asarray(atomic_masses[atoms.numbers])
R = jnp.asarray(atoms.positions)
neighbours = p.neighbours(R, box, species, skin=2.0)  # wide enough for this short run


def conserved(tau: float, n_steps: int = 200) -> jax.Array:
    """Largest change of E - tau sigma plus kinetic energy, eV, of each replica."""

    def h(R, **_):
        return p.biased(R, box=box, species=species, neighbor=neighbours, tau=tau)

    init, step = simulate.nve(h, lambda R, dR, **_: R + dR, dt=1.0 * units.fs)

    def total(state):
        return h(state.position) + jnp.sum(state.momentum**2 / (2 * state.mass))

    def replica(key):
        state = init(key, R, kT=600 * units.kB, mass=mass)

        def one(state, _):
            state = step(state)
            return state, total(state)

        _, energies = jax.lax.scan(one, state, length=n_steps)
        return jnp.max(jnp.abs(energies - total(state)))

    return jax.jit(jax.vmap(replica))(jax.random.split(jax.random.key(0), 8))


for tau in (0.0, 1.0):
    drift = conserved(tau)
    print(f"tau = {tau}: E - tau sigma + kinetic energy conserved to {float(drift.max()):.1e} eV over 200 fs")
