"""Biased trajectories of a batch of replicas, each until it is uncertain, unsafe or at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from haljax.ace import ACEBasis
from haljax.ace.basis import CORE_OUTER
from haljax.devices import spread
from haljax.hal.controller import Bias, bias_strength, criterion, mean_norm, relative_force_error
from haljax.md import (
    Guards,
    Replica,
    Status,
    advance,
    cell_move,
    choose,
    guard,
    hamiltonian,
    kinetic_energy,
    maxwell_boltzmann,
    shortage_of,
    swap_move,
    temperature,
    worst,
)
from haljax.potentials import Parameters, evaluate_system
from haljax.structures import NeighbourState, System, bucket, neighbour_list, neighbour_state, required_stencil, vectors

Array = Any  # numpy or JAX

BLOCK = 10  # checks between two looks of the host
EACH = PartitionSpec("batch")


class Protocol(NamedTuple):
    """What all replicas of a batch share; static.

    Attributes
    ----------
    check_interval : steps between two looks at forces, uncertainty and guards.
    cell_interval, swap_interval : steps between two Monte Carlo moves, multiples of ``check_interval``; 0 for none.
    fixed_shape : cell moves change the volume only.
    softmax : judge the softmax of the f_i rather than their maximum.
    skin : Å, of the neighbour lists.
    """

    check_interval: int
    cell_interval: int
    swap_interval: int
    fixed_shape: bool
    softmax: bool
    skin: float


class Conditions(NamedTuple):
    """What each replica has of its own: leaves (B,), ramps (B, 2). eV, Å, amu, time in Å sqrt(amu/eV).

    Attributes
    ----------
    kT : (B, 2) eV. pressure : (B, 2) eV/Å^3, NaN for a fixed cell. tau_rel : (B, 2) relative bias strength.
    n_steps : length. dt : time step. friction : of the thermostat.
    tolerance : of the relative force error. epsilon : eV/Å, in its denominator.
    tau_history : steps over which force norms are averaged. tau_delay : steps of burn-in without bias.
    cell_step : standard deviation of the strain of a cell move.
    guards : bounds; distances in units of the sum of two covalent radii, temperatures in kT (eV), pressures in
        eV/Å^3.
    """

    kT: jax.Array
    pressure: jax.Array
    tau_rel: jax.Array
    n_steps: jax.Array
    dt: jax.Array
    friction: jax.Array
    tolerance: jax.Array
    epsilon: jax.Array
    tau_history: jax.Array
    tau_delay: jax.Array
    cell_step: jax.Array
    guards: Guards


class Trajectory(NamedTuple):
    """State of a batch.

    Attributes
    ----------
    replica, lists : as `haljax.md` has them.
    bias : running means of the force norms.
    step : steps made. status : a `Status` code.
    safe : the system at the last check that no guard objected to; safe_step : when that was.
    shortage : of the neighbour lists since the block began, see `haljax.md.advance`.
    """

    replica: Replica
    lists: NeighbourState
    bias: Bias
    step: jax.Array
    status: jax.Array
    safe: System
    safe_step: jax.Array
    shortage: jax.Array


class Observation(NamedTuple):
    """What a check sees, (B,) each: for the pictures, not carried.

    Attributes
    ----------
    step, status. criterion : of the relative force errors. temperature : K. pressure : GPa, NaN where not periodic.
    energy, sigma : eV per atom. tau : bias strength. cell_moves, swap_moves : 1 accepted, 0 refused, -1 not tried.
    """

    step: Array
    status: Array
    criterion: Array
    temperature: Array
    pressure: Array
    energy: Array
    sigma: Array
    tau: Array
    cell_moves: Array
    swap_moves: Array


class HALParameters(NamedTuple):
    """A model for dynamics.

    Attributes
    ----------
    linear : its `Parameters`, with which checks are made.
    deviations : (K, P) of committee members from the mean.
    factor : in place of that of ``linear`` in steps and moves, where its size is what the bias costs:
        `haljax.bayes.triangular_blocks` in float32. None for the same.
    """

    linear: Parameters
    deviations: jax.Array
    factor: tuple[jax.Array, ...] | None = None


def _along(ramp: jax.Array, progress: jax.Array) -> jax.Array:
    return ramp[0] + (ramp[1] - ramp[0]) * jnp.clip(progress, 0.0, 1.0).astype(ramp.dtype)


@partial(jax.jit, static_argnames=("basis", "capacity", "stencil", "skin", "devices"))
def _begin(
    basis: ACEBasis,
    params: HALParameters,
    systems: System,
    masses: jax.Array,
    kT: jax.Array,
    keys: jax.Array,
    skin: float,
    capacity: int,
    stencil: tuple[int, int, int],
    devices: int = 1,
) -> Trajectory:
    def one(system: System, kT: jax.Array, key: jax.Array) -> Trajectory:
        momentum_key, key = jax.random.split(key)
        lists = neighbour_state(system, basis.cutoff, skin, capacity, stencil)
        zero, start = jnp.zeros((), kT.dtype), jnp.zeros((), jnp.int32)
        force = hamiltonian(basis).force(params.linear, system, lists.neighbours, zero)
        momenta = maxwell_boltzmann(momentum_key, masses, system.species, kT)
        replica = Replica(system, momenta, force, masses, zero, key)
        return Trajectory(
            replica, lists, Bias(zero, zero), start, start, system, start, shortage_of(system, lists.neighbours)
        )

    return spread(devices, jax.vmap(one), (EACH, EACH, EACH), EACH)(systems, kT, keys)


def _check(
    basis: ACEBasis,
    protocol: Protocol,
    params: HALParameters,
    conditions: Conditions,
    trajectory: Trajectory,
    too_fast: jax.Array,
) -> tuple[Trajectory, Observation]:
    """Look at one replica: set its status, and its bias strength for the steps to come."""
    from ase.units import GPa, kB

    replica, neighbours = trajectory.replica, trajectory.lists.neighbours
    system, real = replica.system, replica.system.species >= 0
    n_atoms = jnp.sum(real)
    step = trajectory.step + protocol.check_interval
    progress = step / conditions.n_steps

    result = evaluate_system(basis, params.linear, system, neighbours, params.deviations)
    f = relative_force_error(result.force_deviations, result.forces, conditions.epsilon, real)
    score = criterion(f, real, protocol.softmax)

    d, z_j = vectors(system, neighbours, 2 * basis.cutoff)
    radii = jnp.asarray(basis.core_radii[1] / CORE_OUTER, d.dtype)
    ratio = jnp.sqrt(jnp.sum(d**2, axis=-1)) / radii[jnp.maximum(system.species, 0)[:, None], jnp.maximum(z_j, 0)]
    shortest = jnp.min(jnp.where(z_j >= 0, ratio, jnp.inf))
    largest = jnp.max(jnp.where(real, jnp.sqrt(jnp.sum(result.forces**2, axis=-1)), 0.0))
    kT = temperature(kinetic_energy(replica), 3 * n_atoms)
    finite = jnp.isfinite(result.energy) & jnp.isfinite(largest) & jnp.isfinite(kT) & jnp.isfinite(score)
    periodic = jnp.all(system.pbc)
    volume = jnp.abs(jnp.linalg.det(system.cell))
    pressure = jnp.where(periodic, (n_atoms * kT + jnp.sum(result.virial[:3]) / 3) / volume, 0.0)
    status = guard(conditions.guards, shortest, largest, kT, pressure, finite, too_fast)

    sample = Bias(mean_norm(result.forces, real), mean_norm(result.sigma_gradient, real))
    bias, tau = bias_strength(
        trajectory.bias,
        sample,
        trajectory.step == 0,
        jnp.minimum(1.0, protocol.check_interval / conditions.tau_history),
        _along(conditions.tau_rel, progress),
        step >= conditions.tau_delay,
    )
    force = result.forces + tau * result.sigma_gradient

    safe = status == Status.RUNNING
    ended = jnp.where(step >= conditions.n_steps, Status.FINISHED, Status.RUNNING)
    ended = jnp.where(score > conditions.tolerance, Status.UNCERTAIN, ended)
    status = jnp.where(safe, ended, status).astype(jnp.int32)
    trajectory = trajectory._replace(
        replica=replica._replace(tau=tau, force=force),
        bias=bias,
        step=step,
        status=status,
        safe=jax.tree.map(partial(jnp.where, safe), system, trajectory.safe),
        safe_step=jnp.where(safe, step, trajectory.safe_step),
    )
    none = jnp.full((), -1, jnp.int32)
    return trajectory, Observation(
        step,
        status,
        score,
        kT / kB,
        jnp.where(periodic, pressure / GPa, jnp.nan),
        result.energy / n_atoms,
        result.sigma / n_atoms,
        tau,
        none,
        none,
    )


@partial(jax.jit, static_argnames=("basis", "protocol", "n_checks", "stencil", "devices"))
def _block(
    basis: ACEBasis,
    protocol: Protocol,
    params: HALParameters,
    conditions: Conditions,
    trajectory: Trajectory,
    tick: jax.Array,
    n_checks: int,
    stencil: tuple[int, int, int],
    devices: int = 1,
) -> tuple[Trajectory, Observation]:
    """``n_checks`` rounds of dynamics, moves and a check; replicas that have stopped stay as they are."""
    everyone = PartitionSpec()
    return spread(
        devices,
        partial(_rounds, basis, protocol, n_checks, stencil),
        (everyone, EACH, EACH, everyone),
        (EACH, PartitionSpec(None, "batch")),
    )(params, conditions, trajectory, tick)


def _rounds(
    basis: ACEBasis,
    protocol: Protocol,
    n_checks: int,
    stencil: tuple[int, int, int],
    params: HALParameters,
    conditions: Conditions,
    trajectory: Trajectory,
    tick: jax.Array,
) -> tuple[Trajectory, Observation]:
    h = hamiltonian(basis)
    # Without what no step or move changes, thousands of eV an atom with some codes: float32 has seven digits.
    moved_by = params.linear._replace(e0=jnp.zeros_like(params.linear.e0))
    if params.factor is not None:
        moved_by = moved_by._replace(factor=params.factor)

    def progress(state: Trajectory) -> jax.Array:
        return state.step / conditions.n_steps

    def at(ramp: jax.Array, state: Trajectory) -> jax.Array:
        return jax.vmap(_along)(ramp, progress(state))

    def cell_moves(state: Trajectory) -> tuple[Trajectory, jax.Array]:
        keys = jax.vmap(lambda key: jax.random.split(key))(state.replica.key)
        replica, lists, accepted, shortage = jax.vmap(
            lambda replica, lists, key, kT, pressure, size: cell_move(
                h, moved_by, replica, lists, key, kT, pressure, size, protocol.fixed_shape, protocol.skin, stencil
            )
        )(
            state.replica._replace(key=keys[:, 0]),
            state.lists,
            keys[:, 1],
            at(conditions.kT, state),
            at(conditions.pressure, state),
            conditions.cell_step,
        )
        tried = jnp.isfinite(conditions.pressure[:, 0]) & jnp.all(state.replica.system.pbc, axis=-1)
        return (
            state._replace(replica=replica, lists=lists, shortage=worst(state.shortage, shortage)),
            jnp.where(tried, accepted.astype(jnp.int32), -1),
        )

    def swap_moves(state: Trajectory) -> tuple[Trajectory, jax.Array]:
        keys = jax.vmap(lambda key: jax.random.split(key))(state.replica.key)
        replica, accepted = jax.vmap(partial(swap_move, h, moved_by))(
            state.replica._replace(key=keys[:, 0]), state.lists.neighbours, keys[:, 1], at(conditions.kT, state)
        )
        return state._replace(replica=replica), accepted.astype(jnp.int32)

    def every(interval: int, move: Callable, tick: jax.Array, state: Trajectory) -> tuple[Trajectory, jax.Array]:
        """Make the move when its time has come: one predicate for the batch, so that the rest costs nothing."""
        not_tried = jnp.full(state.step.shape, -1, jnp.int32)
        if not interval:
            return state, not_tried
        due = tick % (interval // protocol.check_interval) == 0
        return jax.lax.cond(due, move, lambda state: (state, not_tried), state)

    def round_(carry, _):
        old, tick = carry
        tick = tick + 1
        running = old.status == Status.RUNNING
        # Stopped replicas go along as empty ones, so that they never call for new lists; the outcome is discarded.
        system = old.replica.system
        system = system._replace(species=jnp.where(running[:, None], system.species, -1))
        replica, lists, too_fast, shortage = advance(
            h,
            moved_by,
            old.replica._replace(system=system),
            old.lists,
            at(conditions.kT, old),
            conditions.dt,
            conditions.friction,
            protocol.check_interval,
            protocol.skin,
            stencil,
        )
        new = old._replace(replica=replica, lists=lists, shortage=worst(old.shortage, shortage))
        new, cells = every(protocol.cell_interval, cell_moves, tick, new)
        new, swaps = every(protocol.swap_interval, swap_moves, tick, new)
        new, seen = jax.vmap(partial(_check, basis, protocol, params))(conditions, new, too_fast)
        seen = seen._replace(cell_moves=cells, swap_moves=swaps)
        frozen = choose(running, new, old)
        return (frozen, tick), seen._replace(status=frozen.status)

    (trajectory, _), seen = jax.lax.scan(round_, (trajectory, tick), length=n_checks)
    return trajectory, seen


class Run(NamedTuple):
    """A batch's outcome on the host.

    Attributes
    ----------
    status, step : (B,). candidate : System batch, the last safe structure of each replica. candidate_step : (B,), 0
        where a replica was never safe. stopped : System batch, the structure at which each replica stopped: that of
        ``candidate`` unless a guard stopped it. seen : Observation with leaves (checks, B), the last row of a replica
        repeated after its end. capacity : neighbours an atom that were enough.
    """

    status: np.ndarray
    step: np.ndarray
    candidate: System
    candidate_step: np.ndarray
    stopped: System
    seen: Observation
    capacity: int


def run(
    basis: ACEBasis,
    protocol: Protocol,
    params: HALParameters,
    conditions: Conditions,
    systems: System,
    masses: jax.Array,
    keys: jax.Array,
    idle: np.ndarray,
    capacity: int = 0,
    on_block: Callable[[Observation], Any] = lambda _: None,
    devices: int = 1,
) -> Run:
    """Run a batch of replicas until each has stopped.

    A block of steps in which a neighbour list proved too small is thrown away and made again with more room, so no
    force is ever truncated.

    Parameters
    ----------
    systems : batch, padded to one size. keys : (B,) typed, one a replica: alone it does the same as in a batch, where
        all have room in their lists.
    idle : (B,) bool, replicas that only fill the batch and never run.
    capacity : neighbours an atom to start with; grows.
    on_block : called with the observations of every finished block.
    devices : on which the replicas are shared out, as many on each.
    """
    if len(idle) % devices:
        raise ValueError(f"{len(idle)} replicas cannot be shared out evenly on {devices} devices: add idle ones")
    if np.all(idle):
        raise ValueError("every replica of the batch is idle: there is nothing to run")
    reach = basis.cutoff + protocol.skin
    stencil = _stencil(systems, reach)
    singles = (System(*(np.asarray(leaf)[i] for leaf in systems)) for i in range(len(idle)))
    capacity = max(capacity, room(singles, reach))
    state = _begin(basis, params, systems, masses, conditions.kT[:, 0], keys, protocol.skin, capacity, stencil, devices)
    state = state._replace(status=jnp.where(jnp.asarray(idle), Status.FINISHED, state.status).astype(jnp.int32))
    observations: list[Observation] = []
    tick = 0
    while bool(jnp.any(state.status == Status.RUNNING)):
        new, seen = _block(basis, protocol, params, conditions, state, jnp.asarray(tick), BLOCK, stencil, devices)
        shortage = np.asarray(new.shortage)
        if shortage.any():
            if (shortage < 0).any():
                a, b, c = np.asarray(stencil) + np.asarray(systems.pbc).any(axis=0)
                stencil = int(a), int(b), int(c)
            else:
                capacity = bucket(int(1.2 * shortage.max()))
            state = _with_room(basis, state, protocol.skin, capacity, stencil)
            continue
        running = np.asarray(state.status) == Status.RUNNING
        state, tick = new, tick + BLOCK
        observations.append(_held(jax.tree.map(np.asarray, seen), running, observations[-1] if observations else seen))
        on_block(observations[-1])
    return Run(
        np.asarray(state.status),
        np.asarray(state.step),
        jax.tree.map(np.asarray, state.safe),
        np.asarray(state.safe_step),
        jax.tree.map(np.asarray, state.replica.system),
        jax.tree.map(lambda *parts: np.concatenate(parts), *observations),
        capacity,
    )


def _held(seen: Observation, running: np.ndarray, before: Observation) -> Observation:
    """A block's observations with the last row of a replica repeated after its end; ``running`` (B,) at its start."""
    made = np.vstack([running[None], seen.status[:-1] == Status.RUNNING]).sum(axis=0)
    row = np.minimum(np.arange(len(seen.step))[:, None], np.maximum(made - 1, 0)[None])
    return jax.tree.map(
        lambda now, past: np.where(running[None], np.take_along_axis(now, row, axis=0), past[-1][None]), seen, before
    )


@partial(jax.jit, static_argnames=("basis", "skin", "capacity", "stencil"))
def _with_room(
    basis: ACEBasis, state: Trajectory, skin: float, capacity: int, stencil: tuple[int, int, int]
) -> Trajectory:
    lists = jax.vmap(lambda system: neighbour_state(system, basis.cutoff, skin, capacity, stencil))(
        state.replica.system
    )
    return state._replace(lists=lists, shortage=jnp.zeros_like(state.shortage))


def room(systems: Iterable[System], reach: float) -> int:
    """Slots for the neighbours within ``reach`` (Å) of any atom of single systems, and a quarter more."""
    most = max(int((neighbour_list(system, reach).index >= 0).sum(axis=1).max()) for system in systems)
    return bucket(int(1.25 * most))


def _stencil(systems: System, reach: float) -> tuple[int, int, int]:
    """Images needed by the smallest cell of a batch, were it 5 % smaller."""
    cells, pbc = np.asarray(systems.cell), np.asarray(systems.pbc)
    needed = [required_stencil(0.95 * cell, periodic, reach) for cell, periodic in zip(cells, pbc, strict=True)]
    a, b, c = (int(n) for n in np.max(needed, axis=0))
    return a, b, c
