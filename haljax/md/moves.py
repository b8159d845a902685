"""Monte Carlo moves of one replica: the cell under pressure, and swaps of unlike atoms.

Each move evaluates the biased Hamiltonian with one bias strength on both sides of the Metropolis test.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from haljax.md.replicas import Hamiltonian, Replica, choose, shortage_of
from haljax.structures import Neighbours, NeighbourState, System, neighbour_state


def _metropolis(key: jax.Array, log_ratio: jax.Array) -> jax.Array:
    """Accept () bool; never where the ratio is NaN."""
    return jnp.log(jax.random.uniform(key, (), log_ratio.dtype)) < log_ratio


def _compare(
    hamiltonian: Hamiltonian,
    params: Any,
    tau: jax.Array,
    old: tuple[System, Neighbours],
    new: tuple[System, Neighbours],
) -> tuple[jax.Array, jax.Array]:
    """Change of H () eV from the old to the new system, and the force in the new one; one program for both."""
    systems, lists = jax.tree.map(lambda a, b: jnp.stack([a, b]), old, new)
    energies, forces = jax.vmap(lambda s, n: hamiltonian.energy_and_force(params, s, n, tau))(systems, lists)
    return energies[1] - energies[0], forces[1]


def cell_move(
    hamiltonian: Hamiltonian,
    params: Any,
    replica: Replica,
    lists: NeighbourState,
    key: jax.Array,
    kT: jax.Array,
    pressure: jax.Array,
    size: jax.Array,
    fixed_shape: bool,
    skin: float,
    stencil: tuple[int, int, int],
) -> tuple[Replica, NeighbourState, jax.Array, jax.Array]:
    """Strain the cell, and the atoms with it, and accept in the isothermal-isobaric ensemble.

    The cell is multiplied by exp(eps), eps symmetric with independent normal entries of width ``size`` (one entry, the
    same along all axes, where ``fixed_shape``). Such a proposal is symmetric in the invariant measure dh / (det h)^3,
    in which the ensemble exp(-(H + P V)/kT) V^N dV weighs V^(N+1); so the acceptance carries (N + 1) ln(V'/V):
    the N of the scaled coordinates and the one of stepping in ln V rather than V.

    Parameters
    ----------
    kT : eV. pressure : eV/Å^3; where it is NaN, or the system not periodic along all axes, the replica stays
        as it is. size : standard deviation of the strain.

    Returns
    -------
    replica, its list (fresh where accepted), accepted () bool, and shortage () of the trial's list (see `advance`): a
    trial whose list is incomplete is refused, so a shortage must be mended and the move made again.

    Source: Frenkel & Smit, Understanding Molecular Simulation, §5.4; Martyna, Tobias, Klein, J Chem Phys 101, 4177
    (1994), doi:10.1063/1.467468.
    """
    system, dtype = replica.system, replica.momenta.dtype
    shape_key, accept_key = jax.random.split(key)
    if fixed_shape:
        strain = size * jax.random.normal(shape_key, (), dtype) * jnp.eye(3, dtype=dtype)
    else:
        entries = size * jax.random.normal(shape_key, (3, 3), dtype)
        strain = jnp.triu(entries) + jnp.triu(entries, 1).T
    deformation = jax.scipy.linalg.expm(strain)
    highest = jax.lax.Precision.HIGHEST
    trial = system._replace(
        positions=jnp.matmul(system.positions, deformation, precision=highest),
        cell=jnp.matmul(system.cell, deformation, precision=highest),
    )
    trial_list = neighbour_state(trial, hamiltonian.cutoff, skin, lists.neighbours.index.shape[-1], stencil)
    change, force = _compare(
        hamiltonian, params, replica.tau, (system, lists.neighbours), (trial, trial_list.neighbours)
    )
    n_atoms = jnp.sum(system.species >= 0)
    volume = jnp.abs(jnp.linalg.det(system.cell))
    log_growth = jnp.trace(strain)
    work = change + pressure * volume * jnp.expm1(log_growth)
    accept = _metropolis(accept_key, -work / kT + (n_atoms + 1) * log_growth)
    moved = replica._replace(system=trial, force=force)
    asked = jnp.isfinite(pressure) & jnp.all(system.pbc)
    accept = accept & asked
    shortage = jnp.where(asked, shortage_of(trial, trial_list.neighbours), 0)
    return choose(accept, moved, replica), choose(accept, trial_list, lists), accept, shortage


def swap_move(
    hamiltonian: Hamiltonian,
    params: Any,
    replica: Replica,
    neighbours: Neighbours,
    key: jax.Array,
    kT: jax.Array,
) -> tuple[Replica, jax.Array]:
    """Exchange two atoms of unlike elements, chosen at random, and accept in the canonical ensemble.

    Elements and momenta change places rather than positions, so that the neighbour list stays valid; momenta keep to
    their atoms and their kinetic energy does not enter.

    Returns
    -------
    replica, accepted () bool; unchanged where there is one element only.
    """
    species = replica.system.species
    first_key, second_key, accept_key = jax.random.split(key, 3)
    real = species >= 0
    i = jax.random.categorical(first_key, jnp.where(real, 0.0, -jnp.inf))
    unlike = real & (species != species[i])
    j = jax.random.categorical(second_key, jnp.where(unlike, 0.0, -jnp.inf))

    def exchanged(x: jax.Array) -> jax.Array:
        return x.at[i].set(x[j]).at[j].set(x[i])

    trial = replica.system._replace(species=exchanged(species))
    change, force = _compare(hamiltonian, params, replica.tau, (replica.system, neighbours), (trial, neighbours))
    accept = _metropolis(accept_key, -change / kT) & jnp.any(unlike)
    moved = replica._replace(system=trial, force=force, momenta=exchanged(replica.momenta))
    return choose(accept, moved, replica), accept
