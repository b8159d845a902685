"""A smooth prior of few hyperparameters, learned from the data by maximum evidence.

The prior standard deviation of a function of correlation order o with radial indices n_t and angular momenta l_t is
``exp(s_o - p_o (sum_t n_t + w sum_t l_t) / 5)``: a scale and a decay for each order, one weight of l against n.
Together with one noise these few numbers are chosen by the evidence, under weak hyper-priors that keep the decays where
they were found useful (alloys by EMT, silicon, molecules; benchmarks/small_data.py). Few hyperparameters are what a
dozen structures can determine: relevance determination has one for each function, which fits them to the data.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack
from scipy.optimize import minimize

from haljax.bayes.statistics import Statistics

DECAY_UNIT = 5.0
DECAY = (4.5, 0.4), (3.0, 0.7)  # mean and standard deviation of p_1, and of p_o of the higher orders
ANGULAR = (0.0, 1.0)  # of w
# Where the search begins, and how far a hyperparameter is expected from there: those of alloys, silicon and molecules.
START_NOISE, START_SCALE, START_DECAY, START_ANGULAR = -0.5, (3.0, 1.0, -1.0, -1.5), (4.2, 3.4, 3.0, 3.0), 1.2
STEP_SCALE, STEP_DECAY, STEP_ANGULAR = 0.3, 0.5, 0.3
SCALE = (-12.0, 8.0)  # s_o
HOPELESS = 1e12  # where the evidence is not finite
PRECISION = 1e-7  # of the evidence, where the search ends: a small part of one nat
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
    noise, log_std = _unpacked(hyperparameters, family)
    return Learned(hyperparameters, float(np.exp(noise)), np.exp(log_std), 0.0, True)


def learn(stats: Statistics, family: Family, fixed: np.ndarray, start: np.ndarray | None = None) -> Learned:
    """Noise and prior standard deviations at maximum evidence; on the host, not inside jit.

    Parameters
    ----------
    stats : of M + Z columns. fixed : (Z, Z) factor of the prior covariance of the last Z columns (those of E0).
    start : hyperparameters to begin with, those of an earlier fit of like data.
    """
    orders = int(family.order.max())
    if start is None or len(start) != 2 + 2 * orders:
        begin = [_extended(values, orders) for values in (START_SCALE, START_DECAY)]
        start = np.array([START_NOISE, *begin[0], *begin[1], START_ANGULAR])
    # In units in which the search's first step is of a sensible size; the noise is known to 1 over the root of 2 n.
    unit = np.array(
        [3 / np.sqrt(2 * max(float(stats.n), 2.0))] + [STEP_SCALE] * orders + [STEP_DECAY] * orders + [STEP_ANGULAR]
    )
    with np.errstate(over="ignore", invalid="ignore"):
        data = _data(stats, fixed)

    def objective(y: np.ndarray) -> tuple[float, np.ndarray]:
        with np.errstate(over="ignore", invalid="ignore"):  # of extreme labels
            value, slope = negative_evidence(start + unit * y, data, family)
        if not np.isfinite(value) or not np.isfinite(slope).all():
            return HOPELESS, np.zeros_like(y)  # the search steps back
        return value, unit * slope

    bounds = np.array([NOISE, *[SCALE] * orders, *[(0.5, 9.0)] * orders, (-1.0, 5.0)])
    start = np.clip(start, *bounds.T)
    found = minimize(
        objective, np.zeros_like(start), jac=True, method="L-BFGS-B",
        bounds=(bounds - start[:, None]) / unit[:, None], options={"maxiter": 100, "ftol": PRECISION},
    )  # fmt: skip
    # Near the maximum rounding may stop the line search first: a slope below one nat a unit is as good.
    flat = found.status == 0 or float(np.abs(found.jac / unit).max()) < 1.0
    reached = found.fun < HOPELESS
    return given(start + unit * found.x, family)._replace(
        log_evidence=-float(found.fun) if reached else -np.inf, converged=bool(reached and flat)
    )


def _extended(values: tuple[float, ...], orders: int) -> list[float]:
    """The last value serves for all orders beyond."""
    return [values[min(k, len(values) - 1)] for k in range(orders)]


class Data(NamedTuple):
    """Gram matrix (K, K), Psi^T y (K,), y^T y and the number of rows, of columns with diagonal prior covariances."""

    gram: np.ndarray
    b: np.ndarray
    square: float
    n: float


def _data(stats: Statistics, fixed: np.ndarray) -> Data:
    """With columns of unit prior covariance for E0."""
    R, z, m = np.array(stats.R), np.asarray(stats.z), stats.R.shape[1] - len(fixed)
    R[:, m:] = R[:, m:] @ fixed
    return Data(R.T @ R, R.T @ z, float(z @ z + stats.rss), float(stats.n))


def negative_evidence(x: np.ndarray, data: Data, family: Family) -> tuple[float, np.ndarray]:
    """Less the log evidence of hyperparameters, with the hyper-priors' terms, and its slopes."""
    orders = int(family.order.max())
    decay, w = x[1 + orders : 1 + 2 * orders], x[-1]
    noise, log_std = _unpacked(x, family)
    value, slopes, of_noise = log_evidence(np.append(log_std, np.zeros(len(data.b) - len(log_std))), noise, data)
    own, slopes = family.order - 1, slopes[: len(log_std)]
    rough = (family.n + w * family.l) / DECAY_UNIT
    slope = np.concatenate(
        [
            [of_noise],
            np.bincount(own, slopes, orders),
            np.bincount(own, -rough * slopes, orders),
            [-np.sum(decay[own] * family.l * slopes) / DECAY_UNIT],
        ]
    )
    centre = np.array([DECAY[0][0]] + [DECAY[1][0]] * (orders - 1) + [ANGULAR[0]])
    width = np.array([DECAY[0][1]] + [DECAY[1][1]] * (orders - 1) + [ANGULAR[1]])
    off = (x[1 + orders :] - centre) / width
    slope[1 + orders :] -= off / width
    return float(0.5 * off @ off - value), -slope


