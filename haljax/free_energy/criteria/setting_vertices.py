"""Setting vertices: on the way from one known ordered state to another."""

from __future__ import annotations

import jax

from haljax.free_energy.criteria.scoring import generator, known_wells, nothing, perturbed
from haljax.free_energy.criteria.view import Proposal, View


def setting_vertices(key: jax.Array, view: View, n: int, *, perturb: float = 0.05) -> Proposal:
    """Points between known ordered states: a random pair of different ones, images under the group included, and a
    uniform place on the straight line between them.

    Parameters
    ----------
    perturb : displacements reach ``perturb / 2``.

    Raises
    ------
    ValueError
        No state is known, or one lies outside the domain.
    """
    wells = known_wells(view)
    if len(wells) < 2:
        return nothing(view, "only one ordered state is known, and it has no other image")
    pick, move = jax.random.split(key)
    random = generator(pick)
    i = random.integers(len(wells), size=n)
    j = (i + random.integers(1, len(wells), size=n)) % len(wells)
    t = random.random((n, 1))
    return Proposal(perturbed(move, view.domain, (1 - t) * wells[i] + t * wells[j], perturb))
