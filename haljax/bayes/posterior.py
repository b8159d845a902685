"""The Gaussian posterior of a linear model, at fixed hyperparameters.

``y = Psi c + noise`` with noise precision alpha and prior ``c ~ N(0, diag(1/prior_precision))`` gives
``c ~ N(mean, Sigma)``, ``Sigma = (alpha Psi^T Psi + diag(prior_precision))^-1``. Sigma is never formed by
inverting: what is kept is a factor, ``Sigma = factor @ factor.T``, found from orthogonal transformations of
the data.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from haljax.bayes.statistics import Statistics, absorb, count, empty


class Posterior(NamedTuple):
    """Coefficients of M functions: ``c ~ N(mean, factor @ factor.T)``.

    Attributes
    ----------
    mean : (M,)
    factor : (M, M), any square root of the covariance; triangular or not depends on who made it.
    noise_precision : () alpha, of the weighted targets: about 1 where rows were weighted by 1/(their error).
    prior_precision : (M,)
    log_evidence : () log p(data | noise_precision, prior_precision); from `brr` and `ard`, which choose the
        hyperparameters, with the terms of their hyper-priors.
    """

    mean: jax.Array
    factor: jax.Array
    noise_precision: jax.Array
    prior_precision: jax.Array
    log_evidence: jax.Array


def posterior(
    stats: Statistics, noise_precision: jax.Array, prior_precision: jax.Array, active: jax.Array | None = None
) -> Posterior:
    """The posterior at given noise precision () and prior precision (M,).

    One QR of ``[[sqrt(alpha) R, sqrt(alpha) z], [diag(sqrt(prior_precision)), 0]]``, good for any number of
    rows and any rank. Functions outside the mask `active` (M,) are taken out of the likelihood: their mean is
    zero and their variance remains the prior's.
    """
    M = stats.R.shape[1]
    noise_precision = jnp.asarray(noise_precision, stats.R.dtype)
    R = stats.R if active is None else jnp.where(active[None, :], stats.R, 0)
    data = jnp.sqrt(noise_precision) * jnp.concatenate([R, stats.z[:, None]], axis=1)
    prior = jnp.concatenate([jnp.diag(jnp.sqrt(prior_precision)), jnp.zeros((M, 1))], axis=1)
    r = jnp.linalg.qr(jnp.concatenate([data, prior]), mode="r")
    factor = solve_triangular(r[:M, :M], jnp.eye(M))
    mean = factor @ r[:M, M]
    # alpha ||Psi c - y||^2 + ||sqrt(prior_precision) c||^2 at the mean
    misfit = r[M, M] ** 2 + noise_precision * stats.rss
    log_evidence = 0.5 * (
        stats.n * jnp.log(noise_precision / (2 * jnp.pi))
        + jnp.sum(jnp.log(prior_precision))
        - 2 * jnp.sum(jnp.log(jnp.abs(jnp.diag(r)[:M])))
        - misfit
    )
    mean = mean if active is None else jnp.where(active, mean, 0)
    return Posterior(mean, factor, noise_precision, prior_precision, log_evidence)


def variance(posterior: Posterior, features: jax.Array) -> jax.Array:
    """Posterior variance (...) of the model's value at features (..., M), ``||factor^T d||^2``."""
    return jnp.sum((features @ posterior.factor) ** 2, axis=-1)


def triangular_blocks(factor: jax.Array, n: int = 4) -> tuple[jax.Array, ...]:
    """An upper triangular square root of ``factor @ factor.T`` (P, P), as n blocks of columns without most zeros.

    ``factor`` is (P, K), any K. A block (rows, columns) multiplies the first ``rows`` features, so that
    ``variance = sum over blocks of ||features[:rows] @ block||^2``, exact up to rounding. Products with a factor take
    the time that it takes to read it; n = 4 blocks hold 0.65 of the numbers of a square one.
    """
    P, K = len(factor), min(factor.shape)
    upper = jnp.linalg.qr(factor[::-1].T, mode="r").T[::-1, ::-1]  # (P, K)
    ends = [round(K * (b / n) ** 0.5) for b in range(n + 1)]  # blocks of about the same size
    return tuple(upper[: P - K + end, start:end] for start, end in pairwise(ends) if end > start)


def committee(key: jax.Array, posterior: Posterior, size: int) -> jax.Array:
    """`size` draws (size, M) of the coefficients from the posterior."""
    noise = jax.random.normal(key, (size, posterior.mean.shape[0]), posterior.mean.dtype)
    return posterior.mean[None, :] + noise @ posterior.factor.T


def update(posterior: Posterior, rows: jax.Array, targets: jax.Array) -> Posterior:
    """The posterior after k more rows (k, M) and targets (k,), weighted as those of the fit.

    Equal to a refit on all data at the same hyperparameters, in three products of k M^2. With
    ``G = sqrt(alpha) rows @ factor`` the covariance becomes ``F (I - G^T (I + G G^T)^-1 G) F^T``. From the thin QR
    ``[I; G^T] = [Q1; Q2] R``, in which G is never squared, its square root is ``F (I - Q2 (R^T + I)^-1 G)``
    (Andrews, AIAA J. 6, 1165 (1968), doi:10.2514/3.4709) and the mean gains ``F Q2 Q1^T residual``. The evidence
    gains the new rows' log predictive density. After `ard`, whose pruned functions the data have not informed, give
    ``rows * info.active[None, :]``, or the new rows alone revive them.
    """
    alpha, (k, M) = posterior.noise_precision, rows.shape
    n, rss = count(jnp.concatenate([rows, targets[:, None]], axis=1)), jnp.zeros(())
    if k > M:  # more rows than coefficients: first as many rows as coefficients that say the same
        compressed = absorb(empty(M), rows, targets)
        rows, targets, rss, k = compressed.R, compressed.z, compressed.rss, M
    residual = jnp.sqrt(alpha) * (targets - rows @ posterior.mean)
    g = jnp.sqrt(alpha) * rows @ posterior.factor
    q, r = jnp.linalg.qr(jnp.concatenate([jnp.eye(k), g.T]))
    sign = jnp.where(jnp.diag(r) < 0, -1.0, 1.0)[None, :]  # else R^T + I may be singular
    q, r = sign * q, sign.T * r
    whitened = q[:k].T @ residual
    along = posterior.factor @ q[k:]
    shrunk = solve_triangular(r.T + jnp.eye(k), g, lower=True)
    misfit = jnp.sum(whitened**2) + alpha * rss
    log_density = 0.5 * (n * jnp.log(alpha / (2 * jnp.pi)) - misfit) - jnp.sum(jnp.log(jnp.diag(r)))
    return posterior._replace(
        mean=posterior.mean + along @ whitened,
        factor=posterior.factor - along @ shrunk,
        log_evidence=posterior.log_evidence + log_density,
    )
