"""Predictions for rows that the fit has not seen, in closed form: each group of rows left out in turn, without a refit.

With whitened rows ``G = X F / noise`` of a group, ``Sigma = F F^T`` the covariance of a fit that has them,

    residual left out = (I - G G^T)^-1 (y - X mean) / noise,    variance left out = diag((I - G G^T)^-1) - 1

in units of the noise. Source: Rasmussen & Williams, *Gaussian Processes for Machine Learning* (2006), section 5.4.2,
for groups. On the host, in numpy: groups have any number of rows, and JAX would compile for each.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular

SINGULAR = 1e-9  # of the part of a direction that other groups determine, below which it counts as unknown


def left_out(whitened: np.ndarray, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (r,) and variances (r,) of a group's rows without these rows, in units of the noise.

    Parameters
    ----------
    whitened : (r, K) rows times a factor of the covariance, over the noise. residual : (r,) over the noise.

    A direction that this group alone determines is as uncertain as it can be seen to be (1 / `SINGULAR`), and named by
    nobody else: its residual is then that of a prediction from nothing.
    """
    r, size = whitened.shape
    if r <= size:
        matrix = (1 + SINGULAR) * np.eye(r) - whitened @ whitened.T
        root = _root(matrix)
        inverse = solve_triangular(root, np.eye(r), lower=True)
        return inverse.T @ (inverse @ residual), np.sum(inverse**2, axis=0) - 1
    matrix = (1 + SINGULAR) * np.eye(size) - whitened.T @ whitened
    root = _root(matrix)
    along = solve_triangular(root, whitened.T, lower=True)
    return residual + along.T @ (along @ residual), np.sum(along**2, axis=0)


def _root(matrix: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:  # rounding made it indefinite
        values, vectors = np.linalg.eigh(matrix)
        return np.linalg.qr((vectors * np.sqrt(np.maximum(values, SINGULAR))).T, mode="r").T


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
