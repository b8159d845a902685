"""The smooth prior: its evidence is that of the normal density, and its maximum is near the hyperparameters of data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.bayes.prior import (
    ANGULAR,
    DECAY,
    DECAY_UNIT,
    Data,
    Family,
    _data,
    _unpacked,
    given,
    learn,
    log_evidence,
    negative_evidence,
)

from .problems import close, regression, statistics


def dense(log_std, log_noise, rows, targets):
    """log N(targets; 0, noise^2 + rows diag(std^2) rows^T), with the matrix itself."""
    n = len(targets)
    covariance = jnp.exp(2 * log_noise) * jnp.eye(n) + (rows * jnp.exp(2 * log_std)[None, :]) @ rows.T
    root = jnp.linalg.cholesky(covariance)
    whitened = jax.scipy.linalg.solve_triangular(root, targets, lower=True)
    return -0.5 * jnp.sum(whitened**2) - jnp.sum(jnp.log(jnp.diag(root))) - 0.5 * n * jnp.log(2 * jnp.pi)


@pytest.mark.parametrize(("n", "M"), [(40, 12), (9, 14)])  # more rows than functions, and fewer
def test_the_evidence_is_the_normal_density(n, M):
    rows, targets = regression(n, M)
    log_std, log_noise = jnp.linspace(-2.0, 1.0, M), jnp.array(-1.0)
    data = Data(*map(np.asarray, (rows.T @ rows, rows.T @ targets)), float(targets @ targets), float(n))
    value, *slopes = log_evidence(np.asarray(log_std), float(log_noise), data)
    exact, exact_slopes = jax.value_and_grad(dense, (0, 1))(log_std, log_noise, rows, targets)
    # Both lose the digits of a condition number of some 1e4.
    np.testing.assert_allclose(value, exact, rtol=1e-10)
    close(slopes[0], exact_slopes[0], 1e-9)
    np.testing.assert_allclose(slopes[1], exact_slopes[1], rtol=1e-9)


@pytest.fixture(scope="module")
def family():
    """60 functions of order 1 with n up to 5, and 120 of order 2, also with l up to 3."""
    rng = np.random.default_rng(2)
    order = np.repeat([1, 2], [60, 120])
    n = np.concatenate([rng.integers(0, 6, 60), rng.integers(0, 6, 120)]).astype(float)
    return Family(order, n, np.where(order == 2, rng.integers(0, 4, 180), 0).astype(float))


@pytest.fixture(scope="module")
def problem(family):
    """2000 rows of coefficients drawn with decays 4.5 and 3, w = 0.5, and of noise 0.2; E0 of two elements besides."""
    rng = np.random.default_rng(3)
    decay = np.where(family.order == 1, 4.5, 3.0)
    std = np.exp(np.where(family.order == 1, 1.0, 0.0) - decay * (family.n + 0.5 * family.l) / DECAY_UNIT)
    rows = rng.normal(size=(2000, 182))
    e0 = np.array([[0.7, 0.0], [0.3, 0.5]])
    coefficients = np.concatenate([std * rng.normal(size=180), e0 @ rng.normal(size=2)])
    return statistics(jnp.asarray(rows), jnp.asarray(rows @ coefficients + 0.2 * rng.normal(size=2000))), std, e0


def test_hyperparameters_of_synthetic_data_are_found(family, problem):
    stats, std, e0 = problem
    found = learn(stats, family, e0)
    assert found.converged
    # 1820 rows beyond those that fix the coefficients: the noise is known to 1 / sqrt(2 x 1820) = 1.7 %; three times.
    assert found.noise == pytest.approx(0.2, rel=0.05)
    # A scale from k coefficients is known to 1 / sqrt(2 k): 9 % of 60, 6 % of 120. That of single functions depends
    # on the decay too, whose hyper-prior is as wide: three times the both of them.
    for own in (family.order == 1, family.order == 2):
        error = np.log(found.std / std)[own]
        assert abs(error.mean()) < 0.4 and np.abs(error).max() < 1.0
    _, scale_1, scale_2, decay_1, decay_2, w = found.hyperparameters
    assert abs(decay_1 - 4.5) < 0.8 and abs(decay_2 - 3.0) < 0.8 and abs(w - 0.5) < 0.25
    assert scale_1 > scale_2
    # Begun at the maximum it stays there: the search ends where a step gains less than 3e-5 nats.
    again = learn(stats, family, e0, found.hyperparameters)
    np.testing.assert_allclose(again.hyperparameters, found.hyperparameters, atol=1e-3)
    assert again.log_evidence == pytest.approx(found.log_evidence, abs=1e-4)


def test_the_objective_is_the_dense_density_with_its_penalty(family, problem):
    """E0 in columns of unit prior covariance included; slopes by central differences."""
    stats, _, e0 = problem
    x = np.array([-1.5, 0.3, -0.2, 4.0, 3.3, 0.7])
    data = _data(stats, e0)
    value, slope = negative_evidence(x, data, family)
    # Second-order differences of a value of some 1e5, to 1e-15 of it.
    h = 1e-4
    differences = [
        (negative_evidence(x + h * step, data, family)[0] - negative_evidence(x - h * step, data, family)[0]) / (2 * h)
        for step in np.eye(6)
    ]
    np.testing.assert_allclose(slope, differences, rtol=1e-5, atol=1e-4)
    log_noise, log_std = _unpacked(x, family)
    scaled = np.concatenate([stats.R[:, :180], stats.R[:, 180:] @ e0], axis=1)
    # R and z stand for the 2000 rows, but for the squares left over and the noise's constant.
    left = 2000 - len(stats.z)
    exact = dense(jnp.append(jnp.asarray(log_std), jnp.zeros(2)), log_noise, jnp.asarray(scaled), stats.z)
    exact -= 0.5 * stats.rss * np.exp(-2 * log_noise) + left * (log_noise + 0.5 * np.log(2 * np.pi))
    penalty = sum(((v - m) / s) ** 2 for v, (m, s) in zip(x[3:], (*DECAY, ANGULAR), strict=True)) / 2
    np.testing.assert_allclose(value, penalty - exact, rtol=1e-10)
    np.testing.assert_allclose(given(x, family).std, np.exp(log_std))
