from __future__ import annotations

import logging
from math import comb

import jax
import numpy as np
import pytest

from haljax.lattice import windows as windows_module
from haljax.lattice.expansion import load_expansion
from haljax.lattice.monte_carlo import Conditions, Counters
from haljax.lattice.order import zigzag
from haljax.lattice.supercell import Supercell
from haljax.lattice.units import KB
from haljax.lattice.windows import WindowResult, sample_windows

from .crystals import LIXCOO2
from .enumeration import all_states, averages, check, energies, ising, staggered, values

FOUR = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, -1, 1], [1, -1, 1, -1]])  # L1_2's patterns
SMALL = Supercell(np.diag([4, 4, 1]).tolist())


def sample(seed, *args, **kwargs) -> WindowResult:
    return sample_windows(jax.random.key(seed), *args, **kwargs)


def exact_windows(eta, energy, n_cells, given, weights=1.0):
    return [
        averages(eta, energy, n_cells, given.temperature[w], given.kappa[w], given.phi[w], weights=weights)
        for w in range(len(given.kappa))
    ]


def hessians(exact, given, n_cells):
    return np.array(
        [
            KB * T * np.linalg.inv(n_cells * e.covariance) - 2 * np.diag(phi)
            for e, T, phi in zip(exact, given.temperature, given.phi, strict=True)
        ]
    )


