from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.bayes import absorb, ard, brr, committee, posterior, update, variance

from .problems import close, covariance, regression, statistics


def refit(stats, fit, active=None):
    return posterior(stats, fit.noise_precision, fit.prior_precision, active)


@pytest.mark.parametrize("n, k", [(100, 1), (100, 7), (10, 7), (10, 40), (0, 3)])
def test_update_is_a_refit(n, k):
    rows, targets = regression(n + k, 20, noise=0.3)
    stats = statistics(rows[:n], targets[:n])
    fit = posterior(stats, 11.0, jnp.logspace(-1, 1, 20))
    new, whole = update(fit, rows[n:], targets[n:]), refit(absorb(stats, rows[n:], targets[n:]), fit)
    close(covariance(new), covariance(whole), 1e-10)
    close(new.mean, whole.mean, 1e-10)
    np.testing.assert_allclose(new.log_evidence, whole.log_evidence, rtol=1e-10)


@pytest.mark.parametrize("solver", [brr, ard])
def test_repeated_updates_are_a_refit(solver):
    rows, targets = regression(160, 20, noise=0.3)
    stats = statistics(rows[:60], targets[:60])
    fit, info = solver(stats)
    new = fit
    for i in range(60, 160, 5):
        new = update(new, rows[i : i + 5] * info.active[None, :], targets[i : i + 5])
    before = refit(stats, fit, info.active)
    whole = refit(absorb(stats, rows[60:], targets[60:]), fit, info.active)
    close(covariance(new), covariance(whole), 1e-8)
    close(new.mean, whole.mean, 1e-8)
    np.testing.assert_allclose(new.log_evidence - fit.log_evidence, whole.log_evidence - before.log_evidence, rtol=1e-8)


def test_update_with_padding():
    rows, targets = regression(40, 20)
    fit = posterior(statistics(rows[:30], targets[:30]), 11.0, jnp.ones(20))
    new = update(fit, rows[30:], targets[30:])
    padded = update(fit, jnp.pad(rows[30:], ((0, 5), (0, 0))), jnp.pad(targets[30:], (0, 5)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), padded, new)


def test_update_sharp_data_on_a_wide_prior():
    # standard deviations from 1e3 down to 1e-4, as where forces of a new element meet a loose prior
    rows, targets = regression(30, 10)
    fit = posterior(statistics(rows[:5], targets[:5]), 1e8, jnp.full(10, 1e-6))
    new, whole = update(fit, rows[5:], targets[5:]), refit(statistics(rows, targets), fit)
    close(new.mean, whole.mean, 1e-6)
    # factor entries of 1e3 cancel to 1e-5: about 1e-16 * 1e8 of the remaining standard deviation
    close(covariance(new), covariance(whole), 1e-5)


def test_variance_is_the_quadratic_form_and_differentiable():
    rows, targets = regression(30, 20)
    fit, _ = brr(statistics(rows, targets))
    features = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 20)))
    sigma = covariance(fit)
    expected = np.einsum("abi,ij,abj->ab", features, sigma, features)
    np.testing.assert_allclose(variance(fit, features), expected, rtol=1e-10)
    gradient = jax.grad(lambda d: variance(fit, d))(features[0, 0])
    np.testing.assert_allclose(gradient, 2 * sigma @ features[0, 0], rtol=1e-9, atol=1e-14)


def test_committee_has_the_posteriors_moments():
    rows, targets = regression(12, 6, relevant=3)
    fit, _ = brr(statistics(rows, targets))
    K = 40_000
    draws = np.asarray(committee(jax.random.key(0), fit, K))
    assert draws.shape == (K, 6)
    sigma = covariance(fit)
    std = np.sqrt(np.diag(sigma))
    # five standard errors: std/sqrt(K) of a mean, at most sqrt(2/K) std_i std_j of a covariance
    assert np.all(np.abs(draws.mean(0) - fit.mean) < 5 * std / np.sqrt(K))
    assert np.all(np.abs(np.cov(draws.T) - sigma) < 5 * np.sqrt(2 / K) * np.outer(std, std))


def test_jit_and_vmap():
    rows, targets = regression(60, 10)
    fit = posterior(statistics(rows[:30], targets[:30]), 11.0, jnp.ones(10))
    new_rows, new_targets = rows[30:].reshape(3, 10, 10), targets[30:].reshape(3, 10)
    batched = jax.jit(jax.vmap(update, (None, 0, 0)))(fit, new_rows, new_targets)
    for i in range(3):
        one = update(fit, new_rows[i], new_targets[i])
        close(batched.mean[i], one.mean, 1e-11)
        close(batched.factor[i] @ batched.factor[i].T, covariance(one), 1e-11)
    key = jax.random.key(3)
    np.testing.assert_allclose(
        jax.jit(committee, static_argnums=2)(key, fit, 4), committee(key, fit, 4), rtol=1e-12, atol=1e-14
    )