def _unpacked(x: np.ndarray, family: Family) -> tuple[float, np.ndarray]:
    """Log noise and log prior standard deviations (M,)."""
    orders = int(family.order.max())
    scale, decay, w = x[1 : 1 + orders], x[1 + orders : 1 + 2 * orders], x[-1]
    own = family.order - 1
    return float(x[0]), scale[own] - decay[own] * (family.n + w * family.l) / DECAY_UNIT


def log_evidence(log_std: np.ndarray, log_noise: float, data: Data) -> tuple[float, np.ndarray, float]:
    """log N(y; 0, noise^2 + Psi diag(std^2) Psi^T), and its slopes by log_std (K,) and by log_noise.

    Formed in whitened coordinates, where rounding is small against the unit matrix that is added; the posterior
    itself is found by QR.
    """
    std, alpha = np.exp(log_std), np.exp(-2 * log_noise)
    whitened = alpha * std[:, None] * data.gram * std[None, :]
    h = alpha * std * data.b
    factor, failed = lapack.dpotrf(whitened + np.eye(len(h)), lower=1)
    if failed:
        return -np.inf, np.zeros_like(h), 0.0
    inverse, _ = lapack.dtrtri(factor, lower=1)
    mean = inverse.T @ (inverse @ h)
    diagonal = np.einsum("ij,ij->j", inverse, inverse)
    value = 0.5 * (
        -data.n * (2 * log_noise + np.log(2 * np.pi))
        - 2 * np.sum(np.log(np.diag(factor)))
        - alpha * data.square
        + h @ mean
    )
    # At the mean: squared errors alpha |y - Psi c|^2 and the number of coefficients that the data determine.
    misfit = alpha * data.square - 2 * h @ mean + mean @ (whitened @ mean)
    return float(value), mean**2 + diagonal - 1, float(-data.n + misfit + np.sum(1 - diagonal))
