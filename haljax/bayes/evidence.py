"""Hyperparameters from the data: type-II maximum likelihood for Bayesian ridge and relevance determination.

Both solvers climb the evidence by MacKay's fixed point, with the same weak Gamma hyper-priors, starting point
and pruning rule as scikit-learn's BayesianRidge and ARDRegression (fit_intercept=False), whose converged
hyperparameters they reproduce. The one difference at the start: scikit-learn begins at alpha = 1/var(y), here
it is 1/mean(y^2), since the targets are not kept. The evidence may have several stationary points (little
data; ARD in particular, whose pruning is irreversible); from two starts the same one is usually, but not
always, reached.

Sources: MacKay, Neural Comput. 4, 415 (1992), doi:10.1162/neco.1992.4.3.415 (fixed point); Tipping, J. Mach.
Learn. Res. 1, 211 (2001) (relevance determination).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from haljax.bayes.posterior import Posterior, posterior
from haljax.bayes.statistics import Statistics, columns

HYPERPRIOR = 1e-6  # shape and rate of the Gamma hyper-priors on alpha and lambda
SMALLEST = 500  # functions below which `ard` does not drop those that are pruned: compiling that takes longer


class Info(NamedTuple):
    """How a fit went. Only `active` is needed later: to `update` a posterior of `ard`.

    Attributes
    ----------
    iterations : () number of fixed-point steps taken.
    converged : () False where they were cut off.
    n_effective : () gamma, the number of coefficients that the data determine.
    active : (M,) False where `ard` pruned the function; all True after `brr`.
    """

    iterations: jax.Array
    converged: jax.Array
    n_effective: jax.Array
    active: jax.Array


def brr(stats: Statistics, scale: jax.Array | None = None) -> tuple[Posterior, Info]:
    """Bayesian ridge: one noise precision alpha and one prior precision lambda, by maximum evidence.

    The prior precision is ``lambda * scale**2``, with `scale` (M,) the diagonal of a smoothness prior
    (default: ones). One SVD of ``R / scale``; then a step costs O(M) and runs until alpha and lambda change
    by less than 1e-10 of themselves. Directions that the data have not seen keep their prior variance. The
    log evidence includes the hyper-priors' terms, as scikit-learn's ``scores_``.

    Where fewer rows than functions were seen, give `seen_rows` of the statistics: the SVD is then that of as many.
    """
    M = stats.R.shape[1]
    scale = jnp.ones(M) if scale is None else scale
    u, s, vt = jnp.linalg.svd(stats.R / scale[None, :], full_matrices=False)
    z = u.T @ stats.z

    def solve(alpha, lam):
        precision = alpha * s**2 + lam
        c = alpha * s * z / precision
        sse = jnp.sum((lam * z / precision) ** 2) + stats.rss
        gamma = jnp.sum(alpha * s**2 / precision)
        return c, precision, sse, gamma

    def step(state):
        i, alpha, lam, _ = state
        c, _, sse, gamma = solve(alpha, lam)
        new_lam = (gamma + 2 * HYPERPRIOR) / (jnp.sum(c**2) + 2 * HYPERPRIOR)
        new_alpha = (stats.n - gamma + 2 * HYPERPRIOR) / (sse + 2 * HYPERPRIOR)
        change = jnp.maximum(jnp.abs(new_alpha / alpha - 1), jnp.abs(new_lam / lam - 1))
        return i + 1, new_alpha, new_lam, change

    start = jnp.zeros((), int), _first_alpha(stats), jnp.ones(()), jnp.full((), jnp.inf)
    i, alpha, lam, change = jax.lax.while_loop(lambda state: (state[3] > 1e-10) & (state[0] < 10_000), step, start)
    c, precision, sse, gamma = solve(alpha, lam)
    log_evidence = 0.5 * (
        stats.n * jnp.log(alpha / (2 * jnp.pi)) - alpha * sse - lam * jnp.sum(c**2) - jnp.sum(jnp.log(precision / lam))
    )
    factor = vt.T / jnp.sqrt(precision)[None, :]
    if len(s) < M:  # the symmetric root, which has the prior's variance across the rows of vt
        factor = (jnp.eye(M) - (vt.T * (1 - jnp.sqrt(lam / precision))[None, :]) @ vt) / jnp.sqrt(lam)
    result = Posterior(
        mean=vt.T @ c / scale,
        factor=factor / scale[:, None],
        noise_precision=alpha,
        prior_precision=lam * scale**2,
        log_evidence=log_evidence + _log_hyperprior(alpha) + _log_hyperprior(lam),
    )
    return result, Info(i, change <= 1e-10, gamma, jnp.ones(M, bool))


def ard(
    stats: Statistics,
    scale: jax.Array | None = None,
    threshold: float = 1e4,
    tolerance: float = 1e-4,
    max_iterations: int = 300,
) -> tuple[Posterior, Info]:
    """Automatic relevance determination: a prior precision for each function, by maximum evidence.

    A function whose precision lambda_i (with columns divided by `scale`) reaches `threshold` is pruned for
    good: it leaves the likelihood and its mean is 0. Unlike scikit-learn's, its variance is then not 0 but
    the 1/lambda_i of its prior, small yet not blind: a structure that differs from the data along pruned
    functions only is still seen to be unknown. Iterates until the coefficients change by less than
    `tolerance` of themselves (1-norms). A step is one QR of (k + m, k), k the rows of R (`seen_rows`) and m the
    functions: all of them at first, seven in ten of them each time that the rest are pruned.

    The log evidence is that of the model of active functions, with the hyper-priors' terms for those;
    scikit-learn's ``scores_`` lack ``-n/2 log(2 pi)`` and count the pruned functions' lambda.
    """
    M = stats.R.shape[1]
    scale = jnp.ones(M) if scale is None else scale
    stats = stats._replace(R=stats.R / scale[None, :])
    start = _Climb(jnp.zeros((), int), _first_alpha(stats), jnp.ones(M), jnp.zeros(M), jnp.full((), jnp.inf))
    end = _climb(stats, threshold, tolerance, max_iterations, start)
    active = end.lam < threshold
    fit = posterior(stats, end.alpha, end.lam, active)
    result = fit._replace(
        mean=fit.mean / scale,
        factor=fit.factor / scale[:, None],
        prior_precision=end.lam * scale**2,
        log_evidence=fit.log_evidence
        + _log_hyperprior(end.alpha)
        + jnp.sum(jnp.where(active, _log_hyperprior(end.lam), 0)),
    )
    _, gamma = _determined(stats, end.alpha, end.lam, active)
    return result, Info(end.iterations, end.change <= tolerance, jnp.sum(gamma), active)


class _Climb(NamedTuple):
    """Where `ard` is: steps made, alpha (), lam (m,), mean (m,), and by how much the last step changed the mean."""

    iterations: jax.Array
    alpha: jax.Array
    lam: jax.Array
    mean: jax.Array
    change: jax.Array


def _climb(stats: Statistics, threshold: float, tolerance: float, max_iterations: int, state: _Climb) -> _Climb:
    """Fixed-point steps of `ard` until it converges; once three in ten are pruned, on the others alone."""
    m = stats.R.shape[1]
    next_size = 7 * m // 10 if 7 * m // 10 >= SMALLEST else -1

    def unfinished(state: _Climb) -> jax.Array:
        return (state.change > tolerance) & (state.iterations < max_iterations)

    def step(state: _Climb) -> _Climb:
        active = state.lam < threshold
        mean, gamma = _determined(stats, state.alpha, state.lam, active)
        sse = jnp.sum((stats.R @ mean - stats.z) ** 2) + stats.rss
        lam = jnp.where(active, (gamma + 2 * HYPERPRIOR) / (mean**2 + 2 * HYPERPRIOR), state.lam)
        alpha = (stats.n - jnp.sum(gamma) + 2 * HYPERPRIOR) / (sse + 2 * HYPERPRIOR)
        mean = jnp.where(lam < threshold, mean, 0)
        change = jnp.sum(jnp.abs(mean - state.mean)) / (jnp.sum(jnp.abs(mean)) + jnp.finfo(mean.dtype).tiny)
        return _Climb(state.iterations + 1, alpha, lam, mean, change)

    def of_the_others(state: _Climb) -> _Climb:
        kept = jnp.nonzero(state.lam < threshold, size=next_size, fill_value=m)[0]
        fewer = state._replace(
            lam=state.lam.at[kept].get(mode="fill", fill_value=threshold),  # pruned, where there are fewer still
            mean=state.mean.at[kept].get(mode="fill", fill_value=0),
        )
        end = _climb(columns(stats, kept), threshold, tolerance, max_iterations, fewer)
        return end._replace(
            lam=state.lam.at[kept].set(end.lam, mode="drop"), mean=jnp.zeros(m).at[kept].set(end.mean, mode="drop")
        )

    many = lambda state: unfinished(state) & (jnp.sum(state.lam < threshold) > next_size)
    state = jax.lax.while_loop(many, step, state)
    return state if next_size < 0 else jax.lax.cond(unfinished(state), of_the_others, lambda state: state, state)


def _determined(stats: Statistics, alpha: jax.Array, lam: jax.Array, active: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Posterior mean (m,) and gamma (m,): how far the data determine each active function, 0 (not at all) to 1.

    In the space of the rows, of which there may be fewer than functions. With ``B = sqrt(alpha) R / sqrt(lam)`` and
    ``I + B B^T = L L^T``, found by QR, the mean is ``B^T L^-T L^-1 sqrt(alpha) z / sqrt(lam)``, and gamma_i the
    square of the i-th column of ``L^-1 B``: a sum of squares, not the small difference 1 - lam_i Sigma_ii.
    """
    b = jnp.where(active, jnp.sqrt(alpha / lam), 0)[None, :] * stats.R
    r = jnp.linalg.qr(jnp.concatenate([b.T, jnp.eye(len(b))]), mode="r")
    whitened = jnp.concatenate([b, jnp.sqrt(alpha) * stats.z[:, None]], axis=1)
    whitened = solve_triangular(r, whitened, trans="T")
    mean = (whitened[:, :-1].T @ whitened[:, -1]) / jnp.sqrt(lam)
    return mean, jnp.sum(whitened[:, :-1] ** 2, axis=0)


def _first_alpha(stats: Statistics) -> jax.Array:
    mean_square = (jnp.sum(stats.z**2) + stats.rss) / jnp.maximum(stats.n, 1)
    return 1 / (mean_square + jnp.finfo(stats.z.dtype).eps)


def _log_hyperprior(precision: jax.Array) -> jax.Array:
    return HYPERPRIOR * (jnp.log(precision) - precision)
