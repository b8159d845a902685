"""Space filling by low-discrepancy sequences in the bounding box, of which the points in the domain are kept.

Rejection keeps the even spread of a Sobol sequence, and each coordinate of a Latin hypercube stratified only roughly.
Where the domain fills little of its box the billiard walk is the better choice.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from haljax.free_energy.criteria.scoring import generator
from haljax.free_energy.criteria.view import Proposal, View

MOST = 2**22  # points tried before giving up


def sobol(key: jax.Array, view: View, n: int) -> Proposal:
    """The first n points of a scrambled Sobol sequence over the bounding box that lie in the domain.

    Raises
    ------
    ValueError
        The domain fills less than about n / 4e6 of its bounding box.
    """
    from scipy.stats import qmc

    sequence = qmc.Sobol(view.domain.dimension, rng=generator(key))
    return Proposal(_keep(view, n, sequence.random))


def latin_hypercube(key: jax.Array, view: View, n: int) -> Proposal:
    """A random n of the points in the domain of a Latin hypercube over the bounding box, as large as it takes.

    Raises
    ------
    ValueError
        The domain fills less than about n / 4e6 of its bounding box.
    """
    from scipy.stats import qmc

    random = generator(key)
    points = _keep(view, n, lambda m: qmc.LatinHypercube(view.domain.dimension, rng=random).random(m), again=True)
    return Proposal(points[random.permutation(len(points))[:n]])


def _keep(view: View, n: int, draw: Callable[[int], np.ndarray], again: bool = False) -> np.ndarray:
    """Points in the domain from draws that double; from the last draw alone if `again`, else the first n of all."""
    lower, upper = view.domain.bounding_box()
    kept, tried, size = np.zeros((0, len(lower))), 0, 1 << int(np.ceil(np.log2(max(n, 16))))
    while len(kept) < n:
        if tried + size > MOST:
            raise ValueError(
                f"only {len(kept)} of {tried} points of the bounding box lie in the domain, {n} are wanted: "
                "use the billiard walk, which needs no box"
            )
        points = lower[None, :] + draw(size) * (upper - lower)[None, :]
        inside = points[view.domain.contains(points)]
        kept = inside if again else np.concatenate([kept, inside])
        tried, size = tried + size, 2 * size if again else tried + size
    return kept if again else kept[:n]
