"""Equilibration and error bars of correlated series. NumPy; time is the first axis, any number of series follow."""

from __future__ import annotations

import numpy as np

LAGS = 5.0  # autocorrelation is summed up to the first lag beyond this many autocorrelation times
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # of a series that equilibration may take


def statistical_inefficiency(series: np.ndarray) -> np.ndarray:
    """How many steps (n, ...) are worth one independent sample, (...) >= 1; 1 for constant series.

    ``g = 1 + 2 sum_k C(k)``, the sum of the normalised autocorrelation cut at the first lag M >= 5 tau(M). Source:
    Sokal, in Functional Integration (1997), doi:10.1007/978-1-4899-0319-8_6.
    """
    series = np.asarray(series, float)
    n = len(series)
    if n < 2:
        return np.ones(series.shape[1:])
    deviation = series - series.mean(axis=0)
    spectrum = np.fft.rfft(deviation, 2 * n, axis=0)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[:n]
    # rounding leaves a constant series with a tiny variance
    constant = covariance[0] <= n * (1e-14 * np.max(np.abs(series), axis=0)) ** 2
    correlation = covariance / np.where(constant, 1, covariance[0])
    tau = np.cumsum(correlation, axis=0) - 0.5
    enough = np.arange(n).reshape(-1, *[1] * (series.ndim - 1)) >= LAGS * tau
    enough[-1] = True
    cut = np.argmax(enough, axis=0)
    g = 2 * np.take_along_axis(tau, cut[None], axis=0)[0]
    return np.where(constant, 1.0, np.maximum(g, 1.0))


def equilibration(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of the beginning of series (n, S, ...) to discard: the start that leaves the most independent samples
    of the slowest of the S observables.

    At most half is discarded. Source: Chodera, J. Chem. Theory Comput. 12, 1799 (2016), doi:10.1021/acs.jctc.5b00784.

    Returns
    -------
    start : (...) int. inefficiency : (S, ...) of the rest.
    """
    n = len(series)
    inefficiency = statistical_inefficiency(series)
    start, best = np.zeros(series.shape[2:], int), np.min(n / inefficiency, axis=0)
    for first in sorted({int(f * n) for f in FRACTIONS}):
        g = statistical_inefficiency(series[first:])
        samples = np.min((n - first) / g, axis=0)
        better = samples > best
        best, start = np.where(better, samples, best), np.where(better, first, start)
        inefficiency = np.where(better[None], g, inefficiency)
    return start, inefficiency


def blocks(series: np.ndarray, number: int = 20) -> np.ndarray:
    """Series (n, ...) -> (number, n // number, ...), the first few dropped."""
    size = len(series) // number
    return series[len(series) - size * number :].reshape(number, size, *series.shape[1:])


def inverse_covariance(series: np.ndarray, number: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Inverse (d, d) of the covariance of a correlated series (n, d), and its error: by the delete-one-block jackknife,
    which takes off the bias of order 1/n as well. NaN where the covariance is singular.

    Source: Efron, Ann. Stat. 7, 1 (1979), doi:10.1214/aos/1176344552, on blocks longer than the correlation time.
    """
    d = series.shape[1]
    failed = np.full((d, d), np.nan), np.full((d, d), np.nan)
    if len(series) < 2 * number:
        return failed
    parts = blocks(series - series.mean(axis=0), number)
    first, second = parts.sum(axis=1), np.einsum("bti,btj->bij", parts, parts)

    def covariance(total: np.ndarray, squares: np.ndarray, n: int) -> np.ndarray:
        mean = total / n
        return squares / n - mean[..., :, None] * mean[..., None, :]

    n = parts.shape[0] * parts.shape[1]
    whole = covariance(first.sum(axis=0), second.sum(axis=0), n)
    rest = covariance(first.sum(axis=0) - first, second.sum(axis=0) - second, n - parts.shape[1])
    scale = np.sqrt(np.diagonal(whole))
    if not np.all(scale > 0) or np.linalg.cond(whole / np.outer(scale, scale)) > 1e8:
        return failed
    try:
        inverse, without = np.linalg.inv(whole), np.linalg.inv(rest)
    except np.linalg.LinAlgError:
        return failed
    mean = without.mean(axis=0)
    error = np.sqrt((number - 1) * np.mean((without - mean) ** 2, axis=0))
    return number * inverse - (number - 1) * mean, error
