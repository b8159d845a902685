from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.bayes import brr, posterior, select

from .problems import covariance, regression, statistics

FIT, _ = brr(statistics(*regression(10, 15, noise=0.3)))


def pool(n_pool, r, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n_pool, r, 15)))


def brute_force(sigma, features, n, noise):
    """Greedy maximisation of log det(I + C/noise^2) of all rows picked so far, written as defined."""
    picked, values = [], [0.0]
    for _ in range(n):
        best = {}
        for i in set(range(len(features))) - set(picked):
            rows = np.concatenate([features[j] / noise[j][:, None] for j in [*picked, i]])
            best[i] = np.linalg.slogdet(np.eye(len(rows)) + rows @ sigma @ rows.T)[1]
        picked.append(max(best, key=best.get))
        values.append(best[picked[-1]])
    return picked, np.diff(values)


@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("noise", [None, 0.7, np.linspace(0.1, 2, 12)[:, None]])
def test_greedy_determinant(r, noise):
    features = pool(12, r)
    indices, gains = select(FIT, features, 6, noise)
    everywhere = np.broadcast_to(1 / np.sqrt(FIT.noise_precision) if noise is None else noise, (12, r))
    expected, expected_gains = brute_force(covariance(FIT), np.asarray(features), 6, everywhere)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(gains, expected_gains, rtol=1e-8)


def test_a_copy_is_not_worth_a_second_label():
    fit = posterior(statistics(*regression(4, 15)), 1e4, jnp.ones(15))  # labels nearly exact
    features = pool(8, 1)
    best = int(select(fit, features, 1)[0][0])
    features = jnp.concatenate([features, features[best][None]])  # the most uncertain item twice
    indices, gains = select(fit, features, 9)
    assert sorted(indices.tolist()) == list(range(9))
    assert indices[0] == best and indices[8] == 8
    # averaging two labels of equal noise halves the variance, all that is left to gain
    np.testing.assert_allclose(gains[8], np.log(2), rtol=1e-2)
    assert jnp.all(gains[1:] <= gains[:-1] * (1 + 1e-9))  # diminishing returns


def test_the_first_pick_is_the_largest_variance():
    fit = posterior(statistics(*regression(10, 15)), 5.0, jnp.ones(15))
    features = pool(30, 1)
    sigma = covariance(fit)
    variances = np.einsum("ai,ij,aj->a", features[:, 0], sigma, features[:, 0])
    indices, gains = select(fit, features, 1)
    assert indices[0] == np.argmax(variances)
    np.testing.assert_allclose(gains[0], np.log1p(5 * variances.max()), rtol=1e-9)


def test_jit():
    features = pool(12, 2)
    indices, gains = select(FIT, features, 5)
    compiled = jax.jit(select, static_argnums=2)(FIT, features, 5)
    np.testing.assert_array_equal(compiled[0], indices)
    np.testing.assert_allclose(compiled[1], gains, rtol=1e-9)


@pytest.mark.parametrize("n_pool, n, message", [(0, 0, "empty pool"), (3, 4, "at most 3")])
def test_impossible_requests(n_pool, n, message):
    with pytest.raises(ValueError, match=message):
        select(FIT, pool(n_pool, 1), n)