def test_ideal_solution_in_four_sublattices():
    """eta, mu and the Hessian of 64 sites against the product of four binomials, and the analytic ideal solution."""
    cell = Supercell(np.diag([4, 4, 4]).tolist())
    l, m, n, _ = cell.sites().T
    sublattice = 2 * (l % 2) + (m + n) % 2
    weights = FOUR[:, sublattice]
    rng = np.random.default_rng(0)
    W = 48
    x = rng.uniform(0.2, 0.8, (W, 4))
    given = Conditions(np.full(W, 600.0), x @ FOUR.T / 4, np.full((W, 4), 0.3))
    result = sample(1, (), cell, Counters(weights, (1,) * 4, 64), given,
                    precision=5e-3, min_passes=1500, max_passes=4000, n_species=(2,))  # fmt: skip
    assert np.all(result.converged)
    count = np.stack(np.meshgrid(*[np.arange(17)] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    states = np.prod(np.array([comb(16, k) for k in range(17)], float)[count], axis=1)
    eta = count @ FOUR.T / 64
    exact = exact_windows(eta, np.zeros(len(eta)), 64, given, states)
    check((result.eta - [e.eta for e in exact]) / result.eta_error)
    np.testing.assert_array_equal(result.energy, 0)
    np.testing.assert_allclose(result.mu, -2 * given.phi * (result.eta - given.kappa), atol=1e-14)
    np.testing.assert_allclose(result.mu_error, 2 * given.phi * result.eta_error)
    upper = np.triu_indices(4)
    z = (result.hessian - hessians(exact, given, 64))[:, *upper] / result.hessian_error[:, *upper]
    assert 0.7 < z.std() < 1.4 and abs(z.mean()) < 0.3

    # the thermodynamic limit, to O(1/N): g''' Var(eta) / 2, with x = FOUR^T eta
    for w, e in enumerate(exact):
        fraction = FOUR.T @ e.eta
        mu = KB * 600 / 4 * FOUR @ np.log(fraction / (1 - fraction))
        np.testing.assert_allclose(-2 * given.phi[w] * (e.eta - given.kappa[w]), mu, atol=0.15 / 64)
        analytic = KB * 600 / 4 * (FOUR / (fraction * (1 - fraction))) @ FOUR.T
        assert np.all(np.abs(result.hessian[w] - analytic) < 5 * result.hessian_error[w] + 0.1 * analytic.max())


def test_ideal_solution_in_thirty_two_sublattices():
    """The zigzag order's first three order parameters; the exact weights by convolution over the 64 sites."""
    order = zigzag(load_expansion(LIXCOO2).lattice)
    cell = Supercell(np.diag([4, 4, 4]).tolist())
    weights = order.counters(cell)[:3]
    density = np.zeros((65, 129, 129))
    density[0, 64, 64] = 1
    for w in weights.T:
        density = density + np.roll(density, w, axis=(0, 1, 2))
    index = np.argwhere(density > 0)
    eta = (index - [0, 64, 64]) / 64
    rng = np.random.default_rng(0)
    given = Conditions(
        np.full(48, 300.0), np.stack([rng.uniform(0.3, 0.7, 48), *rng.uniform(-0.2, 0.2, (2, 48))], axis=1),
        np.tile([2.0, 0.1, 0.1], (48, 1)),
    )  # fmt: skip
    result = sample(0, (), cell, Counters(weights, (1,) * 3, 64), given,
                    precision=5e-3, min_passes=1500, max_passes=3000, n_species=(2,))  # fmt: skip
    exact = exact_windows(eta, np.zeros(len(eta)), 64, given, density[tuple(index.T)])
    check((result.eta - [e.eta for e in exact]) / result.eta_error)


@pytest.mark.parametrize("name", ["ising", "lixcoo2"])
def test_enumeration(name):
    """All 2^16 states of a small cell, interactions folded, with two biased order parameters."""
    if name == "ising":
        cell, terms, T, phi, aliasing = SMALL, ising(0.02), 500.0, 0.1, False
        counters = staggered(cell, (0, 1))
    else:
        cell, terms = Supercell(np.diag([4, 2, 2]).tolist()), load_expansion(LIXCOO2).terms()
        T, phi, aliasing = 900.0, 0.5, True
        counters = staggered(cell, (0,))
    states = all_states(16)
    eta, energy = values(counters, states), energies(terms, cell, states)
    rng = np.random.default_rng(0)
    W = 64
    kappa = np.stack([rng.uniform(0.3, 0.7, W), rng.uniform(-0.3, 0.3, W)], axis=1)
    given = Conditions(np.full(W, T), kappa, np.full((W, 2), phi))
    result = sample(0, terms, cell, counters, given, precision=0.02, min_passes=3000, max_passes=3000,
                    aliasing=aliasing, initial=states[rng.integers(0, 2**16, W)], keep_series=True)  # fmt: skip
    exact = exact_windows(eta, energy, 16, given)
    check((result.eta - [e.eta for e in exact]) / result.eta_error)
    check((result.energy - [e.energy for e in exact]) / result.energy_error)
    assert np.all((result.acceptance > 0.02) & (result.acceptance < 1))
    for w in (0, 17):  # the last state is that of the series' end
        np.testing.assert_allclose(values(counters, result.occupation[w]), result.series[w].eta[-1])
        np.testing.assert_allclose(energies(terms, cell, result.occupation[w]), result.series[w].energy[-1], atol=1e-10)
        assert len(result.series[w].eta) == result.n_passes[w]


def test_windows_stop_on_their_own_and_repeat_alone(monkeypatch):
    """Precise windows go on in a smaller batch; each result is that of the window run alone."""
    counters = staggered(SMALL, (0, 1))
    W = 70
    phi = np.where(np.arange(W) < 60, 1.0, 0.05)[:, None] * np.ones((1, 2))
    given = Conditions(np.full(W, 300.0), np.tile([0.5, 0.1], (W, 1)), phi)
    how = dict(precision=0.015, min_passes=200, max_passes=4000, keep_series=True)
    seen = []
    result = sample(2, ising(0.01), SMALL, counters, given, on_progress=seen.append, **how)
    assert np.all(result.converged)
    assert result.n_passes[:60].max() < result.n_passes[60:].min()
    assert [p.batch for p in seen][0] == 70 and [p.batch for p in seen][-1] <= 32  # compacted
    assert seen[-1].done == seen[-1].converged == W
    assert [p.tries for p in seen] == sorted(p.tries for p in seen)
    for chosen in ([3, 65],):
        alone = sample(2, ising(0.01), SMALL, counters, Conditions(*(v[chosen] for v in given[:3])), ids=chosen, **how)
        for name, values_ in alone._asdict().items():
            if name != "series":
                np.testing.assert_array_equal(values_, getattr(result, name)[chosen], err_msg=name)
        np.testing.assert_array_equal(alone.series[0].energy, result.series[chosen[0]].energy)
    monkeypatch.setattr(windows_module, "JUDGED", 5000)  # how many are judged at once changes nothing
    batched = sample(2, ising(0.01), SMALL, counters, given, batch=40, **how)
    np.testing.assert_array_equal(batched.eta, result.eta)
    np.testing.assert_array_equal(batched.eta_error, result.eta_error)
    np.testing.assert_array_equal(batched.n_passes, result.n_passes)


def test_windows_that_do_not_converge_are_returned_and_named(caplog):
    given = Conditions(np.full(2, 300.0), np.full((2, 2), 0.1), np.array([[50.0, 50.0], [1e-3, 1e-3]]))
    with caplog.at_level(logging.WARNING, logger=windows_module.__name__):
        result = sample(0, ising(0.005), SMALL, staggered(SMALL, (0, 1)), given,
                        precision=[5e-3, 5e-3], min_passes=100, max_passes=600, ids=[4, 9])  # fmt: skip
    assert list(result.converged) == [True, False]
    assert result.n_passes[1] == 600 and np.all(np.isfinite(result.eta))
    (message,) = [r.getMessage() for r in caplog.records]
    assert "1 of 2 windows have not converged after 600 passes: 9" in message


def test_a_window_that_never_moves_has_no_mu_and_is_not_converged():
    """With kappa well outside the domain all sites stay empty, and -2 phi (eta - kappa) says where kappa is, not mu."""
    counters = Counters(np.ones((1, 64), int), (1,), 64)
    given = Conditions([300.0], [[-0.05]], [[5.0]])
    empty = np.zeros((1, 64), int)
    result = sample(0, (), Supercell(np.diag([4, 4, 4]).tolist()), counters, given, precision=1e-2, min_passes=100,
                    max_passes=200, n_species=(2,), initial=empty)  # fmt: skip
    assert result.eta == 0 and np.isnan(result.mu) and np.isnan(result.mu_error) and not result.converged[0]


def test_exchanges_conserve():
    """A conserved order parameter has no chemical potential; the other keeps its own."""
    given = Conditions(np.full(3, 300.0), np.full((3, 2), 0.3), np.full((3, 2), 0.1))
    initial = np.random.default_rng(0).permuted(np.tile(np.arange(16) < 6, (3, 1)), axis=1).astype(int)
    result = sample(0, ising(0.01), SMALL, staggered(SMALL, (0, 1)), given, precision=0.05, min_passes=500,
                    max_passes=1000, moves="exchange", hessian=False, initial=initial)  # fmt: skip
    np.testing.assert_allclose(result.eta[:, 0], 6 / 16, rtol=1e-12)
    assert np.all(np.isnan(result.mu[:, 0])) and np.all(np.isfinite(result.mu[:, 1]))
    assert np.all(np.isnan(result.hessian))


def test_chemical_potentials_are_taken_into_account():
    """mu shifts what the bias holds: dg/d eta is the same function of eta."""
    cell = Supercell(np.diag([8, 8, 4]).tolist())
    counters = Counters(np.ones((1, 256), int), (1,), 256)
    mu = np.array([[0.0], [0.03], [-0.05]])
    given = Conditions(np.full(3, 300.0), np.full((3, 1), 0.5), np.full((3, 1), 0.2), mu)
    result = sample(0, (), cell, counters, given, precision=2e-3, min_passes=1000, max_passes=4000, n_species=(2,))
    expected = KB * 300 * np.log(result.eta / (1 - result.eta))
    assert np.ptp(result.eta) > 0.1
    np.testing.assert_allclose(result.mu, expected, atol=6 * result.mu_error.max() + 1e-4)


def test_start_near_the_target():
    order = zigzag(load_expansion(LIXCOO2).lattice)
    cell = Supercell(np.diag([8, 8, 8]).tolist())
    kappa = np.array([[0.5, 0.35, 0, 0, 0, 0, 0.1], [0.3, 0, 0, 0, 0, -0.2, 0]])
    given = Conditions(np.full(2, 300.0), kappa, np.ones((2, 7)))
    model = windows_module.monte_carlo.model((), cell, order, n_species=(2,))
    start = windows_module.random_occupations(jax.random.key(0), model, cell, order, given, [0, 1])
    eta = values(Counters(order.counters(cell), (1,) * 7, 512), start)
    assert np.abs(eta - kappa).max() < 4 * 0.5 / np.sqrt(512)


GOOD = dict(temperature=[300.0], kappa=[[0.5, 0.0]], phi=[[1.0, 1.0]])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(temperature=[0.0]), "temperature of window 0 is 0.0 K"),
        (dict(temperature=[np.nan]), "temperature of window 0"),
        (dict(kappa=[[0.5, np.nan]]), "kappa of window 0"),
        (dict(phi=[[1.0, 0.0]]), "Hessian needs phi > 0"),
        (dict(phi=[[1.0, -1.0]], hessian=False), "must not be negative"),
        (dict(kappa=[[0.5]]), r"\(windows, 2\)"),
        (dict(temperature=[300.0, 300.0]), "do not fit"),
        (dict(precision=0.0), "precision"),
        (dict(min_passes=0), "min_passes"),
        (dict(max_passes=5), "min_passes"),
        (dict(ids=[0, 1]), "ids"),
        (dict(order_parameters=None), "there are none"),
        (dict(order_parameters=Counters(np.zeros((0, 16)), (), 16)), "there are none"),
        (dict(initial=np.zeros((1, 15), int)), "initial is"),
        (dict(initial=np.full((1, 16), 2)), "species 2 on site 0 of window 0"),
    ],
)
def test_bad_input(change, message):
    given = dict(GOOD, precision=0.1, min_passes=10, max_passes=20, order_parameters=staggered(SMALL)) | change
    conditions = Conditions(*(np.array(given.pop(name)) for name in GOOD))
    with pytest.raises(ValueError, match=message):
        sample(0, ising(0.1), SMALL, given.pop("order_parameters"), conditions, **given)


def test_bad_order_parameters():
    expansion = load_expansion(LIXCOO2)
    order = zigzag(expansion.lattice)
    how = dict(precision=0.1, min_passes=10, max_passes=20, aliasing=True)
    outside = np.array([[0.5, 0.5, 0.5, 0, 0, 0, 0]])
    given = Conditions(np.full(1, 300.0), outside, np.ones((1, 7)))
    with pytest.raises(ValueError, match="outside the polytope.*filled to"):
        sample(0, expansion, Supercell(np.diag([4, 4, 4]).tolist()), order, given, **how)
    with pytest.raises(ValueError, match="not commensurate"):
        sample(0, expansion, Supercell(np.diag([3, 4, 4]).tolist()), order, given, overreach=1.0, **how)
