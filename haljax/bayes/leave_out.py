"""Predictions for rows that the fit has not seen, in closed form: each group of rows left out in turn, without a refit.

With whitened rows ``G = X F / noise`` of a group, ``Sigma = F F^T`` the covariance of a fit that has them,

    residual left out = (I - G G^T)^-1 (y - X mean) / noise,    variance left out = diag((I - G G^T)^-1) - 1

in units of the noise. Source: Rasmussen & Williams, *Gaussian Processes for Machine Learning* (2006), section 5.4.2,
for groups. On the host, in numpy: groups have any number of rows, and JAX would compile for each.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack, solve_triangular

SINGULAR = 1e-9  # of the part of a direction that other groups determine, below which it counts as unknown


def left_out_residual(whitened: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Residuals (r,) of a group's rows under a fit without them, in units of the noise.

    Parameters
    ----------
    whitened : (r, K) rows times a factor of the covariance, over the noise. residual : (r,) over the noise.

    A direction that this group alone determines is as uncertain as can be seen, 1 / `SINGULAR`.
    """
    r, size = whitened.shape
    if r <= size:
        return _solved(_root(whitened @ whitened.T), residual)
    return residual + whitened @ _solved(_root(whitened.T @ whitened), whitened.T @ residual)


def left_out_variance(whitened: np.ndarray) -> np.ndarray:
    """Variances (r,) of the model's values at a group's rows without them, in units of the noise squared."""
    r, size = whitened.shape
    if r <= size:
        inverse, failed = lapack.dpotri(_root(whitened @ whitened.T), lower=1)
        assert not failed
        return np.diag(inverse) - 1
    along = solve_triangular(_root(whitened.T @ whitened), whitened.T, lower=True, check_finite=False)
    return np.sum(along**2, axis=0)


def _root(square: np.ndarray) -> np.ndarray:
    """Lower root of 1 - square, which rounding may have made indefinite."""
    matrix = (1 + SINGULAR) * np.eye(len(square)) - square
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(matrix)
        _, upper = np.linalg.qr((vectors * np.sqrt(np.maximum(values, SINGULAR))).T)
        return (upper * np.sign(np.diag(upper))[:, None]).T


def _solved(root: np.ndarray, right: np.ndarray) -> np.ndarray:
    half = solve_triangular(root, right, lower=True, check_finite=False)
    return solve_triangular(root, half, lower=True, trans="T", check_finite=False)


def groups_of(names: list[str | None], features: np.ndarray) -> np.ndarray:
    """Which structures to leave out together, (S,) integers: those of one name, and near-copies.

    Parameters
    ----------
    names : of a trajectory or batch that the user gave, None where there is none.
    features : (S, K) of each structure in coordinates where distances compare.

    Two structures are near-copies where their distance is below a twentieth of the median distance of the set.
    """
    S = len(names)
    number = np.arange(S)
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if name is not None:
            number[i] = first.setdefault(name, i)
    if S > 2:
        square = np.sum(features**2, axis=1)
        distance = np.sqrt(np.maximum(square[:, None] + square[None, :] - 2 * features @ features.T, 0))
        close = distance < 0.05 * np.median(distance[np.triu_indices(S, 1)])
        for i in range(S):
            for j in np.flatnonzero(close[i, :i]):
                old, new = sorted((number[i], number[j]))
                number[number == new] = old
    return np.unique(number, return_inverse=True)[1]
