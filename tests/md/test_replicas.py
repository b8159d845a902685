"""The Langevin step and blocks of steps: exact time step, lists that never miss a pair, replicas on their own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.md import (
    Hamiltonian,
    Replica,
    advance,
    choose,
    kinetic_energy,
    langevin_step,
    shortage_of,
    worst,
)
from haljax.structures import System, neighbour_list, neighbour_state, vectors

RANGE, SKIN, STENCIL, CAPACITY = 2.0, 0.7, (1, 1, 1), 32
MASSES = jnp.array([1.0, 4.0])


def soft(params, system, neighbours, tau):
    """Soft repulsive spheres of height ``params``."""
    d, z_j = vectors(system, neighbours, 2 * RANGE)
    near = jnp.maximum(1 - jnp.sum(d**2, axis=-1) / RANGE**2, 0.0)
    return 0.5 * params * jnp.sum(jnp.where(z_j >= 0, near**3, 0.0))


SOFT = Hamiltonian(soft, RANGE)
push = jax.jit(SOFT.force)
listed = jax.jit(lambda system, capacity: neighbour_state(system, RANGE, SKIN, capacity, STENCIL), static_argnums=1)


def replica(seed, n=12, edge=5.0, padded=2, capacity=CAPACITY):
    """A box of soft spheres with `padded` empty slots, hot enough to leave its list's skin often."""
    rng = np.random.default_rng(seed)
    species = np.concatenate([rng.integers(0, 2, n), np.full(padded, -1)]).astype(np.int32)
    real = (species >= 0)[:, None]
    positions = np.where(real, rng.uniform(0, edge, (n + padded, 3)), 0.0)
    cell = edge * np.eye(3) + np.tril(rng.normal(scale=0.3, size=(3, 3)), -1)
    system = System(*map(jnp.asarray, (positions, species, cell, np.ones(3, bool))))
    lists = listed(system, capacity)
    momenta = jnp.asarray(np.where(real, rng.normal(size=(n + padded, 3)), 0.0))
    force = push(jnp.array(1.0), system, lists.neighbours, jnp.zeros(()))
    return Replica(system, momenta, force, MASSES, jnp.zeros(()), jax.random.key(seed)), lists


def batch(*members):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


@partial(jax.jit, static_argnames=("skin", "n_steps"))
def run(members, dt=0.02, friction=0.0, n_steps=200, skin=SKIN):
    o = jnp.ones(members[0].tau.shape)
    return advance(SOFT, jnp.array(1.0), *members, 0.3 * o, dt * o, friction * o, n_steps, skin, STENCIL)


