from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list

from haljax.structures import (
    build,
    from_atoms,
    must_rebuild,
    neighbour_list,
    neighbour_state,
    refresh,
    required_stencil,
    stack,
    vectors,
)

ELEMENTS = ("Al", "Cu")
KINDS = ("roomy", "skewed", "tiny")

jit_build = jax.jit(build, static_argnums=(2, 3))


def random_atoms(rng, kind):
    """1 to 8 atoms, some far outside a random cell, and a cutoff that is up to about four times the cell."""
    while True:
        cell = rng.uniform(3.0, 6.0) * np.eye(3) + rng.normal(scale=0.6, size=(3, 3))
        if kind == "skewed":  # shear by up to two lattice vectors, and turn
            cell = (np.eye(3) + np.tril(rng.uniform(-2, 2, (3, 3)), -1)) @ cell
            cell = cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
        if kind == "tiny":
            cell /= 2.5
        cutoff = rng.uniform(3.0, 5.5)
        # keeps the stencils, hence the compiled programs, small
        if required_stencil(cell, np.ones(3, bool), cutoff).max() <= 4:
            break
    n = rng.integers(1, 4) if kind == "tiny" else rng.integers(1, 9)
    pbc = rng.random(3) < 0.7
    positions = rng.uniform(-2, 3, (n, 3)) @ cell
    return Atoms(rng.choice(ELEMENTS, n), positions, cell=cell, pbc=pbc), cutoff


def triples(neighbours):
    """The list as a set of (i, j, S), after checking that no pair stands there twice."""
    i, k = np.nonzero(np.asarray(neighbours.index) >= 0)
    j, s = np.asarray(neighbours.index)[i, k], np.asarray(neighbours.shift)[i, k]
    out = set(zip(i.tolist(), j.tolist(), *s.T.tolist(), strict=True))
    assert len(out) == len(i)
    return out


def ase_triples(atoms, cutoff):
    i, j, s = neighbor_list("ijS", atoms, cutoff)
    return set(zip(i.tolist(), j.tolist(), *s.T.tolist(), strict=True))


@pytest.fixture(scope="module", params=KINDS)
def cases(request):
    """120 structures, their cutoffs, the truth by ASE, and what a device list needs."""
    rng = np.random.default_rng(KINDS.index(request.param))
    atoms, cutoffs = zip(*(random_atoms(rng, request.param) for _ in range(120)), strict=True)
    truth = [ase_triples(a, c) for a, c in zip(atoms, cutoffs, strict=True)]
    systems = [from_atoms(a, ELEMENTS, size=8) for a in atoms]
    needed = [required_stencil(s.cell, s.pbc, c) for s, c in zip(systems, cutoffs, strict=True)]
    capacity = max(neighbour_list(s, c).index.shape[1] for s, c in zip(systems, cutoffs, strict=True))
    stencil = tuple(int(n) for n in np.max(needed, axis=0))
    return systems, np.array(cutoffs), truth, capacity, stencil


def element(batch, r):
    return jax.tree.map(lambda leaf: leaf[r], batch)


def test_host_list_equals_ase(cases):
    systems, cutoffs, truth, _, _ = cases
    for system, cutoff, expected in zip(systems, cutoffs, truth, strict=True):
        assert triples(neighbour_list(system, cutoff)) == expected


def test_device_list_equals_ase(cases):
    systems, cutoffs, truth, capacity, stencil = cases
    lists = jax.jit(jax.vmap(lambda s, c: build(s, c, capacity, stencil)))(stack(systems), cutoffs)
    assert lists.index.dtype == lists.shift.dtype == lists.overflow.dtype == jnp.int32
    assert not np.any(lists.overflow)
    for r, expected in enumerate(truth):
        assert triples(element(lists, r)) == expected


def test_float32_differs_only_at_the_cutoff(cases):
    systems, cutoffs, truth, capacity, stencil = cases
    narrow = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, stack(systems))
    lists = jax.vmap(lambda s, c: build(s, c, capacity, stencil))(narrow, cutoffs.astype(np.float32))
    for r, (system, cutoff, expected) in enumerate(zip(systems, cutoffs, truth, strict=True)):
        for i, j, *s in triples(element(lists, r)) ^ expected:
            distance = np.linalg.norm(system.positions[j] - system.positions[i] + s @ system.cell)
            assert abs(distance - cutoff) < 1e-4  # some 50 Å away from the origin, times 2^-23, times a few


