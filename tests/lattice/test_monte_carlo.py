from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.lattice import monte_carlo as mc
from haljax.lattice.expansion import load_expansion
from haljax.lattice.local_energy import evaluate, pack, unpack
from haljax.lattice.monte_carlo import Conditions, Counters
from haljax.lattice.supercell import Supercell
from haljax.lattice.units import KB

from .crystals import LIXCOO2
from .enumeration import all_states, averages, energies, ising, staggered, values

run = jax.jit(mc.passes, static_argnames="capacity")
start = jax.jit(mc.start)


def conditions(W, d, phi=1.0, temperature=300.0, kappa=0.5, mu=0.0):
    return Conditions(np.full(W, temperature), np.full((W, d), kappa), np.full((W, d), phi), np.full((W, d), mu))


def ternary():
    """Two basis sites, one of two and one of three species, with terms of one to four factors."""
    rng = np.random.default_rng(0)
    a, b, c = ((0, 0, 0, 0, 1),), ((0, 0, 0, 1, 1),), ((0, 0, 0, 1, 2),)
    pairs = [a + ((1, 0, 0, 0, 1),), a + ((0, 1, 0, 1, 2),), b + ((1, 1, 0, 1, 2),), c + ((1, 0, 0, 1, 2),)]
    more = [pairs[0] + ((0, 0, 0, 1, 2),), pairs[2] + ((1, 0, 0, 0, 1), (0, 1, 0, 0, 1))]
    products = [(), a, b, c, *pairs, *more]
    return tuple(zip(rng.normal(size=len(products)) * 0.05, products, strict=True)), (2, 3)


def test_pack_and_unpack():
    bits = np.random.default_rng(0).integers(0, 2, (5, 96)).astype(np.uint8)
    words = pack(jnp.asarray(bits))
    assert words.shape == (5, 3) and words.dtype == jnp.uint32
    np.testing.assert_array_equal(unpack(words), bits)
    np.testing.assert_array_equal(jax.jit(unpack)(jax.jit(pack)(bits)), bits)


@pytest.mark.parametrize("matrix", [np.diag([4, 3, 2]), np.diag([2, 2, 1])])  # the second folds everything
def test_flip_energies_are_differences_of_energies(matrix):
    terms, n_species = ternary()
    cell = Supercell(matrix.tolist(), 2)
    model = mc.model(terms, cell, n_species=n_species, aliasing=True)
    rng = np.random.default_rng(1)
    occupation = np.stack([rng.integers(0, n_species[s], 32) for s in cell.sites()[:, 3]], axis=1)
    state = start(jax.random.key(0), model, occupation)
    np.testing.assert_array_equal(mc.occupations(model, state), occupation)
    total = energies(terms, cell, occupation) * cell.n_cells
    np.testing.assert_allclose(state.energy, total, atol=1e-10)  # coefficients are rounded to 2^-40 or so
    gain = jax.jit(mc.flip_energy)
    for site in rng.permutation(model.n_tries)[:8]:
        place = int(model.places[site])
        number = n_species[cell.sites()[place, 3]]
        new = (occupation[:, place] + rng.integers(1, number, 32)) % number
        changed = occupation.copy()
        changed[:, place] = new
        expected = energies(terms, cell, changed) * cell.n_cells - total
        old = mc.species_at(model, state.bits, site)
        np.testing.assert_array_equal(old, occupation[:, place])
        for f in (gain, mc.flip_energy):
            np.testing.assert_allclose(
                f(model, state.bits, jnp.int32(site), old, jnp.asarray(new, jnp.uint8)), expected, atol=1e-10
            )


def test_flip_energies_in_float32():
    terms, n_species = ternary()
    cell = Supercell(np.diag([4, 3, 2]).tolist(), 2)
    model = mc.model(terms, cell, n_species=n_species)
    occupation = np.zeros((32, cell.n_sites), int)
    bits = start(jax.random.key(0), model, occupation).bits
    exact = evaluate(model.fields, bits, jnp.int32(3))
    with jax.enable_x64(False):
        single = jax.tree.map(jnp.asarray, evaluate(model.fields, bits, jnp.int32(3)))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, exact, atol=1e-7)


