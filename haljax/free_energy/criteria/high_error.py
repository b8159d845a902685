"""High error: near the latest labels that the surface predicts worst."""

from __future__ import annotations

import jax
import numpy as np

from haljax.free_energy.criteria.scoring import nothing, scale, top, untrained
from haljax.free_energy.criteria.view import Proposal, View


def high_error(key: jax.Array, view: View, n: int, *, repeat: int = 3, perturb: float = 0.05) -> Proposal:
    """The neighbourhoods of the latest labels whose mu the surface misses most.

    The score is the squared error less the label's own squared standard error, every component in units of mu's
    spread (`scoring.scale`), summed: a noisy label is no reason to go back.

    Parameters
    ----------
    repeat, perturb : so many points around each label, displaced by up to ``perturb / 2``.
    """
    if empty := untrained(view):
        return empty
    if not len(view.latest):
        return nothing(view, "needs labels of the last round, and there are none")
    predicted = np.asarray(view.surface.chemical_potential(np.asarray(view.latest.eta), view.temperature))
    noise = np.nan_to_num(np.asarray(view.latest.mu_error))
    excess = ((predicted - np.asarray(view.latest.mu)) ** 2 - noise**2) / scale(view)[None, :] ** 2
    return top(key, view, view.latest.eta, excess.sum(axis=1), n, repeat, perturb, "labels to go back to")