def one(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def assert_equal(a, b):
    """Bit for bit, keys included."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_time_step_and_state_keep_their_precision():
    """jax-md's velocity_verlet casts dt to float32 and moves by 0.0010000000474974513 instead of 0.001."""
    free = Hamiltonian(lambda params, system, neighbours, tau: 0.0 * jnp.sum(system.positions), 0.1)
    for dtype, tolerance in ((jnp.float64, 1e-14), (jnp.float32, 1e-6)):
        system = System(jnp.zeros((1, 3), dtype), jnp.array([1]), jnp.eye(3, dtype=dtype), jnp.zeros(3, bool))
        momentum = jnp.array([[4.0, -2.0, 0.5]], dtype)
        start = Replica(
            system, momentum, jnp.zeros_like(momentum), MASSES.astype(dtype), jnp.zeros((), dtype), jax.random.key(0)
        )
        scalars = (jnp.array(x, dtype) for x in (0.3, 1e-3, 0.0))  # kT, dt, friction
        moved = langevin_step(free, None, start, None, *scalars)
        for leaf in (moved.system.positions, moved.momenta, moved.force, moved.tau):
            assert leaf.dtype == dtype
        np.testing.assert_allclose(moved.system.positions, 1e-3 * momentum / 4.0, rtol=tolerance)
        np.testing.assert_array_equal(moved.momenta, momentum)
    assert abs(float(jnp.float32(1e-3)) / 1e-3 - 1) > 1e6 * 1e-14  # float32 would have failed


def test_kinetic_energy_counts_real_atoms():
    state, _ = replica(0)
    state = state._replace(momenta=jnp.ones_like(state.momenta))
    species = np.asarray(state.system.species)
    expected = 0.5 * 3 * np.sum(1 / np.asarray(MASSES)[species[species >= 0]])
    np.testing.assert_allclose(kinetic_energy(state), expected, rtol=1e-12)


def test_lists_are_reused_and_never_miss_a_pair():
    """Lists kept for many steps give the trajectory of lists made anew at every step."""
    start = batch(replica(1), replica(2))
    end, lists, too_fast, shortage = run(start)
    assert not np.any(too_fast) and not np.any(shortage)
    assert not np.array_equal(lists.reference_positions, start[1].reference_positions)  # rebuilt
    assert not np.array_equal(lists.reference_positions, end.system.positions)  # and kept

    @jax.jit
    def always_new(state):
        def step(_, state):
            # With the skin, since the list of a step's start must serve its end.
            def one_step(r):
                lists = neighbour_state(r.system, RANGE, SKIN, CAPACITY, STENCIL)
                return langevin_step(SOFT, jnp.array(1.0), r, lists.neighbours, *jnp.array([0.3, 0.02, 0.0]))

            return jax.vmap(one_step)(state)

        return jax.lax.fori_loop(0, 200, step, state)

    expected = always_new(start[0])
    real = np.asarray(start[0].system.species) >= 0
    np.testing.assert_allclose(end.system.positions[real], expected.system.positions[real], atol=1e-8)
    for i in range(2):  # and the force at the end is that of the complete list
        system = jax.tree.map(np.asarray, one(end.system, i))
        complete = neighbour_list(system, RANGE)
        force = push(jnp.array(1.0), jax.tree.map(jnp.asarray, system), complete, jnp.zeros(()))
        np.testing.assert_allclose(end.force[i], force, atol=1e-12)


def test_energy_is_conserved_across_rebuilds():
    start = batch(replica(1), replica(2))

    def total(state, lists):
        return soft(jnp.array(1.0), state.system, lists.neighbours, state.tau) + kinetic_energy(state)

    before = jax.vmap(total)(*start)
    errors = []
    for halvings in (1, 2):
        end, lists, *_ = run(start, dt=0.04 / halvings, n_steps=100 * halvings)
        errors.append(np.abs(jax.vmap(total)(end, lists) - before))
    assert np.all(errors[1] < 2e-3) and np.mean(errors[0]) > 2 * np.mean(errors[1])


def test_a_replica_does_not_depend_on_its_company():
    """Bit for bit at one batch width: whoever else is in the batch, even one whose positions are NaN."""
    a, b, c = replica(3), replica(4), replica(5)
    lost = b[0]._replace(system=b[0].system._replace(positions=b[0].system.positions.at[3, 1].set(jnp.nan))), b[1]
    plain, with_nan, turned = (run(batch(*m), friction=0.5) for m in ((a, b, c), (a, lost, c), (c, a, b)))
    assert_equal(one(plain, 0), one(with_nan, 0))
    assert_equal(one(plain, 2), one(with_nan, 2))
    for i, j in ((0, 1), (1, 2), (2, 0)):
        assert_equal(one(plain, i), one(turned, j))
    np.testing.assert_array_equal(with_nan[2], [False, True, False])
    np.testing.assert_array_equal(with_nan[3], 0)  # no list of NaN positions can be complete: nobody is to blame
    assert not np.isfinite(with_nan[0].system.positions[1]).all()
    # Alone, in a program compiled for one replica, sums are ordered differently.
    alone = run(batch(b), friction=0.5)
    np.testing.assert_allclose(alone[0].system.positions[0], plain[0].system.positions[1], atol=1e-8)


def test_an_atom_that_outruns_its_list_is_reported():
    calm, fast = replica(6), replica(7)
    # 0.7 Å in one step: beyond half the skin.
    fast = fast[0]._replace(momenta=fast[0].momenta.at[0, 0].set(0.7 / 0.02 * float(fast[0].mass[0, 0]))), fast[1]
    *_, too_fast, shortage = run(batch(calm, fast), n_steps=10)
    np.testing.assert_array_equal(too_fast, [False, True])
    np.testing.assert_array_equal(shortage, 0)


@pytest.mark.parametrize("spoil", ["capacity", "stencil"])
def test_a_short_list_is_reported_for_the_replica_that_has_it(spoil):
    roomy = replica(8, n=6, capacity=12)
    if spoil == "capacity":
        other = replica(9, n=30, padded=0, capacity=12)
        roomy = replica(8, n=6, padded=24, capacity=12)
        expected = int(np.bincount(np.nonzero(neighbour_list(other[0].system, RANGE + SKIN).index >= 0)[0]).max())
    else:
        other = replica(9, n=6, edge=1.2, capacity=12)
        expected = -1
    state, lists, too_fast, shortage = run(batch(roomy, other), n_steps=1)
    assert shortage[0] == 0
    assert shortage[1] == expected


def test_shortages():
    state, lists = replica(10)
    system, lists = state.system, lists.neighbours
    assert shortage_of(system, lists._replace(overflow=jnp.int32(61))) == 61
    lost = system._replace(positions=system.positions * jnp.nan)
    assert shortage_of(lost, lists._replace(overflow=jnp.int32(-1))) == 0
    for a, b, expected in ((0, 0, 0), (0, 61, 61), (70, 61, 70), (-1, 61, -1), (61, -1, -1)):
        assert worst(jnp.int32(a), jnp.int32(b)) == expected


def test_choose_takes_whole_replicas():
    new, old = batch(replica(1), replica(2)), batch(replica(3), replica(4))
    chosen = choose(jnp.array([True, False]), new, old)
    assert_equal(one(chosen, 0), one(new, 0))
    assert_equal(one(chosen, 1), one(old, 1))