@pytest.mark.parametrize("moves", ["flip", "exchange"])
def test_energy_and_counters_do_not_drift(moves):
    expansion = load_expansion(LIXCOO2)
    cell = Supercell(np.diag([4, 4, 4]).tolist(), 1)
    counters = staggered(cell)
    model = mc.model(expansion, cell, counters, moves=moves, aliasing=True)
    occupation = np.random.default_rng(0).integers(0, 2, (40, 64))
    given = conditions(40, 2, phi=0.1)
    state = start(jax.random.key(0), model, occupation)
    state, record = run(model, given, state, 300, 300)
    final = np.asarray(mc.occupations(model, state))[:40]
    assert np.mean(final != occupation) > 0.2
    exact = energies(expansion.terms(), cell, final)
    np.testing.assert_allclose(np.asarray(record.energy[-1]) / 64, exact, atol=1e-9)
    np.testing.assert_array_equal(state.energy, mc.total_energy(model, state.bits))  # sums are exact
    np.testing.assert_array_equal(record.counters[-1].T, np.round(values(counters, final) * 64))
    if moves == "exchange":
        np.testing.assert_array_equal(final.sum(axis=1), occupation.sum(axis=1))


@pytest.mark.parametrize("moves", ["flip", "exchange"])
def test_a_window_alone_repeats_its_trajectory(moves):
    terms, n_species = ternary()
    cell = Supercell(np.diag([3, 3, 2]).tolist(), 2)
    counters = Counters(np.ones((1, 36), int) * (cell.sites()[:, 3] == 1), (2,), 18)
    model = mc.model(terms, cell, counters, n_species=n_species, moves=moves)
    rng = np.random.default_rng(0)
    occupation = np.stack([rng.integers(0, n_species[s], 70) for s in cell.sites()[:, 3]], axis=1)
    given = Conditions(rng.uniform(200, 900, 70), rng.uniform(size=(70, 1)), rng.uniform(size=(70, 1)))
    key = jax.random.key(3)
    state, record = run(model, given, start(key, model, occupation), 20, 20)
    chosen = np.array([41, 69])
    one, alone = run(
        model, Conditions(*(v[chosen] for v in given[:3])), start(key, model, occupation[chosen], chosen), 20, 20
    )
    np.testing.assert_array_equal(alone.energy, record.energy[:, chosen])
    np.testing.assert_array_equal(alone.counters, record.counters[:, :, chosen])
    np.testing.assert_array_equal(mc.occupations(model, one)[:2], mc.occupations(model, state)[chosen])
    # and in blocks
    again = start(key, model, occupation)
    for block in (7, 13):
        again, tail = run(model, given, again, block, 20)
    np.testing.assert_array_equal(tail.energy[:13], record.energy[7:])


def test_eager_equals_jit():
    model = mc.model(ising(0.02), Supercell(np.diag([2, 2, 1]).tolist()))
    state = start(jax.random.key(0), model, np.zeros((32, 4), int))
    with jax.disable_jit():
        eager = mc.passes(model, conditions(32, 0), state, 2, 2)[1]
    np.testing.assert_array_equal(eager.energy, run(model, conditions(32, 0), state, 2, 2)[1].energy)


def test_vmap_over_batches_equals_loop():
    cell = Supercell(np.diag([3, 3, 1]).tolist())
    model = mc.model(ising(0.02), cell, staggered(cell, (0, 1)))
    occupation = np.random.default_rng(0).integers(0, 2, (2, 32, 9))
    keys = jax.random.split(jax.random.key(0), 2)
    one = partial(mc.passes, model, conditions(32, 2), n_passes=4, capacity=4)
    both = jax.vmap(lambda key, o: one(state=start(key, model, o))[1])(keys, occupation)
    for i in range(2):
        single = one(state=start(keys[i], model, occupation[i]))[1]
        np.testing.assert_allclose(both.energy[i], single.energy, atol=1e-12)


def z_scores(record, skip, exact_eta, exact_energy, model):
    """Of the mean over many independent windows, whose spread gives the error."""
    eta = np.asarray(record.counters[skip:]).mean(axis=0) / model.n_counted
    energy = np.asarray(record.energy[skip:]).mean(axis=0) / model.n_cells
    n = np.sqrt(eta.shape[1])
    return np.append(
        (eta.mean(axis=1) - exact_eta) / (eta.std(axis=1) / n), (energy.mean() - exact_energy) / (energy.std() / n)
    )


