from __future__ import annotations

import sys

import jax
import numpy as np
import pytest

from haljax.lattice.monte_carlo import Conditions
from haljax.lattice.reweighting import averages, mbar, profile
from haljax.lattice.supercell import Supercell
from haljax.lattice.units import KB
from haljax.lattice.windows import sample_windows

from . import enumeration
from .enumeration import all_states, energies, ising, staggered, values

CELL = Supercell(np.diag([4, 4, 1]).tolist())
COUNTERS = staggered(CELL, (0, 1))


def windows(terms, T):
    W = len(T)
    kappa = np.stack([np.linspace(0.1, 0.9, W), np.zeros(W)], axis=1)
    given = Conditions(T, kappa, np.full((W, 2), 0.15))
    return given, sample_windows(jax.random.key(0), terms, CELL, COUNTERS, given, precision=1e-2, min_passes=2000,
                                 max_passes=2000, n_species=(2,), keep_series=True)  # fmt: skip


def test_ising_windows():
    """Free energies between windows, averages under other conditions and the profile, against all 2^16 states."""
    pytest.importorskip("pymbar")
    terms, T = ising(0.008), np.linspace(300.0, 400.0, 7)
    given, result = windows(terms, T)
    states = all_states(16)
    eta, energy = values(COUNTERS, states), energies(terms, CELL, states)
    data = mbar(result, 16)
    assert data.counts.sum() == len(data.eta) and jax.config.jax_enable_x64

    def f(w):
        u = 16 / (KB * T[w]) * (energy + ((eta - given.kappa[w]) ** 2) @ given.phi[w])
        return -np.logaddexp.reduce(-u)

    exact = np.array([f(w) for w in range(7)]) - f(0)
    assert np.abs((data.f - exact)[1:] / data.f_error[1:]).max() < 4

    other = Conditions(
        np.array([320.0, 380.0]), np.array([[0.45, 0.1], [0.6, 0.0]]), np.array([[0.3, 0.1], [0.1, 0.2]])
    )
    mean, error, mu, mu_error = averages(data, other)
    for w in range(2):
        expected = enumeration.averages(eta, energy, 16, other.temperature[w], other.kappa[w], other.phi[w])
        assert np.abs((mean[w] - expected.eta) / error[w]).max() < 4
        np.testing.assert_allclose(mu[w], -2 * other.phi[w] * (mean[w] - other.kappa[w]))
    assert np.all(error < 0.02) and np.all(mu_error == 2 * other.phi * error)

    # a window's own mu, from all windows
    _, _, again, again_error = averages(data, Conditions(*(v[3:4] for v in given[:3])))
    assert np.all(np.abs(again - result.mu[3]) < 4 * np.hypot(again_error, result.mu_error[3]))

    middle, g, g_error = profile(data, 0, (np.arange(18) - 0.5) / 16, 350.0)
    number = np.round(middle * 16).astype(int)
    weight = np.exp(-16 * energy / (KB * 350.0))
    p = np.array([weight[np.round(eta[:, 0] * 16) == k].sum() for k in number])
    expected = -KB * 350.0 / 16 * np.log(p / p.sum())
    assert len(middle) >= 13
    assert np.abs((g - expected) / g_error).max() < 4


def test_bad_input(monkeypatch):
    pytest.importorskip("pymbar")
    _, result = windows((), np.full(2, 300.0))
    with pytest.raises(ValueError, match="keep_series=True"):
        mbar(result._replace(series=None), 16)
    data = mbar(result, 16)
    with pytest.raises(ValueError, match="No sample"):
        profile(data, 0, [2.0, 3.0], 300.0)
    monkeypatch.setitem(sys.modules, "pymbar", None)
    with pytest.raises(ImportError, match="pip install"):
        mbar(result, 16)
