"""Setting wells and end members: around the ordered states that are known beforehand."""

from __future__ import annotations

import jax
import numpy as np

from haljax.free_energy.criteria.scoring import end_members, generator, images, known_wells, middle, perturbed
from haljax.free_energy.criteria.view import Proposal, View


def setting_wells(
    key: jax.Array, view: View, n: int, *, inset: float = 0.05, perturb: float = 0.1, ends: bool = True
) -> Proposal:
    """Points around the known ordered states, their images under the group and the end members, equally many of each
    kind and random among its images.

    Parameters
    ----------
    inset : the states are drawn towards the domain's centre by this part of the way: they stand on the boundary.
    perturb : displacements reach ``perturb / 2``.
    ends : whether the end members count as a state each.

    Raises
    ------
    ValueError
        No state is known, or one lies outside the domain.
    """
    if not 0 <= inset < 1:
        raise ValueError(f"inset = {inset}: give a number from 0 to below 1")
    known_wells(view)  # refuses what it does not understand
    kinds = [images(view, well[None, :]) for well in np.asarray(view.wells, float)]
    kinds += [end[None, :] for end in end_members(view)] if ends else []
    pick, move = jax.random.split(key)
    random = generator(pick)
    kind = random.permutation(n) % len(kinds)
    base = np.array([kinds[k][random.integers(len(kinds[k]))] for k in kind])
    centre = middle(view)[None, :]
    return Proposal(perturbed(move, view.domain, centre + (1 - inset) * (base - centre), perturb))
