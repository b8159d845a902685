"""One replica's state and its Langevin step under a biased Hamiltonian, and a block of steps of a batch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from haljax.ace import ACEBasis
from haljax.potentials import Parameters, biased_energy
from haljax.structures import Neighbours, NeighbourState, System, must_rebuild, refresh

MARGIN = 0.2  # Å of the skin kept for the motion between looking at the list and using it


def _simulate() -> ModuleType:
    """jax-md's integrators alone: its package imports several neural networks first, and computes, for seconds.

    At import, since it adds to jax's settings, and what was compiled under others is compiled again.
    """
    if "jax_md" in sys.modules:
        return import_module("jax_md.simulate")
    spec = find_spec("jax_md")
    assert spec is not None
    sys.modules["jax_md"] = module_from_spec(spec)  # which knows where its modules are, and was not executed
    try:
        return import_module("jax_md.simulate")
    finally:
        del sys.modules["jax_md"]  # who imports the package gets the whole of it


simulate = _simulate()


class Hamiltonian(NamedTuple):
    """What replicas move under: pure functions and the range of their forces. Static and hashable.

    Attributes
    ----------
    biased : (params, system, neighbours, tau) -> () eV, differentiable in ``system.positions``.
    cutoff : Å.
    """

    biased: Callable[[Any, System, Neighbours, jax.Array], jax.Array]
    cutoff: float

    def force(self, params: Any, system: System, neighbours: Neighbours, tau: jax.Array) -> jax.Array:
        """-dH/dR, (N, 3) eV/Å."""
        return self.energy_and_force(params, system, neighbours, tau)[1]

    @partial(jax.jit, static_argnums=0)  # so that the many programs that step, move and check trace it once
    def energy_and_force(
        self, params: Any, system: System, neighbours: Neighbours, tau: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """H () eV and -dH/dR (N, 3) eV/Å."""
        value, gradient = jax.value_and_grad(
            lambda positions: self.biased(params, system._replace(positions=positions), neighbours, tau)
        )(system.positions)
        return value, -gradient


@lru_cache(maxsize=64)
def hamiltonian(basis: ACEBasis) -> Hamiltonian:
    """H = E - tau sigma for replica dynamics, with `Parameters` as its parameters. The same object every time."""

    def biased(params: Parameters, system: System, neighbours: Neighbours, tau: jax.Array) -> jax.Array:
        return biased_energy(basis, params, system, neighbours, tau)

    return Hamiltonian(biased, basis.cutoff)


class Replica(NamedTuple):
    """State of one replica; a batch has a leading axis on every leaf. eV, Å, amu; time in Å sqrt(amu/eV).

    Attributes
    ----------
    system : positions, species, cell.
    momenta : (N, 3).
    force : (N, 3) eV/Å, of the biased Hamiltonian at the present ``tau``.
    masses : (Z,) amu, of the basis' elements.
    tau : () bias strength.
    key : typed PRNG key.
    """

    system: System
    momenta: jax.Array
    force: jax.Array
    masses: jax.Array
    tau: jax.Array
    key: jax.Array

    @property
    def mass(self) -> jax.Array:
        """(N, 1) amu; 1 for padded atoms."""
        species = self.system.species
        return jnp.where(species >= 0, self.masses[jnp.maximum(species, 0)], 1.0)[:, None]


def maxwell_boltzmann(key: jax.Array, masses: jax.Array, species: jax.Array, kT: jax.Array) -> jax.Array:
    """Canonical momenta (N, 3); zero for padded atoms. The centre of mass moves, as Langevin dynamics has it."""
    mass = jnp.where(species >= 0, masses[jnp.maximum(species, 0)], 0.0)[:, None]
    return jnp.sqrt(mass * kT) * jax.random.normal(key, (len(species), 3), masses.dtype)


def kinetic_energy(replica: Replica) -> jax.Array:
    """() eV."""
    real = (replica.system.species >= 0)[:, None]
    return 0.5 * jnp.sum(jnp.where(real, replica.momenta**2 / replica.mass, 0.0))


def temperature(kinetic: jax.Array, dof: jax.Array) -> jax.Array:
    """Instantaneous kT, eV, from the kinetic energy and the number of degrees of freedom.

    Langevin dynamics thermostats all 3 N of them; dynamics that conserves momentum from rest has 3 N - 3.
    """
    return 2 * kinetic / dof


def langevin_step(
    hamiltonian: Hamiltonian,
    params: Any,
    replica: Replica,
    neighbours: Neighbours,
    kT: jax.Array,
    dt: jax.Array,
    friction: jax.Array,
) -> Replica:
    """One BAOAB step of jax-md's Langevin thermostat; one force evaluation.

    Parameters
    ----------
    kT : eV. dt : in Å sqrt(amu/eV). friction : its inverse.

    Source: Davidchack, Ouldridge, Tretyakov, J Chem Phys 142, 144114 (2015), doi:10.1063/1.4916312.
    """
    system = replica.system

    def force(positions: jax.Array, **_: Any) -> jax.Array:
        return hamiltonian.force(params, system._replace(positions=positions), neighbours, replica.tau)

    _, step = simulate.nvt_langevin(force, lambda R, dR, **_: R + dR, dt, kT, friction)
    state = step(simulate.NVTLangevinState(system.positions, replica.momenta, replica.force, replica.mass, replica.key))
    return replica._replace(
        system=system._replace(positions=state.position), momenta=state.momentum, force=state.force, key=state.rng
    )


def advance(
    hamiltonian: Hamiltonian,
    params: Any,
    replicas: Replica,
    lists: NeighbourState,
    kT: jax.Array,
    dt: jax.Array,
    friction: jax.Array,
    n_steps: int,
    skin: float,
    stencil: tuple[int, int, int],
) -> tuple[Replica, NeighbourState, jax.Array, jax.Array]:
    """``n_steps`` Langevin steps of a batch.

    Lists are built for the whole batch when one replica needs it, and taken by those that do: so the list of a
    replica, and with it the rounding of its sums, does not depend on its company.

    Returns
    -------
    replicas, lists
    too_fast : (B,) bool, an atom crossed the margin of the skin within one step, so that forces may have missed a
        neighbour.
    shortage : (B,) int32, the largest ``Neighbours.overflow`` met at finite positions, or -1 for a stencil too small.
    """
    cutoff = hamiltonian.cutoff

    def outdated(lists: NeighbourState, systems: System, margin: float) -> jax.Array:
        return jax.vmap(
            lambda state, system: must_rebuild(
                state, system.positions, system.cell, cutoff + margin, skin - margin, system.species >= 0
            )
        )(lists, systems)

    def step(_, carry):
        replicas, lists, too_fast, shortage = carry
        due = outdated(lists, replicas.system, MARGIN)
        fresh = refresh(lists, replicas.system, cutoff + MARGIN, skin - MARGIN, stencil)
        lists = choose(due, fresh, lists)
        shortage = worst(shortage, jax.vmap(shortage_of)(replicas.system, lists.neighbours))
        replicas = jax.vmap(partial(langevin_step, hamiltonian, params))(replicas, lists.neighbours, kT, dt, friction)
        return replicas, lists, too_fast | outdated(lists, replicas.system, 0.0), shortage

    carry = replicas, lists, jnp.zeros(kT.shape, bool), jnp.zeros(kT.shape, jnp.int32)
    return jax.lax.fori_loop(0, n_steps, step, carry)


def choose(condition: jax.Array, new: Any, old: Any) -> Any:
    """``new`` where ``condition``, over the leading axes of every leaf that the condition has."""
    return jax.tree.map(
        lambda a, b: jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b), new, old
    )


def shortage_of(system: System, neighbours: Neighbours) -> jax.Array:
    """``overflow`` () where the positions are finite; 0 where they are not, since then no list can be complete."""
    finite = jnp.all(jnp.isfinite(system.positions)) & jnp.all(jnp.isfinite(system.cell))
    return jnp.where(finite, neighbours.overflow, 0)


def worst(a: jax.Array, b: jax.Array) -> jax.Array:
    """The graver of two shortages: a stencil too small (-1) before the larger capacity needed."""
    return jnp.where((a < 0) | (b < 0), -1, jnp.maximum(a, b)).astype(jnp.int32)