def test_stencil_is_enough_and_its_shortage_reported(cases):
    systems, cutoffs, truth, capacity, stencil = cases
    own = {}  # by what the single structure needs, to compile each stencil once
    for r, (s, c) in enumerate(zip(systems, cutoffs, strict=True)):
        own.setdefault(tuple(int(n) for n in required_stencil(s.cell, s.pbc, c)), []).append(r)
    for needed, members in list(own.items())[:3]:
        for r in members[:5]:
            neighbours = jit_build(systems[r], cutoffs[r], capacity, needed)
            assert neighbours.overflow == 0 and triples(neighbours) == truth[r]
            for axis in np.flatnonzero(needed):
                short = tuple(n - (k == axis) for k, n in enumerate(needed))
                assert jit_build(systems[r], cutoffs[r], capacity, short).overflow == -1


def test_vmap_equals_loop_and_jit_equals_eager():
    rng = np.random.default_rng(5)
    systems = [from_atoms(random_atoms(rng, "roomy")[0], ELEMENTS, size=8) for _ in range(4)]
    together = jax.vmap(lambda s: build(s, 4.0, 128, (2, 2, 2)))(stack(systems))
    for r, system in enumerate(systems):
        for one in (build, jit_build):
            alone = one(system, 4.0, 128, (2, 2, 2))
            jax.tree.map(np.testing.assert_array_equal, element(together, r), alone)


def test_blocks_of_rows_change_nothing(monkeypatch):
    atoms = bulk("Al", cubic=True) * (3, 2, 2)
    atoms.rattle(0.2, seed=0)
    system = from_atoms(atoms, ELEMENTS)
    whole = jit_build(system, 5.0, 80, (1, 1, 1))
    monkeypatch.setattr("haljax.structures.neighbours._BLOCK", 5 * len(system.species) * 27)  # 48 rows by fives
    blocks = jax.jit(lambda s: build(s, 5.0, 80, (1, 1, 1)))(system)
    jax.tree.map(np.testing.assert_array_equal, blocks, whole)
    assert triples(whole) == ase_triples(atoms, 5.0)


def test_overflow_is_reported():
    atoms = bulk("Al", cubic=True)  # 18 neighbours in two shells within 4.1 Å
    system = from_atoms(atoms, ELEMENTS)
    assert jit_build(system, 4.1, 18, (1, 1, 1)).overflow == 0
    assert jit_build(system, 4.1, 17, (1, 1, 1)).overflow == 18
    with pytest.raises(ValueError, match=r"18 neighbours of atom 0 .* exceed capacity 12; rerun .* >= 20"):
        neighbour_list(system, 4.1, capacity=12)
    assert neighbour_list(system, 4.1, capacity=18).index.shape == (4, 18)


def test_padding_a_list_keeps_its_pairs():
    neighbours = neighbour_list(from_atoms(bulk("Al", cubic=True), ELEMENTS), 4.1)
    padded = neighbours.padded(8, 24)
    assert padded.index.shape == (8, 24) and padded.shift.shape == (8, 24, 3)
    assert triples(padded) == triples(neighbours) and np.all(padded.index[4:] == -1)


@pytest.mark.parametrize("leaf", ["positions", "cell"])
def test_nan_is_not_a_complete_list(leaf):
    system = from_atoms(bulk("Al", cubic=True), ELEMENTS)
    broken = system._replace(**{leaf: getattr(system, leaf) * np.nan})
    assert jit_build(broken, 4.0, 18, (1, 1, 1)).overflow == -1


def test_minimum_image_suffices_for_a_large_cell():
    assert required_stencil(10.0 * np.eye(3), np.array([True, True, False]), 4.99).tolist() == [0, 0, 0]
    assert required_stencil(10.0 * np.eye(3), np.array([True, True, False]), 5.01).tolist() == [1, 1, 0]
    assert isinstance(required_stencil(np.eye(3), np.ones(3, bool), 1.0), np.ndarray)
    assert isinstance(required_stencil(jnp.eye(3), jnp.ones(3, bool), 1.0), jax.Array)


def test_lone_atom_and_molecule():
    lone = from_atoms(Atoms("Cu"), ELEMENTS)
    assert triples(neighbour_list(lone, 5.0)) == triples(build(lone, 5.0, 4, (0, 0, 0))) == set()
    water = molecule("H2O")
    system = from_atoms(water, ("H", "O"))
    assert triples(neighbour_list(system, 5.0)) == triples(build(system, 5.0, 4, (0, 0, 0)))
    assert len(triples(neighbour_list(system, 5.0))) == 6


