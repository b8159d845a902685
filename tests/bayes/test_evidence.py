from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import ARDRegression, BayesianRidge

from haljax.bayes import ard, brr, empty, evidence, posterior, seen_rows

from .problems import close, covariance, regression, statistics

# many rows, fewer rows than functions, exact rank deficiency in both regimes
REGIMES = [(200, 20, None), (30, 50, None), (100, 30, 20), (25, 30, 20)]


@pytest.mark.parametrize("zero", [0, 12])  # functions that are zero in all of the data, an absent element's say
@pytest.mark.parametrize("n, M, rank", REGIMES)
def test_brr_is_scikit_learns(n, M, rank, zero):
    rows, targets = regression(n, M, rank=rank, noise=0.3)
    rows, M = jnp.concatenate([jnp.zeros((n, zero)), rows], axis=1), M + zero
    seen = seen_rows(statistics(rows, targets))
    if rank is None:  # else the noise of the targets is spread over the rows of R that are zero
        assert len(seen.R) == M if n >= M else n <= len(seen.R) < M
    fit, info = brr(seen)
    whole, _ = brr(statistics(rows, targets))
    close(covariance(fit), covariance(whole), 1e-9)
    close(fit.mean, whole.mean, 1e-9)
    peer = BayesianRidge(fit_intercept=False, compute_score=True, tol=1e-15, max_iter=10_000)
    peer.fit(rows, targets)
    assert info.converged and info.active.all()
    # both stop within 1e-10 of the same stationary point; slow convergence costs two digits, margin two more
    np.testing.assert_allclose(fit.noise_precision, peer.alpha_, rtol=1e-6)
    np.testing.assert_allclose(fit.prior_precision, np.full(M, peer.lambda_), rtol=1e-6)
    close(fit.mean, peer.coef_, 1e-6)
    close(covariance(fit), peer.sigma_, 1e-6)
    np.testing.assert_allclose(fit.log_evidence, peer.scores_[-1], rtol=1e-9)
    gamma = M - peer.lambda_ * np.trace(peer.sigma_)
    np.testing.assert_allclose(info.n_effective, gamma, rtol=1e-6)


def test_brr_needs_no_centred_targets():
    rows, targets = regression(100, 20)
    fit, _ = brr(statistics(rows, targets + 5))
    peer = BayesianRidge(fit_intercept=False, tol=1e-15, max_iter=10_000).fit(rows, targets + 5)
    np.testing.assert_allclose(fit.noise_precision, peer.alpha_, rtol=1e-6)
    np.testing.assert_allclose(fit.prior_precision[0], peer.lambda_, rtol=1e-6)


@pytest.mark.parametrize("n, M, rank", REGIMES)
def test_ard_is_scikit_learns(n, M, rank):
    rows, targets = regression(n, M, seed=1, rank=rank, noise=0.3)
    fit, info = ard(statistics(rows, targets), tolerance=1e-12, max_iterations=5000)
    # scikit-learn's explicit inverse jitters about 1e-12: whether or not it stops, it has arrived after 2000
    peer = ARDRegression(fit_intercept=False, compute_score=True, tol=1e-11, max_iter=2000).fit(rows, targets)
    active = peer.lambda_ < 1e4
    assert info.converged and 0 < active.sum() < M
    np.testing.assert_array_equal(info.active, active)
    np.testing.assert_allclose(fit.noise_precision, peer.alpha_, rtol=1e-6)
    np.testing.assert_allclose(fit.prior_precision, peer.lambda_, rtol=1e-6)
    close(fit.mean, peer.coef_, 1e-6)
    np.testing.assert_array_equal(fit.mean[~active], 0)
    sigma = covariance(fit)
    close(sigma[np.ix_(active, active)], peer.sigma_, 1e-6)
    # pruned functions keep their prior, uncorrelated with the rest
    close(sigma[~active], np.diag(1 / fit.prior_precision)[~active], 1e-12)
    gamma = 1 - peer.lambda_[active] * np.diag(peer.sigma_)
    np.testing.assert_allclose(info.n_effective, gamma.sum(), rtol=1e-6)
    # its score lacks the 2 pi, and counts the precision of functions that are not in the model
    pruned = peer.lambda_[~active]
    score = peer.scores_[-1] - np.sum(0.5 * np.log(pruned) + 1e-6 * (np.log(pruned) - pruned))
    np.testing.assert_allclose(fit.log_evidence, score - n / 2 * np.log(2 * np.pi), rtol=1e-6)


