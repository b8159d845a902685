"""Space filling from given points."""

from __future__ import annotations

import jax
import numpy as np

from haljax.free_energy.criteria.scoring import nothing
from haljax.free_energy.criteria.view import Proposal, View


def pool(key: jax.Array, view: View, n: int, *, tolerance: float = 1e-9) -> Proposal:
    """The first n points of ``view.pool`` in the domain that were not proposed before; no draw of chance.

    Parameters
    ----------
    tolerance : a pool point this close, in every order parameter, to an earlier target or pool point is not repeated.

    Raises
    ------
    ValueError
        No pool was given, or it has the wrong shape.
    """
    del key
    d = view.domain.dimension
    if view.pool is None:
        raise ValueError("the pool mode has no pool: give points, one row of order parameters each")
    points = np.asarray(view.pool, float)
    if points.ndim != 2 or points.shape[1] != d:
        raise ValueError(f"the pool has shape {points.shape}: give (points, {d})")
    usable = view.domain.contains(points, 1e-9)
    taken = np.zeros((0, d)) if view.proposed is None else np.asarray(view.proposed, float)
    fresh = usable & ~_seen(points, taken, tolerance)
    chosen = points[fresh][:n]
    if len(chosen) == n:
        return Proposal(chosen)
    reason = f"the pool of {len(points)} has run out: {len(chosen)} new points were left"
    if not usable.all():
        reason += f", {np.sum(~usable)} lie outside the domain or are not finite"
    return Proposal(chosen, reason) if len(chosen) else nothing(view, reason)


def _seen(points: np.ndarray, taken: np.ndarray, tolerance: float) -> np.ndarray:
    """Which points (p,) lie within tolerance of one of `taken`, or of a point before them."""
    from scipy.spatial import cKDTree

    finite = np.isfinite(points).all(axis=1)
    seen = np.zeros(len(points), bool)
    where = np.flatnonzero(finite)
    if len(taken) and len(where):
        distance, _ = cKDTree(taken).query(points[where], p=np.inf)
        seen[where] = distance <= tolerance
    pairs = cKDTree(points[where]).query_pairs(tolerance, p=np.inf, output_type="ndarray") if len(where) else []
    for pair in pairs:
        seen[where[max(pair)]] = True
    return seen