# skin

CUTOFF, SKIN, CAPACITY, STENCIL = 4.0, 0.8, 128, (2, 2, 2)


def batch_of_three():
    atoms = [bulk("Al", cubic=True), bulk("Cu", cubic=True), bulk("Al", cubic=True) * (1, 1, 2)]
    atoms[1].pbc = (True, True, False)
    atoms[2].rattle(0.1, seed=1)
    return stack([from_atoms(a, ELEMENTS) for a in atoms])


def start(systems):
    return jax.vmap(lambda s: neighbour_state(s, CUTOFF, SKIN, CAPACITY, STENCIL))(systems)


keep = jax.jit(lambda states, systems: refresh(states, systems, CUTOFF, SKIN, STENCIL))


def within_cutoff(system, neighbours):
    """The pairs of the list that are within the bare cutoff now."""
    d, _ = vectors(system, neighbours, far=99.0)
    close = np.linalg.norm(d, axis=-1) < CUTOFF
    return triples(neighbours._replace(index=np.where(close, neighbours.index, -1)))


def test_refresh_never_misses_a_pair_and_spares_rebuilds():
    rng = np.random.default_rng(2)
    systems, rebuilt = batch_of_three(), 0
    states = start(systems)
    real = (systems.species >= 0)[:, :, None]
    for _ in range(120):
        strain = rng.normal(scale=0.004, size=(3, 3, 3))
        positions = systems.positions + systems.positions @ strain
        positions = positions + real * rng.normal(scale=0.05, size=positions.shape)
        systems = systems._replace(positions=positions, cell=systems.cell + systems.cell @ strain)
        before, states = states, keep(states, systems)
        rebuilt += not np.array_equal(before.reference_positions, states.reference_positions)
        assert not np.any(states.neighbours.overflow)
        for r in range(3):
            one = element(systems, r)
            expected = triples(neighbour_list(one, CUTOFF))
            assert within_cutoff(one, element(states.neighbours, r)) == expected
    assert 10 < rebuilt < 90  # it both rebuilds and reuses


def test_refresh_does_nothing_when_nothing_moved():
    systems = batch_of_three()
    states = start(systems)
    # A list that no build would give: it survives only if nothing is rebuilt.
    marked = states._replace(neighbours=states.neighbours._replace(index=states.neighbours.index * 0 - 7))
    assert np.all(keep(marked, systems).neighbours.index == -7)
    small = systems.positions + 0.39 * np.eye(3)[0]  # below half the skin
    assert np.all(keep(marked, systems._replace(positions=small)).neighbours.index == -7)
    moved = systems.positions.copy()
    moved[2, 3, 1] += 0.41  # one atom of one replica: all lists are new
    after = keep(marked, systems._replace(positions=moved))
    np.testing.assert_array_equal(after.reference_positions, moved)
    assert not np.any(after.neighbours.index == -7)


def test_padded_atoms_do_not_trigger_and_nan_does():
    system = from_atoms(bulk("Al", cubic=True), ELEMENTS, size=6)
    state = neighbour_state(system, CUTOFF, SKIN, CAPACITY, STENCIL)
    ask = partial(must_rebuild, state, cutoff=CUTOFF, skin=SKIN, mask=system.species >= 0)
    padded, real = system.positions.copy(), system.positions.copy()
    padded[5], real[3] = np.nan, np.nan
    assert not ask(padded, system.cell)
    assert ask(real, system.cell)
    assert ask(system.positions, 1.3 * system.cell)
    assert not ask(1.01 * system.positions, 1.01 * system.cell)


def test_strain_alone_triggers_in_time():
    system = from_atoms(bulk("Al", cubic=True), ELEMENTS)
    state = neighbour_state(system, CUTOFF, SKIN, CAPACITY, STENCIL)
    for squeeze, due in ((0.165, False), (0.168, True)):  # 4.8 Å along x become 4 Å at 1/6
        deform = np.diag([1 - squeeze, 1, 1])
        positions, cell = system.positions @ deform, system.cell @ deform
        assert must_rebuild(state, positions, cell, CUTOFF, SKIN, system.species >= 0) == due


