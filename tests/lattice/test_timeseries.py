from __future__ import annotations

import numpy as np
import pytest

from haljax.lattice.timeseries import equilibration, inverse_covariance, statistical_inefficiency


def autoregressive(rho, shape, seed=0):
    """x_t = rho x_t-1 + noise, of unit variance; its inefficiency is (1 + rho) / (1 - rho)."""
    noise = np.random.default_rng(seed).normal(size=shape)
    x = noise.copy()
    for t in range(1, len(x)):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * noise[t]
    return x


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_inefficiency(rho):
    x = autoregressive(rho, (4000, 200))
    g = statistical_inefficiency(x)
    assert g.shape == (200,)
    expected = (1 + rho) / (1 - rho)
    # one series knows tau to sqrt(2 (2 M + 1) / n) of itself, M = 5 tau
    np.testing.assert_allclose(g.mean(), expected, rtol=0.06)
    error = np.sqrt(x.var(axis=0) * g / len(x))
    assert abs(np.mean((x.mean(axis=0) / error) ** 2) - 1) < 4 * np.sqrt(2 / 200)


def test_constant_series():
    np.testing.assert_array_equal(statistical_inefficiency(np.full((50, 2), 0.1)), 1.0)
    np.testing.assert_array_equal(statistical_inefficiency(np.zeros((1, 2))), 1.0)


def test_equilibration():
    x = autoregressive(0.5, (2000, 2, 3))
    x[:, 0, 1] += 20 * np.exp(-np.arange(2000) / 40)  # one observable of window 1 relaxes, by e^-5 in 200 passes
    start, g = equilibration(x)
    assert start.shape == (3,) and g.shape == (2, 3)
    assert 160 <= start[1] <= 600
    assert max(start[0], start[2]) <= 400
    np.testing.assert_allclose(g, 3.0, rtol=0.5)


def test_inverse_covariance():
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(3, 3))
    exact = np.linalg.inv(mix @ mix.T)
    z = []
    for seed in range(60):
        inverse, error = inverse_covariance(autoregressive(0.5, (1000, 3), seed) @ mix.T)
        z.append((inverse - exact)[np.triu_indices(3)] / error[np.triu_indices(3)])
    z = np.array(z)
    assert abs(z.mean()) < 0.3  # unbiased
    assert 0.7 < z.std() < 1.4  # honest


def test_singular_covariance_is_nan():
    x = autoregressive(0.0, (400, 2))
    for singular in (np.stack([x[:, 0], 0 * x[:, 0]], axis=1), np.stack([x[:, 0], x[:, 0]], axis=1), x[:30]):
        assert all(np.all(np.isnan(v)) for v in inverse_covariance(singular))
