"""Cell and swap moves with a real model: what they change, what they leave, and the lists and forces they hand on.

Their ensembles are in tests/physics/test_canonical.py.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.md import Hamiltonian, Replica, cell_move, hamiltonian, kinetic_energy, maxwell_boltzmann, swap_move
from haljax.potentials import parameters_of
from haljax.structures import from_atoms, neighbour_list, neighbour_state

MASSES = jnp.array([26.98, 63.55])
SKIN, STENCIL = 0.7, (1, 1, 2)
COLD, HOT = jnp.array(1e-9), jnp.array(1e9)


@pytest.fixture(scope="module")
def start(small_model, alloy):
    h, params = hamiltonian(small_model.basis), parameters_of(small_model)
    system = jax.tree.map(jnp.asarray, from_atoms(alloy(30), small_model.basis.elements, size=20))
    lists = neighbour_state(system, h.cutoff, SKIN, 56, STENCIL)
    momenta = maxwell_boltzmann(jax.random.key(0), MASSES, system.species, jnp.array(0.05))
    tau = jnp.array(3.0)
    force = h.force(params, system, lists.neighbours, tau)
    return h, params, Replica(system, momenta, force, MASSES, tau, jax.random.key(1)), lists


@pytest.fixture(scope="module")
def strain(start):
    h, params, _, _ = start
    return jax.jit(partial(cell_move, h, params, skin=SKIN, stencil=STENCIL), static_argnames="fixed_shape")


@pytest.fixture(scope="module")
def swap(start):
    h, params, _, _ = start
    return jax.jit(partial(swap_move, h, params))


@pytest.fixture(scope="module")
def check_force(start):
    h, params, _, _ = start
    force = jax.jit(h.force)

    def check(replica):
        complete = neighbour_list(jax.tree.map(np.asarray, replica.system), h.cutoff).padded(20, 56)
        np.testing.assert_allclose(replica.force, force(params, replica.system, complete, replica.tau), atol=1e-9)

    return check


def same(a, b):
    return all(
        np.array_equal(*(jax.random.key_data(l) if jnp.issubdtype(l.dtype, jax.dtypes.prng_key) else l for l in pair))
        for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("fixed_shape", [True, False])
def test_an_accepted_cell_move_strains_cell_and_atoms_alike(start, strain, check_force, fixed_shape):
    _, _, replica, lists = start
    # With no weight on the energy a move that expands is always accepted.
    outcomes = (
        strain(
            replica, lists, jax.random.key(k), kT=HOT, pressure=jnp.array(0.01), size=jnp.array(0.03),
            fixed_shape=fixed_shape,
        )
        for k in range(20)
    )  # fmt: skip
    moved, fresh, accepted, shortage = next(outcome for outcome in outcomes if outcome[2])
    assert shortage == 0
    old, new = replica.system, moved.system
    fractions = [np.asarray(s.positions @ jnp.linalg.inv(s.cell)) for s in (old, new)]
    np.testing.assert_allclose(*fractions, atol=1e-12)
    deformation = np.linalg.solve(old.cell, new.cell)
    np.testing.assert_allclose(deformation, deformation.T, atol=1e-12)  # no rotation
    eigenvalues = np.linalg.eigvalsh(deformation)
    assert np.abs(np.log(eigenvalues)).max() > 1e-3
    assert (np.ptp(eigenvalues) < 1e-12) == fixed_shape
    assert same(moved.momenta, replica.momenta) and same(moved.tau, replica.tau)
    assert same(fresh.reference_cell, new.cell) and same(fresh.reference_positions, new.positions)
    check_force(moved)


def test_a_refused_cell_move_changes_nothing(start, strain):
    _, _, replica, lists = start
    strain = partial(strain, fixed_shape=False, size=jnp.array(0.03))

    def outcomes(kT, pressure, system=replica.system):
        before = replica._replace(system=system)
        for k in range(6):
            moved, kept, accepted, shortage = strain(
                before, lists, jax.random.key(k), kT=kT, pressure=jnp.array(pressure)
            )
            assert shortage == 0
            assert accepted or (same(moved, before) and same(kept, lists))
            yield bool(accepted)

    assert set(outcomes(COLD, 0.1)) == {True, False}
    assert set(outcomes(HOT, 0.1)) == {True, False}
    assert not any(outcomes(HOT, jnp.nan))  # a fixed cell
    slab = replica.system._replace(pbc=jnp.array([True, True, False]))
    assert not any(outcomes(HOT, 0.1, slab))  # a molecule or a slab has no volume


def test_a_cell_move_whose_list_is_too_small_is_refused_and_says_so(start):
    def count(params, system, neighbours, tau):
        full = jnp.sum(neighbours.index >= 0) + 0.0 * jnp.sum(system.positions)
        return jnp.where(neighbours.overflow == 0, full, jnp.nan)

    _, _, replica, lists = start
    for capacity, stencil in ((8, STENCIL), (56, (0, 0, 0))):
        few = neighbour_state(replica.system, 4.0, SKIN, capacity, stencil)
        for k in range(4):
            _, kept, accepted, shortage = cell_move(
                Hamiltonian(count, 4.0), None, replica, few, jax.random.key(k), HOT, jnp.array(0.01), jnp.array(0.03),
                True, SKIN, stencil,
            )  # fmt: skip
            assert not accepted and same(kept, few)
            assert shortage > 8 if capacity == 8 else shortage == -1


def test_swaps_exchange_unlike_atoms_with_their_momenta(start, swap, check_force):
    _, _, replica, lists = start
    for seed in range(10):
        moved, accepted = swap(replica, lists.neighbours, jax.random.key(seed), HOT)
        assert accepted
        changed = np.flatnonzero(np.asarray(moved.system.species != replica.system.species))
        assert len(changed) == 2 and changed.max() < 16
        i, j = changed
        old, new = np.asarray(replica.momenta), np.asarray(moved.momenta)
        np.testing.assert_array_equal(new[[i, j]], old[[j, i]])
        np.testing.assert_array_equal(np.delete(new, [i, j], 0), np.delete(old, [i, j], 0))
        np.testing.assert_array_equal(np.sort(moved.system.species), np.sort(replica.system.species))
        np.testing.assert_allclose(kinetic_energy(moved), kinetic_energy(replica), rtol=1e-12)
        assert same(moved.system.positions, replica.system.positions)
        check_force(moved)


def test_cold_swaps_only_go_downhill(start, swap):
    h, params, replica, lists = start
    energy = jax.jit(h.biased)
    before = energy(params, replica.system, lists.neighbours, replica.tau)
    verdicts = set()
    for seed in range(20):
        moved, accepted = swap(replica, lists.neighbours, jax.random.key(seed), COLD)
        verdicts.add(bool(accepted))
        if accepted:
            assert energy(params, moved.system, lists.neighbours, replica.tau) < before
        else:
            assert same(moved, replica)
    assert verdicts == {True, False}


def test_one_element_has_nothing_to_swap(start, swap):
    _, _, replica, lists = start
    species = jnp.where(replica.system.species >= 0, 1, -1)
    pure = replica._replace(system=replica.system._replace(species=species))
    for seed in range(5):
        moved, accepted = swap(pure, lists.neighbours, jax.random.key(seed), HOT)
        assert not accepted and same(moved, pure)
