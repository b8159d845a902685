"""Finding wells: around the minima that the surface predicts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from haljax.free_energy.criteria.scoring import (
    around,
    best,
    candidates,
    eigenvalues,
    end_members,
    generator,
    middle,
    nothing,
    untrained,
)
from haljax.free_energy.criteria.view import Proposal, View
from haljax.free_energy.minimise import Tilted, distinct, minimise
from haljax.lattice.polytope import pull_inside


def finding_wells(
    key: jax.Array, view: View, n: int, *, starts: int = 100, repeat: int = 10, perturb: float = 0.05
) -> Proposal:
    """The neighbourhoods of the minima of g less its straight line between the end members, deepest first.

    Without that tilt a well would be told from no well by the arbitrary reference of the composition. The minima are
    those below the candidates of smallest ``|mu - tilt|``, first among them those with a positive definite Hessian;
    of the images of one minimum under the group one is kept, and points go round its images by chance.

    Parameters
    ----------
    starts : how many candidates are followed downhill.
    repeat, perturb : so many points around each minimum, displaced by up to ``perturb / 2``; where they do not make
        n, the wells are gone round again.
    """
    if empty := untrained(view):
        return empty
    centre = middle(view)[None, :]
    points = pull_inside(view.domain, centre, candidates(view), margin=1e-3)
    ends = pull_inside(view.domain, centre, end_members(view), margin=1e-6)
    g = np.asarray(view.surface.free_energy(ends, view.temperature))
    slope = np.zeros(points.shape[1])
    slope[0] = (g[1] - g[0]) / (ends[1, 0] - ends[0, 0])
    mu = np.asarray(view.surface.chemical_potential(points, view.temperature))
    force = np.linalg.norm(mu - slope[None, :], axis=1)
    stable = np.asarray(eigenvalues(view.surface.hessian(points, view.temperature)))[:, 0] > 0
    known = np.isfinite(force)
    if not known.any():
        return nothing(view, "the surface is finite at none of the candidates")
    order = best(-np.where(stable, force, force + 2 * np.max(force[known])), starts)
    surface = Tilted(view.surface, jnp.asarray(slope))
    minima = minimise(surface, view.domain, jnp.asarray(points[order]), view.temperature)
    good = np.asarray(minima.converged) & (np.asarray(minima.curvature) > 0) & np.isfinite(minima.free_energy)
    if not good.any():
        return nothing(view, "no minimum was found")
    wells = np.asarray(minima.eta)[good]
    wells = wells[np.argsort(np.asarray(minima.free_energy)[good], kind="stable")]
    wells = wells[distinct(wells, view.group)]
    rounds = -(-n // (repeat * len(wells)))
    turn, move = jax.random.split(key)
    base = np.tile(np.repeat(wells, repeat, axis=0), (rounds, 1))[:n]
    if view.group is not None:
        group = np.asarray(view.group)
        base = np.einsum("nij,nj->ni", group[generator(turn).integers(len(group), size=n)], base)
    return Proposal(around(move, view, base, n, 1, perturb))
