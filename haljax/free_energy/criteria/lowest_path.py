"""Lowest free-energy path: the most stable order at every composition."""

from __future__ import annotations

import jax
import numpy as np

from haljax.free_energy.criteria.scoring import around, generator, nothing, untrained
from haljax.free_energy.criteria.view import Proposal, View
from haljax.free_energy.phases import relaxed, seeds


def lowest_path(key: jax.Array, view: View, n: int, *, repeat: int = 2, perturb: float = 0.05) -> Proposal:
    """The neighbourhoods of the minima over all other order parameters at compositions spread over their range.

    Parameters
    ----------
    repeat, perturb : so many points around each minimum, displaced by up to ``perturb / 2``.
    """
    if empty := untrained(view):
        return empty
    place, order, start, move = jax.random.split(key, 4)
    lower, upper = (bound[0] for bound in view.domain.bounding_box())
    m = -(-n // repeat)
    part = (np.arange(m) + generator(place).random(m)) / m
    x = lower + (upper - lower) * np.clip(part, 1e-6, 1 - 1e-6)
    starts = seeds(start, view.domain, view.group, view.wells)
    path = relaxed(view.surface, view.domain, view.temperature, x, starts, group=view.group)
    good = np.flatnonzero(np.isfinite(path.free_energy))
    if not len(good):
        return nothing(view, "the surface is finite nowhere along the path")
    eta = generator(order).permutation(path.eta[good])
    points = around(move, view, eta, n, repeat, perturb)
    return Proposal(
        points, "" if len(points) == n else f"the surface is finite at {len(good)} of {m} compositions only"
    )
