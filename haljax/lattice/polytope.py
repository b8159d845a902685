"""Convex domains of order parameters: half-spaces ``normals @ x <= offsets``."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Polytope(NamedTuple):
    """A bounded convex domain with an interior, as `half_spaces` and `from_sublattices` make it.

    Attributes
    ----------
    normals : (F, d) unit rows, pointing outwards.
    offsets : (F,); inside, ``normals @ x <= offsets``.
    """

    normals: Any
    offsets: Any

    @property
    def dimension(self) -> int:
        return self.normals.shape[1]

    def slack(self, x: Any) -> Any:
        """Distances (..., F) of points (..., d) to the planes, negative outside; numpy of numpy, else JAX."""
        xp, x, normals, offsets = _arrays(x, self.normals, self.offsets)
        return offsets.reshape((1,) * (x.ndim - 1) + (-1,)) - x @ normals.T

    def contains(self, x: Any, tolerance: float = 0.0) -> Any:
        """Whether points (..., d) are inside, or outside by at most `tolerance`; False for NaN. As `slack`."""
        return (self.slack(x) >= -tolerance).all(axis=-1)

    def chebyshev_centre(self) -> tuple[np.ndarray, float]:
        """Centre (d,) and radius of the largest ball inside, by linear programming (on the host).

        Raises
        ------
        ValueError
            The domain has no interior, or no bound.
        """
        return chebyshev_centre(self)

    def bounding_box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner (d,), by linear programming (on the host).

        Raises
        ------
        ValueError
            The domain is empty or has no bound.
        """
        return bounding_box(self)


def half_spaces(normals: Any, offsets: Any) -> Polytope:
    """The domain ``normals @ x <= offsets``, rows scaled to unit normals and repeated planes merged.

    Parameters
    ----------
    normals : (F, d); offsets : (F,).

    Raises
    ------
    ValueError
        Shapes that do not fit, entries that are not finite, a normal of zero, a domain without interior or bound.
    """
    normals, offsets = np.asarray(normals, float), np.asarray(offsets, float)
    if normals.ndim != 2 or offsets.shape != normals.shape[:1]:
        raise ValueError(f"normals {normals.shape} and offsets {offsets.shape}: give (F, d) and (F,)")
    if not (np.isfinite(normals).all() and np.isfinite(offsets).all()):
        raise ValueError("normals or offsets of a polytope are not finite")
    length = np.linalg.norm(normals, axis=1)
    if np.any(length == 0):
        raise ValueError(f"normal {int(np.argmin(length))} of the polytope is zero: leave that row out")
    planes = np.column_stack([normals, offsets]) / length[:, None]
    planes = planes[np.sort(np.unique(np.round(planes, 12), axis=0, return_index=True)[1])]
    polytope = Polytope(planes[:, :-1], planes[:, -1])
    bounding_box(polytope)
    chebyshev_centre(polytope)
    return polytope


def from_sublattices(sublattices: Any) -> Polytope:
    """The order parameters for which every sublattice's fraction is possible, ``0 <= sublattices @ eta <= 1``.

    `sublattices` (n_sub, d) gives the fraction of the counted species on each sublattice.
    """
    S = np.asarray(sublattices, float)
    return half_spaces(np.concatenate([S, -S]), np.concatenate([np.ones(len(S)), np.zeros(len(S))]))


def chebyshev_centre(polytope: Polytope) -> tuple[np.ndarray, float]:
    """See `Polytope.chebyshev_centre`."""
    normals, offsets = np.asarray(polytope.normals, float), np.asarray(polytope.offsets, float)
    d = normals.shape[1]
    radius_of = np.linalg.norm(normals, axis=1)
    solution = _minimise(np.append(np.zeros(d), -1.0), np.column_stack([normals, radius_of]), offsets)
    centre, radius = solution[:d], float(solution[d])
    if not radius > 1e-12:
        raise ValueError("the domain has no interior: its half-spaces contradict each other, or meet in a plane")
    return centre, radius


def bounding_box(polytope: Polytope) -> tuple[np.ndarray, np.ndarray]:
    """See `Polytope.bounding_box`."""
    normals, offsets = np.asarray(polytope.normals, float), np.asarray(polytope.offsets, float)
    unit = np.eye(normals.shape[1])
    lower = np.array([_minimise(e, normals, offsets)[i] for i, e in enumerate(unit)])
    upper = np.array([_minimise(-e, normals, offsets)[i] for i, e in enumerate(unit)])
    return lower + 0.0, upper + 0.0  # no -0.0


def extreme(polytope: Polytope, direction: Any) -> np.ndarray:
    """A point (d,) of the domain that lies farthest along the direction (d,), by linear programming (on the host)."""
    return _minimise(-np.asarray(direction, float), np.asarray(polytope.normals), np.asarray(polytope.offsets))


def reach(polytope: Polytope, base: Any, direction: Any) -> Any:
    """How far (...) one can go from points inside (..., d) along directions (..., d), in lengths of the direction.

    Numpy of numpy, else JAX.
    """
    xp, base, direction, normals = _arrays(base, direction, polytope.normals)
    slack = xp.maximum(polytope.slack(base), 0)
    rate = direction @ normals.T
    return xp.where(rate > 0, slack / xp.where(rate > 0, rate, 1), xp.inf).min(axis=-1)


def pull_inside(polytope: Polytope, base: Any, x: Any, margin: float = 0.0) -> Any:
    """Points x (..., d), those outside drawn back along the straight line towards their base point (..., d) inside.

    With a `margin` in (0, 1) they stop short of the boundary by that part of the way. Numpy of numpy, else JAX.
    """
    xp, base, x, _ = _arrays(base, x, polytope.normals)
    base, x = xp.broadcast_arrays(base, x)
    way = xp.minimum(reach(polytope, base, x - base) * (1 - margin), 1)
    return base + way[..., None] * (x - base)


def _arrays(first: Any, *others: Any) -> tuple[Any, ...]:
    """numpy or jax.numpy, as the arrays ask for, and the arrays in it, of the first one's precision."""
    xp: Any = jnp if any(isinstance(a, jax.Array) for a in (first, *others)) else np
    first = xp.asarray(first)
    first = first if xp.issubdtype(first.dtype, xp.floating) else first.astype(float)
    return xp, first, *(xp.asarray(a, first.dtype) for a in others)


def _minimise(objective: np.ndarray, normals: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    from scipy.optimize import linprog

    result = linprog(objective, A_ub=normals, b_ub=offsets, bounds=(None, None))
    if result.status == 2:
        raise ValueError("the domain is empty: its half-spaces contradict each other")
    if result.status == 3:
        raise ValueError("the domain has no bound in some direction: give half-spaces that close it")
    if not result.success:
        raise ValueError(f"the domain's linear program failed: {result.message}")
    return result.x
