"""Small regression problems and the references that several tests compare with."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from haljax.bayes import absorb, empty


def regression(n, M, seed=0, noise=0.1, rank=None, relevant=5):
    """Design (n, M) of given rank and targets of mean zero from `relevant` functions.

    Mean zero, because scikit-learn starts at alpha = 1/var(y) and haljax at 1/mean(y^2): ARD's pruning
    remembers.
    """
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, M))
    if rank is not None:
        rows[:, rank:] = rows[:, :rank] @ rng.normal(size=(rank, M - rank))
    c = np.zeros(M)
    c[:relevant] = rng.choice([-1, 1], relevant) * (1 + rng.random(relevant))
    targets = rows @ c + noise * rng.normal(size=n)
    return jnp.asarray(rows), jnp.asarray(targets - targets.mean())


def statistics(rows, targets):
    return absorb(empty(rows.shape[1]), rows, targets)


def covariance(posterior):
    return np.asarray(posterior.factor @ posterior.factor.T)


def close(actual, desired, rtol):
    """Equal relative to the largest element: small elements of a matrix inherit its rounding."""
    desired = np.asarray(desired)
    np.testing.assert_allclose(actual, desired, rtol=0, atol=rtol * np.abs(desired).max())
