"""Phase instabilities: where the free energy is not convex."""

from __future__ import annotations

import jax
import numpy as np

from haljax.free_energy.criteria.scoring import candidates, eigenvalues, top, untrained
from haljax.free_energy.criteria.view import Proposal, View


def instabilities(
    key: jax.Array, view: View, n: int, *, below: float = 0.0, repeat: int = 3, perturb: float = 0.05
) -> Proposal:
    """The neighbourhoods of the candidates that are most unstable: smallest eigenvalue of the Hessian, most negative
    first.

    Parameters
    ----------
    below : eV; candidates with a larger smallest eigenvalue are stable.
    repeat, perturb : so many points around each candidate, displaced by up to ``perturb / 2``.
    """
    if empty := untrained(view):
        return empty
    points = candidates(view)
    smallest = np.asarray(eigenvalues(view.surface.hessian(points, view.temperature)))[:, 0]
    scores = np.where(smallest < below, -smallest, np.nan)
    return top(key, view, points, scores, n, repeat, perturb, "candidates that are unstable")