def test_three_species_by_enumeration():
    terms, n_species = ternary()
    cell = Supercell(np.diag([2, 2, 1]).tolist(), 2)
    on_b = cell.sites()[:, 3] == 1
    counters = Counters(np.stack([~on_b, on_b, on_b]).astype(int), (1, 1, 2), 4)
    model = mc.model(terms, cell, counters, n_species=n_species, aliasing=True)
    states = all_states(8, 3)
    states = states[np.all(states[:, ~on_b] < 2, axis=1)]
    one = np.array(500.0), np.array([0.4, 0.3, 0.5]), np.array([0.1, 0.05, 0.2]), np.array([0.02, -0.03, 0.01])
    given = Conditions(*(np.repeat(v[None], 64, axis=0) for v in one))
    exact = averages(
        values(counters, states), energies(terms, cell, states), 4, 500.0, given.kappa[0], given.phi[0], given.mu[0]
    )
    state = start(jax.random.key(0), model, np.zeros((64, 8), int))
    _, record = run(model, given, state, 3000, 3000)
    assert np.abs(z_scores(record, 100, exact.eta, exact.energy, model)).max() < 4


def test_exchanges_sample_the_canonical_ensemble():
    cell = Supercell(np.diag([3, 4, 1]).tolist())
    counters = staggered(cell, (1,))
    model = mc.model(ising(0.01), cell, counters, moves="exchange", aliasing=True)
    states = all_states(12)
    states = states[states.sum(axis=1) == 5]
    given = conditions(64, 2, phi=0.05, kappa=0.2)
    exact = averages(
        values(counters, states), energies(ising(0.01), cell, states), 12, 300.0, given.kappa[0], given.phi[0]
    )
    state = start(jax.random.key(0), model, np.tile(states[0], (64, 1)))
    _, record = run(model, given, state, 3000, 3000)
    np.testing.assert_array_equal(record.counters[:, 0], 5)
    z = z_scores(record, 100, exact.eta, exact.energy, model)
    assert np.abs(z[1:]).max() < 4


def test_exchanges_only_between_the_same_species():
    terms, n_species = ternary()
    cell = Supercell(np.diag([3, 3, 1]).tolist(), 2)
    model = mc.model(terms, cell, n_species=n_species, moves="exchange")
    rng = np.random.default_rng(0)
    occupation = np.stack([rng.integers(0, n_species[s], 32) for s in cell.sites()[:, 3]], axis=1)
    state, _ = run(model, conditions(32, 0), start(jax.random.key(0), model, occupation), 50, 50)
    final = np.asarray(mc.occupations(model, state))
    assert np.any(final != occupation)
    for block in (slice(0, 9), slice(9, 18)):
        np.testing.assert_array_equal(np.sort(final[:, block]), np.sort(occupation[:, block]))


def test_chemical_potentials_without_bias():
    """Free spins: eta = 1 / (1 + exp(-mu / kT)), at several temperatures at once."""
    cell = Supercell(np.diag([4, 4, 4]).tolist())
    model = mc.model((), cell, Counters(np.ones((1, 64), int), (1,), 64), n_species=(2,))
    mu, T = np.tile([-0.05, 0.0, 0.02, 0.1], 16), np.repeat([200.0, 300.0, 600.0, 1200.0], 16)
    given = Conditions(T, np.zeros((64, 1)), np.zeros((64, 1)), mu[:, None])
    _, record = run(model, given, start(jax.random.key(0), model, np.zeros((64, 64), int)), 1000, 1000)
    mean = np.asarray(record.counters[20:, 0]).mean(axis=0) / 64
    expected = 1 / (1 + np.exp(-mu / (KB * T)))
    # 980 passes of 64 sites; at high acceptance a few passes are needed for an independent one
    error = np.sqrt(expected * (1 - expected) / 64 / 980 * 3)
    assert np.abs((mean - expected) / error).max() < 4


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(expansion=(), n_species=(1,)), "nothing to sample"),
        (dict(moves="swap"), "'flip' or 'exchange'"),
        (dict(expansion=((1.0, ((0, 0, 0, 1, 1),)),)), "basis site 1"),
        (dict(expansion=((1.0, ((0, 0, 0, 0, 2),)),), n_species=(2,)), "names species 2"),
        (dict(n_species=(2, 2)), "2 basis sites"),
        (dict(expansion=((np.nan, ((0, 0, 0, 0, 1),)),)), "not finite"),
        (dict(expansion=ising(1.0, axes=((3, 0, 0),))), "own periodic image"),
        (dict(order_parameters=Counters(np.ones((1, 8)), (1,), 8)), "shape"),
    ],
)
def test_bad_models(change, message):
    given = dict(expansion=ising(1.0), order_parameters=None) | change
    expansion, order_parameters = given.pop("expansion"), given.pop("order_parameters")
    with pytest.raises(ValueError, match=message):
        mc.model(expansion, Supercell(np.diag([3, 3, 1]).tolist()), order_parameters, **given)
