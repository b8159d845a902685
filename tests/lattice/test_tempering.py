from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from haljax.lattice import monte_carlo as mc
from haljax.lattice.monte_carlo import Conditions
from haljax.lattice.supercell import Supercell
from haljax.lattice.tempering import ladder, temper
from haljax.lattice.units import KB

from .enumeration import all_states, averages, energies, ising, staggered, values

CELL = Supercell(np.diag([4, 4, 1]).tolist())
COUNTERS = staggered(CELL, (0, 1))
TERMS = ising(0.02)
tempered = jax.jit(temper, static_argnames=("n_rounds", "passes_per_round"))
start = jax.jit(mc.start)


def test_ladder():
    assert ladder(4).tolist() == [[[0, 1], [2, 3]], [[1, 2], [0, 0]]]
    assert ladder(5).tolist() == [[[0, 1], [2, 3]], [[1, 2], [3, 4]]]
    assert ladder(1).tolist() == [[[0, 0]], [[0, 0]]]


def test_averages_stay_exact_and_a_double_well_mixes():
    """A ferromagnet far below its transition, from all spins up, in T and kappa; against all 2^16 states."""
    model = mc.model(TERMS, CELL, COUNTERS)
    K = np.array([0.9, 0.75, 0.6, 0.5, 0.42, 0.35, 0.28, 0.2])
    T = np.append(0.02 / (KB * K), [0.02 / (KB * 0.2)] * 2)
    kappa = np.stack([np.append(np.full(8, 0.5), [0.4, 0.2]), np.zeros(10)], axis=1)
    given = Conditions(T, kappa, np.tile([0.01, 0.02], (10, 1)))
    states = all_states(16)
    eta, energy = values(COUNTERS, states), energies(TERMS, CELL, states)
    exact = [averages(eta, energy, 16, T[w], kappa[w], given.phi[w]) for w in range(10)]

    def run(seed, pairs):
        key = jax.random.key(seed)
        state = start(key, model, np.zeros((10, 16), int))
        return tempered(jax.random.fold_in(key, 1), model, given, state, np.arange(10), 3000, 2, pairs)

    results = [run(seed, None) for seed in range(8)]
    mean = np.array([np.asarray(r.record.counters[200:]).mean(axis=0).T / 16 for r in results])  # (8, W, 2)
    e = np.array([np.asarray(r.record.energy[200:]).mean(axis=0) / 16 for r in results])
    for got, expected in ((mean, [x.eta for x in exact]), (e, [x.energy for x in exact])):
        z = (got.mean(axis=0) - expected) / (got.std(axis=0, ddof=1) / np.sqrt(8))
        # Student's t of 7 degrees of freedom, the conditions correlated
        assert np.abs(z).max() < 8 and np.sqrt(np.mean(z**2)) < 2
    rate = np.array(sum(r.accepted for r in results)) / np.maximum(sum(r.tried for r in results), 1)
    assert np.all(rate[np.arange(9), np.arange(1, 10)] > 0.1)
    assert sorted(np.asarray(results[0].condition)) == list(range(10))

    # the coldest stays where it began without exchanges, and forgets it with them
    alone = run(0, np.zeros((1, 1, 2), int))
    assert np.asarray(alone.record.counters[:, 0, 0]).mean() / 16 < 0.1
    assert abs(mean[:, 0, 0].mean() - 0.5) < 0.1
    assert np.asarray(alone.accepted).sum() == 0


def test_two_calls_are_one():
    """Pairs go on taking turns from call to call: rounds one by one are the same rounds."""
    model = mc.model(TERMS, CELL, COUNTERS)
    given = Conditions(np.array([300.0, 500.0, 900.0]), np.full((3, 2), 0.3), np.full((3, 2), 0.05))
    state, condition, tried = start(jax.random.key(0), model, np.zeros((3, 16), int)), np.arange(3), 0
    whole = tempered(jax.random.key(1), model, given, state, condition, n_rounds=4, passes_per_round=3)
    for _ in range(4):
        part = tempered(jax.random.key(1), model, given, state, condition, n_rounds=1, passes_per_round=3)
        state, condition, tried = part.state, part.condition, tried + part.tried
    np.testing.assert_array_equal(tried, whole.tried)
    np.testing.assert_array_equal(condition, whole.condition)
    np.testing.assert_array_equal(state.bits, whole.state.bits)


def test_jit_equals_eager():
    model = mc.model(TERMS, CELL, COUNTERS)
    given = Conditions(np.array([300.0, 500.0, 900.0]), np.full((3, 2), 0.3), np.full((3, 2), 0.05))
    state = start(jax.random.key(0), model, np.zeros((3, 16), int))
    arguments = jax.random.key(1), model, given, state, np.arange(3)
    fast = tempered(*arguments, n_rounds=4, passes_per_round=3)
    slow = partial(temper, *arguments)(n_rounds=4, passes_per_round=3)
    np.testing.assert_array_equal(fast.record.counters, slow.record.counters)
    np.testing.assert_array_equal(fast.condition, slow.condition)
    assert fast.record.energy.shape == (12, 3)


@pytest.mark.parametrize("n", [2, 3])
def test_energies_follow_their_conditions(n):
    """A hot and a cold window: whatever was exchanged, the record of the hot one is hot."""
    model = mc.model(TERMS, CELL, COUNTERS)
    given = Conditions(np.array([5000.0, 350.0, 340.0])[:n], np.full((n, 2), 0.5), np.zeros((n, 2)))
    state = start(jax.random.key(0), model, np.zeros((n, 16), int))
    result = tempered(jax.random.key(1), model, given, state, np.arange(n), 300, 3)
    energy = np.asarray(result.record.energy).mean(axis=0)
    assert energy[0] > energy[1] + 0.2
