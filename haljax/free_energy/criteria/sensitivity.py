"""Sensitivity: where mu changes fastest."""

from __future__ import annotations

import jax
import numpy as np

from haljax.free_energy.criteria.scoring import candidates, curvatures, top, untrained
from haljax.free_energy.criteria.view import Proposal, View


def sensitivity(key: jax.Array, view: View, n: int, *, repeat: int = 3, perturb: float = 0.05) -> Proposal:
    """The neighbourhoods of the candidates with the largest eigenvalue of the Hessian (see `scoring.curvatures`).

    Parameters
    ----------
    repeat, perturb : so many points around each candidate, displaced by up to ``perturb / 2``.
    """
    if empty := untrained(view):
        return empty
    points = candidates(view)
    scores = np.asarray(curvatures(view, points))[:, -1]
    return top(key, view, points, scores, n, repeat, perturb, "candidates with a finite Hessian")
