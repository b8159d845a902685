"""The mixed variant of space filling: a share of the points in the plane of two order parameters."""

from __future__ import annotations

import jax
import numpy as np

from haljax.free_energy.criteria.billiard import billiard, fill
from haljax.free_energy.criteria.scoring import generator, middle, perturbed
from haljax.free_energy.criteria.view import Proposal, View
from haljax.lattice.polytope import half_spaces


def mixed(
    key: jax.Array,
    view: View,
    n: int,
    *,
    share: float = 0.5,
    axes: tuple[int, int] = (0, 1),
    noise: float = 0.05,
    boundary: float = 0.25,
) -> Proposal:
    """Space filling of which a share fills the plane of two order parameters, where phases and pictures lie.

    In the plane the others stand at the domain's centre, up to ``noise / 2`` of uniform noise kept inside.

    Parameters
    ----------
    share : 0 to 1, of points in the plane; axes : the two; boundary : share of the others on the boundary.
    """
    d = view.domain.dimension
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share}: give a number between 0 and 1")
    if len(axes) != 2 or axes[0] == axes[1] or not all(0 <= a < d for a in axes):
        raise ValueError(f"axes = {tuple(axes)}: give two different order parameters of 0 to {d - 1}")
    whole, flat, jitter, order = jax.random.split(key, 4)
    in_plane = round(share * n)
    chosen = np.array(axes)
    centre = middle(view)
    rest = np.where(np.isin(np.arange(d), chosen), 0, centre)
    normals, offsets = np.asarray(view.domain.normals), np.asarray(view.domain.offsets)
    crosses = np.linalg.norm(normals[:, chosen], axis=1) > 1e-9
    section = half_spaces(normals[crosses][:, chosen], (offsets - normals @ rest)[crosses])
    points = np.tile(rest, (in_plane, 1))
    points[:, chosen] = fill(flat, section, in_plane)
    points = perturbed(jitter, view.domain, points, np.where(np.isin(np.arange(d), chosen), 0, noise))
    walked = billiard(whole, view, n - in_plane, boundary=boundary).eta
    return Proposal(generator(order).permutation(np.concatenate([walked, points])))
