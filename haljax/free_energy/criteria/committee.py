"""Query by committee."""

from __future__ import annotations

import jax
import numpy as np

from haljax.free_energy.criteria.scoring import candidates, scale, top, untrained
from haljax.free_energy.criteria.view import Proposal, View


def committee(key: jax.Array, view: View, n: int, *, repeat: int = 1, perturb: float = 0.0) -> Proposal:
    """The candidates on whose mu the trained members of the surface disagree most.

    The score is the variance over members, every component in units of mu's spread (`scoring.scale`), summed; g,
    whose constant is arbitrary, plays no part. Seung, Opper & Sompolinsky, COLT 1992, doi:10.1145/130385.130417.

    Parameters
    ----------
    repeat, perturb : each of the best is taken so many times, displaced by up to ``perturb / 2``.

    Raises
    ------
    ValueError
        The surface has no members to compare.
    """
    if empty := untrained(view):
        return empty
    if not hasattr(view.surface, "spread"):
        raise ValueError("this surface has no members: query by committee needs an ensemble, so train several members")
    points = candidates(view)
    _, spread = view.surface.spread(points, view.temperature)
    scores = np.sum((np.asarray(spread) / scale(view)[None, :]) ** 2, axis=1)
    return top(key, view, points, scores, n, repeat, perturb, "candidates with a finite spread")