def test_cell_change_around_atoms_far_outside():
    system = from_atoms(bulk("Al", cubic=True), ELEMENTS)
    system.positions[0] += 10 * system.cell[0]  # each Å of its images' shift is ten of the cell's
    state = neighbour_state(system, CUTOFF, SKIN, CAPACITY, STENCIL)
    assert must_rebuild(state, system.positions, 1.02 * system.cell, CUTOFF, SKIN, system.species >= 0)


def test_refresh_keeps_one_conditional():
    """Under vmap a cond becomes a select that always rebuilds; the batch must keep a real one."""
    systems = batch_of_three()
    jaxpr = jax.make_jaxpr(keep)(start(systems), systems)
    assert str(jaxpr).count(" cond[") == 1


# vectors


def sheared(pbc=(True, True, False)):
    cell = np.array([[3.0, 0.2, 0.1], [1.1, 3.2, 0.3], [0.3, -0.4, 3.5]])
    atoms = Atoms("AlCuAl", [[0, 0, 0], [1.6, 1.5, 0.1], [7.9, 0.2, 1.9]], cell=cell, pbc=pbc)
    return atoms, from_atoms(atoms, ELEMENTS, size=5)


def test_vectors_equal_ase():
    atoms, system = sheared()
    d, species = vectors(system, neighbour_list(system, 4.0), far=50.0)
    full = species >= 0
    i, j, expected = neighbor_list("ijD", atoms, 4.0)
    key = np.lexsort(expected.T.round(6))
    got = np.asarray(d[full])
    np.testing.assert_allclose(got[np.lexsort(got.T.round(6))], expected[key], atol=1e-12)
    assert np.all(d[~full] == np.array([50.0, 0, 0])[None, :])
    assert full[3:].sum() == 0 and full.sum() == len(i)
    kinds = sorted(zip(system.species[np.nonzero(full)[0]], np.asarray(species[full]), strict=True))
    assert kinds == sorted(zip(system.species[i], system.species[j], strict=True))


@pytest.mark.parametrize("leaf", ["positions", "cell", "strain"])
def test_gradients_equal_finite_differences(leaf):
    _, system = sheared()
    neighbours = neighbour_list(system, 4.0)

    def energy(x):
        if leaf == "strain":
            d, species = vectors(system, neighbours, 50.0, strain=x)
        else:
            d, species = vectors(system._replace(**{leaf: x}), neighbours, 50.0)
        r2 = jnp.sum(d**2, axis=-1)
        return jnp.sum(jnp.where(species >= 0, jnp.exp(-r2 / 8) * (1 + 0.3 * d[:, :, 0]), 0))

    x0 = jnp.zeros((3, 3)) if leaf == "strain" else jnp.asarray(getattr(system, leaf))
    gradient = np.asarray(jax.jit(jax.grad(energy))(x0))
    h, value = 1e-5, jax.jit(energy)
    numerical = np.zeros(x0.shape)
    for at in np.ndindex(x0.shape):
        numerical[at] = (value(x0.at[at].add(h)) - value(x0.at[at].add(-h))) / (2 * h)
    # Central differences: rounding 1e-16/h and truncation h^2, each below 1e-9.
    np.testing.assert_allclose(gradient, numerical, atol=1e-8)
    assert np.any(np.abs(gradient) > 1e-3)
    if leaf == "positions":
        assert np.all(gradient[3:] == 0)  # padded atoms


def test_strain_deforms_cell_and_positions_together():
    _, system = sheared(pbc=True)
    neighbours = neighbour_list(system, 4.0)
    strain = np.array([[0.01, 0.02, 0], [0.02, -0.01, 0.005], [0, 0.005, 0.03]])
    deform = np.eye(3) + strain
    moved = system._replace(positions=system.positions @ deform, cell=system.cell @ deform)
    np.testing.assert_allclose(
        vectors(system, neighbours, 50.0, strain=strain)[0], vectors(moved, neighbours, 50.0)[0], atol=1e-12
    )


def test_vectors_under_vmap():
    systems = batch_of_three()
    lists = start(systems).neighbours
    d, species = jax.vmap(lambda s, n: vectors(s, n, 9.0))(systems, lists)
    for r in range(3):
        alone, alone_species = vectors(element(systems, r), element(lists, r), 9.0)
        np.testing.assert_allclose(d[r], alone, atol=1e-14)
        np.testing.assert_array_equal(species[r], alone_species)
