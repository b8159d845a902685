"""Lattice models: cluster expansions, supercells, order parameters and Monte Carlo."""

from haljax.lattice.clusters import Orbit, decompose, orbit, orbits
from haljax.lattice.crystal import Lattice, Operations, lattice
from haljax.lattice.expansion import (
    ClusterExpansion,
    Term,
    Terms,
    check_range,
    correlations,
    energy,
    load_expansion,
    save_expansion,
)
from haljax.lattice.fit import FittedExpansion, fit_expansion, map_structure
from haljax.lattice.monte_carlo import Conditions
from haljax.lattice.order import OrderParameters, Wave, check_inside, order_parameters, zigzag
from haljax.lattice.polytope import Polytope
from haljax.lattice.reweighting import Reweighted, mbar
from haljax.lattice.supercell import Supercell
from haljax.lattice.symmetry import Invariants, invariants
from haljax.lattice.tempering import Tempering, temper
from haljax.lattice.units import KB
from haljax.lattice.windows import WindowResult, sample_windows

__all__ = [
    "KB",
    "ClusterExpansion",
    "Conditions",
    "FittedExpansion",
    "Invariants",
    "Lattice",
    "Operations",
    "Orbit",
    "OrderParameters",
    "Polytope",
    "Reweighted",
    "Supercell",
    "Tempering",
    "Term",
    "Terms",
    "Wave",
    "WindowResult",
    "check_inside",
    "check_range",
    "correlations",
    "decompose",
    "energy",
    "fit_expansion",
    "invariants",
    "lattice",
    "load_expansion",
    "map_structure",
    "mbar",
    "orbit",
    "orbits",
    "order_parameters",
    "sample_windows",
    "save_expansion",
    "temper",
    "zigzag",
]
