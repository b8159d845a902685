"""What a criterion sees and what it gives back."""

from __future__ import annotations

from typing import Any, NamedTuple

from haljax.free_energy.data import Labels
from haljax.lattice.polytope import Polytope


class View(NamedTuple):
    """The state of a campaign as criteria may see it, in d order parameters.

    Attributes
    ----------
    domain : where to sample, all of it admissible; see `OrderParameters.polytope`.
    temperature : K, at which surfaces are evaluated.
    candidates : (m, d) a space-filling set of the domain to score; rows that are not finite are passed over.
    labels : all labels so far; latest : those of the last round. Both empty (`data.empty(d)`) in round 0.
    surface : the trained ensemble, None in round 0.
    group : (G, d, d) the symmetry group on eta; None is the identity alone.
    wells : (w, d) the known ordered states, one of each kind: the group gives the others.
    pool : (p, d) points given by the user, for the pool mode.
    proposed : (k, d) every target proposed so far.
    patterns : (d, n_s) of the ideal-solution term, where the surface has one: sensitivity and novelty then look at
        the curvature beyond the ideal solution's, which diverges where a sublattice is full or empty.
    sites : counted sites of a primitive cell, which the ideal-solution term is proportional to.
    """

    domain: Polytope
    temperature: float
    candidates: Any
    labels: Labels
    latest: Labels
    surface: Any = None
    group: Any = None
    wells: Any = None
    pool: Any = None
    proposed: Any = None
    patterns: Any = None
    sites: int = 1


class Proposal(NamedTuple):
    """Targets (m, d) inside the domain, best first where there is an order; if m < n, `reason` says why."""

    eta: Any
    reason: str = ""
