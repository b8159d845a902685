"""Novelty: of many proposed targets, those that are far from what is known and where the surface bends."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FAR = 1e6  # no order parameter is as large


def novel(
    key: jax.Array,
    points: Any,
    known: Any,
    n: int,
    *,
    curvature: Any = None,
    group: Any = None,
    neighbours: int = 5,
    minimum: float = 1e-3,
) -> np.ndarray:
    """Indices (m <= n,) of points kept, in the order they were drawn.

    A point's score is its mean distance to the nearest `neighbours` of the known points, times the curvature there; 0
    when one is nearer than `minimum`. Points are drawn without replacement with probabilities as their scores, each
    one drawn being known to those after it. Fewer than n when no score is left above zero; the same for the same key.

    Parameters
    ----------
    points : (p, d); rows that are not finite are never kept. known : (k, d), targets or labels; may be empty.
    curvature : (p,) e.g. the largest absolute eigenvalue of the Hessian; by default 1. Where it is not finite: the
        median of the others.
    group : (G, d, d): points count as known if an image of them is.

    Raises
    ------
    ValueError
        Shapes that do not fit, n that is not positive.
    """
    points, known = np.asarray(points, float), np.asarray(known, float)
    if points.ndim != 2 or known.ndim != 2 or points.shape[1] != known.shape[1]:
        raise ValueError(f"points {points.shape} and known {known.shape}: give (p, d) and (k, d)")
    if n < 1 or neighbours < 1:
        raise ValueError(f"n = {n}, neighbours = {neighbours}: give positive numbers")
    p, d = points.shape
    weight = np.ones(p) if curvature is None else np.abs(np.asarray(curvature, float))
    if weight.shape != (p,):
        raise ValueError(f"curvature has shape {weight.shape} for {p} points")
    fine = np.isfinite(weight)
    weight = np.where(fine, weight, np.median(weight[fine]) if fine.any() else 1.0)
    usable = np.isfinite(points).all(axis=1)
    if not usable.any():
        return np.zeros(0, int)
    images = np.eye(d)[None] if group is None else np.asarray(group, float)
    known = known[np.isfinite(known).all(axis=1)]
    # few sizes, few programs: padded points have no weight, padded known points are far away
    padded = jnp.asarray(np.concatenate([np.where(usable[:, None], points, 0), np.zeros((_size(p) - p, d))]))
    weight = np.concatenate([np.where(usable, weight, 0), np.zeros(_size(p) - p)])
    known = np.concatenate([known, np.full((_size(len(known)) - len(known), d), FAR)])
    nearest = _nearest(padded, jnp.asarray(known), jnp.asarray(images), neighbours)
    n = min(n, p)
    drawn, score = _draw(key, padded, nearest, jnp.asarray(weight), jnp.asarray(images), _size(n), minimum)
    return np.asarray(drawn)[:n][np.asarray(score)[:n] > 0]


def _size(n: int) -> int:
    """The power of two that is not below n; 0 of 0."""
    return 1 << (n - 1).bit_length() if n else 0


@jax.jit
def _distances(points: jax.Array, others: jax.Array, group: jax.Array) -> jax.Array:
    """(p, k) distances between points and the nearest images of the others."""
    images = jnp.einsum("gij,pj->pgi", group, points)
    square = (
        jnp.sum(images**2, axis=-1)[:, :, None]
        + jnp.sum(others**2, axis=-1)[None, None, :]
        - 2 * jnp.einsum("pgi,ki->pgk", images, others)
    )
    return jnp.sqrt(jnp.maximum(jnp.min(square, axis=1), 0))


def _nearest(points: jax.Array, known: jax.Array, group: jax.Array, neighbours: int) -> jax.Array:
    """(p, neighbours) the smallest distances to known points, infinite where there are not so many."""
    p, k = len(points), len(known)
    nearest = jnp.full((p, neighbours), jnp.inf, points.dtype)
    if not k:
        return nearest
    few = min(neighbours, k)
    block = max(1, 2 ** (24 - (k * len(group) - 1).bit_length()))
    rows = [-jax.lax.top_k(-_distances(points[i : i + block], known, group), few)[0] for i in range(0, p, block)]
    found = jnp.concatenate(rows)
    return nearest.at[:, :few].set(jnp.where(found < FAR / 2, found, jnp.inf))


@partial(jax.jit, static_argnames="n")
def _draw(
    key: jax.Array,
    points: jax.Array,
    nearest: jax.Array,
    weight: jax.Array,
    group: jax.Array,
    n: int,
    minimum: float,
) -> tuple[jax.Array, jax.Array]:
    p, neighbours = nearest.shape
    far = jnp.max(jnp.linalg.norm(points - points[:1], axis=1)) + 1.0

    def pick(state, i):
        nearest, free = state
        close = jnp.isfinite(nearest)
        mean = jnp.sum(jnp.where(close, nearest, 0), axis=1) / jnp.maximum(jnp.sum(close, axis=1), 1)
        mean = jnp.where(close[:, 0], mean, far)  # nothing known yet: all alike
        score = jnp.where(free & (nearest[:, 0] >= minimum), mean * weight, 0)
        drawn = jnp.argmax(jnp.log(score) + jax.random.gumbel(jax.random.fold_in(key, i), (p,), points.dtype))
        new = _distances(points, points[drawn][None], group)
        nearest = jnp.sort(jnp.concatenate([nearest, new], axis=1), axis=1)[:, :neighbours]
        return (nearest, free.at[drawn].set(False)), (drawn, score[drawn])

    return jax.lax.scan(pick, (nearest, jnp.ones(p, bool)), jnp.arange(n))[1]
