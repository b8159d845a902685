"""A smooth prior of few hyperparameters, learned from the data by maximum evidence.

The prior standard deviation of a function of correlation order o with radial indices n_t and angular momenta l_t is
``exp(s_o - p_o (sum_t n_t + w sum_t l_t) / 5)``: a scale and a decay for each order, one weight of l against n.
Together with one noise these few numbers are chosen by the evidence, under weak hyper-priors that keep the decays where
they were found useful (alloys by EMT, silicon, molecules; benchmarks/small_data.py). Few hyperparameters are what a
dozen structures can determine: relevance determination has one for each function, which fits them to the data.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from haljax.bayes.statistics import Statistics

DECAY_UNIT = 5.0
DECAY = (4.5, 0.4), (3.0, 0.7)  # mean and standard deviation of p_1, and of p_o of the higher orders
ANGULAR = (0.0, 1.0)  # of w
START_ANGULAR = 1.0
SCALE = (-12.0, 8.0)  # s_o
NOISE = (-6.0, 6.0)  # log of the noise, in units of the weighted rows


class Family(NamedTuple):
    """Which function is how rough: arrays (M,), order from 1, sums of n and of l.

    Columns beyond these M have the fixed prior standard deviations that `learn` is given.
    """

    order: np.ndarray
    n: np.ndarray
    l: np.ndarray


class Learned(NamedTuple):
    """Hyperparameters at the maximum.

    Attributes
    ----------
    hyperparameters : (1 + 2 O + 1,) log noise, s_o, p_o, w.
    noise : standard deviation of the weighted rows. std : (M,) prior standard deviations.
    log_evidence : with the hyper-priors' terms. converged.
    """

    hyperparameters: np.ndarray
    noise: float
    std: np.ndarray
    log_evidence: float
    converged: bool


def given(hyperparameters: np.ndarray, family: Family) -> Learned:
    """Noise and prior standard deviations of hyperparameters that are known; without evidence."""
    orders = int(family.order.max())
    noise, std = _unpacked(jnp.asarray(hyperparameters), jax.tree.map(jnp.asarray, family), orders)
    return Learned(hyperparameters, float(jnp.exp(noise)), np.asarray(std), 0.0, True)


def learn(stats: Statistics, family: Family, fixed: np.ndarray, start: np.ndarray | None = None) -> Learned:
    """Noise and prior standard deviations at maximum evidence; on the host, not inside jit.

    Parameters
    ----------
    stats : of M + Z columns. fixed : (Z, Z) factor of the prior covariance of the last Z columns (those of E0).
    start : hyperparameters to begin with, those of an earlier fit of like data.
    """
    from scipy.optimize import minimize

    orders = int(family.order.max())
    if start is None or len(start) != 2 + 2 * orders:
        decays = [DECAY[0][0]] + [DECAY[1][0]] * (orders - 1)
        start = np.array([0.0] + [0.0] * orders + decays + [START_ANGULAR])
    arrays = jax.tree.map(jnp.asarray, family)
    gram, b = _gram(stats, jnp.asarray(fixed), len(family.order))

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _objective(jnp.asarray(x), gram, b, stats, arrays, orders)
        value, slope = float(value), np.asarray(slope, float)
        if not np.isfinite(value) or not np.isfinite(slope).all():
            return 1e12, np.zeros_like(x)  # the search steps back
        return value, slope

    bounds = [NOISE, *[SCALE] * orders, *[(0.5, 9.0)] * orders, (-1.0, 5.0)]
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 100})
    noise, std = _unpacked(jnp.asarray(found.x), arrays, orders)
    # Near the maximum rounding may stop the line search first: a slope below one nat a unit is as good.
    flat = found.status == 0 or float(np.abs(found.jac).max()) < 1.0
    converged = bool(found.fun < 1e12) and flat
    return Learned(
        found.x, float(jnp.exp(noise)), np.asarray(std), -float(found.fun) if found.fun < 1e12 else -np.inf, converged
    )


@jax.jit
def _gram(stats: Statistics, fixed: jax.Array, m: int) -> tuple[jax.Array, jax.Array]:
    """R^T R and R^T z in columns of unit prior covariance for E0, so that all prior variances are diagonal."""
    size = len(fixed)
    R = jnp.concatenate([stats.R[:, : stats.R.shape[1] - size], stats.R[:, stats.R.shape[1] - size :] @ fixed], axis=1)
    return R.T @ R, R.T @ stats.z


def _unpacked(x: jax.Array, family: Family, orders: int) -> tuple[jax.Array, jax.Array]:
    """Log noise () and prior standard deviations (M,)."""
    scale, decay, w = x[1 : 1 + orders], x[1 + orders : 1 + 2 * orders], x[-1]
    own = family.order - 1
    return x[0], jnp.exp(scale[own] - decay[own] * (family.n + w * family.l) / DECAY_UNIT)


def _penalty(x: jax.Array, orders: int) -> jax.Array:
    decay, w = x[1 + orders : 1 + 2 * orders], x[-1]
    first = ((decay[0] - DECAY[0][0]) / DECAY[0][1]) ** 2
    others = jnp.sum(((decay[1:] - DECAY[1][0]) / DECAY[1][1]) ** 2)
    return 0.5 * (first + others + ((w - ANGULAR[0]) / ANGULAR[1]) ** 2)


def _negative(x: jax.Array, gram: jax.Array, b: jax.Array, stats: Statistics, family: Family, orders: int) -> jax.Array:
    noise, std = _unpacked(x, family, orders)
    std = jnp.concatenate([std, jnp.ones(len(b) - len(std))])
    evidence = _log_evidence(jnp.log(std), noise, gram, b, jnp.sum(stats.z**2) + stats.rss, stats.n.astype(b.dtype))
    return _penalty(x, orders) - evidence


@jax.custom_vjp
def _log_evidence(
    log_std: jax.Array, log_noise: jax.Array, gram: jax.Array, b: jax.Array, square: jax.Array, n: jax.Array
) -> jax.Array:
    """log N(y; 0, noise^2 + Psi diag(std^2) Psi^T) from Gram matrix, Psi^T y and y^T y.

    Formed in whitened coordinates, where rounding is small against the unit matrix that is added; the posterior
    itself is found by QR.
    """
    return _evidence_and_slopes(log_std, log_noise, gram, b, square, n)[0]


def _evidence_and_slopes(log_std, log_noise, gram, b, square, n):
    std, alpha = jnp.exp(log_std), jnp.exp(-2 * log_noise)
    whitened = alpha * std[:, None] * gram * std[None, :]
    h = alpha * std * b
    factor = jnp.linalg.cholesky(jnp.eye(len(b)) + whitened)
    inverse = solve_triangular(factor, jnp.eye(len(b)), lower=True)
    mean = inverse.T @ (inverse @ h)
    diagonal = jnp.sum(inverse**2, axis=0)
    value = 0.5 * (
        -n * (2 * log_noise + jnp.log(2 * jnp.pi)) - 2 * jnp.sum(jnp.log(jnp.diag(factor))) - alpha * square + h @ mean
    )
    # At the mean: squared errors alpha |y - Psi c|^2 and the number of coefficients that the data determine.
    gamma = jnp.sum(1 - diagonal)
    misfit = alpha * square - 2 * h @ mean + mean @ (whitened @ mean)
    return value, mean**2 + diagonal - 1, -n + misfit + gamma


def _forward(log_std, log_noise, gram, b, square, n):
    value, slope, noise_slope = _evidence_and_slopes(log_std, log_noise, gram, b, square, n)
    return value, (slope, noise_slope, gram, b, square, n)


def _backward(saved, cotangent):
    slope, noise_slope, *data = saved
    return cotangent * slope, cotangent * noise_slope, *map(jnp.zeros_like, data)


_log_evidence.defvjp(_forward, _backward)
_objective = jax.jit(jax.value_and_grad(_negative), static_argnums=5)