@pytest.mark.parametrize("n", [90, 600])
def test_ard_goes_on_without_the_pruned(n, monkeypatch):
    """Once enough of many functions are pruned the steps are made with the others alone, and lead to the same."""
    rows, targets = regression(n, 300, seed=2, noise=0.3)
    stats = seen_rows(statistics(rows, targets))
    whole, told = ard(stats, tolerance=1e-12, max_iterations=5000)
    monkeypatch.setattr(evidence, "SMALLEST", 100)
    fit, info = ard(stats, tolerance=1e-12, max_iterations=5000)
    assert info.converged and 0 < info.active.sum() < 147  # 0.7^2 of them: at least two sizes
    np.testing.assert_array_equal(info.active, told.active)
    close(fit.mean, whole.mean, 1e-8)  # both within 1e-12 of it by the last step, slow convergence costs digits
    np.testing.assert_allclose(fit.prior_precision, whole.prior_precision, rtol=1e-6)
    # A stationary point of the evidence, by the dense inverse.
    alpha, active, lam = float(fit.noise_precision), np.asarray(info.active), np.asarray(fit.prior_precision)
    sigma = np.linalg.inv(alpha * rows[:, active].T @ rows[:, active] + np.diag(lam[active]))
    mean = alpha * sigma @ rows[:, active].T @ targets
    close(fit.mean[active], mean, 1e-8)
    gamma = 1 - lam[active] * np.diag(sigma)
    np.testing.assert_allclose(lam[active], (gamma + 2e-6) / (mean**2 + 2e-6), rtol=1e-6)


@pytest.mark.parametrize("n", [8, 60])
def test_posterior_is_the_dense_inverse(n):
    rows, targets = regression(n, 15)
    prior = jnp.logspace(-2, 2, 15)
    fit = posterior(statistics(rows, targets), 7.0, prior)
    sigma = np.linalg.inv(7 * rows.T @ rows + np.diag(prior))
    close(covariance(fit), sigma, 1e-10)
    close(fit.mean, 7 * sigma @ rows.T @ targets, 1e-10)
    marginal = np.eye(n) / 7 + (rows / prior[None, :]) @ rows.T  # covariance of the targets
    log_density = -0.5 * (
        targets @ np.linalg.solve(marginal, targets) + np.linalg.slogdet(marginal)[1] + n * np.log(2 * np.pi)
    )
    np.testing.assert_allclose(fit.log_evidence, log_density, rtol=1e-10)


def test_directions_without_data_keep_the_prior_variance():
    rows, targets = regression(8, 15)
    fit, _ = brr(statistics(rows, targets))
    null = np.linalg.svd(rows)[2][8:]
    lam, alpha = fit.prior_precision[0], fit.noise_precision
    # rounding of R leaks alpha eps^2 into the null space: nothing
    np.testing.assert_allclose(null @ covariance(fit) @ null.T, np.eye(7) / lam, rtol=0, atol=1e-12 / lam)
    close(covariance(fit), np.linalg.inv(alpha * rows.T @ rows + lam * np.eye(15)), 1e-9)


@pytest.mark.parametrize("solver", [brr, lambda *a: ard(*a, tolerance=1e-12, max_iterations=5000)])
def test_scale_is_a_change_of_columns(solver):
    rows, targets = regression(100, 20, noise=0.3)
    scale = jnp.linspace(0.5, 3, 20)
    fit, info = solver(statistics(rows, targets), scale)
    plain, _ = solver(statistics(rows / scale[None, :], targets))
    close(fit.mean, plain.mean / scale, 1e-9)
    close(covariance(fit), covariance(plain) / np.outer(scale, scale), 1e-9)
    np.testing.assert_allclose(fit.log_evidence, plain.log_evidence, rtol=1e-10)
    same = posterior(statistics(rows, targets), fit.noise_precision, fit.prior_precision, info.active)
    close(fit.mean, same.mean, 1e-9)
    close(covariance(fit), covariance(same), 1e-9)
    # the solvers add the hyper-priors' terms, some 1e-6 times precisions and their logarithms
    np.testing.assert_allclose(fit.log_evidence, same.log_evidence, atol=0.1)


@pytest.mark.parametrize("solver", [brr, ard])
def test_no_data_leave_the_prior(solver):
    fit, info = solver(empty(4))
    np.testing.assert_array_equal(fit.mean, 0)
    np.testing.assert_allclose(covariance(fit), np.diag(1 / fit.prior_precision), atol=1e-14)
    assert info.converged and info.n_effective == 0


@pytest.mark.parametrize("solver", [brr, ard])
def test_jit_and_vmap(solver):
    batch = [statistics(*regression(60, 8, seed=seed)) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch)
    fits, infos = jax.jit(jax.vmap(solver))(stacked)
    for i, stats in enumerate(batch):
        fit, info = solver(stats)
        close(fits.mean[i], fit.mean, 1e-9)
        np.testing.assert_allclose(fits.prior_precision[i], fit.prior_precision, rtol=1e-9)
        close(fits.factor[i] @ fits.factor[i].T, covariance(fit), 1e-9)
        np.testing.assert_array_equal(infos.active[i], info.active)
        assert infos.iterations[i] == info.iterations


def test_cut_off_is_told():
    assert not ard(statistics(*regression(60, 8)), tolerance=1e-12, max_iterations=2)[1].converged
