"""Free energies of order parameters, learned from lattice Monte Carlo: labels, surfaces, criteria, phases."""

from __future__ import annotations

from haljax.free_energy.data import Labels, concatenate, empty, labels
from haljax.free_energy.mean_field import MeanField, biased_labels, exact_labels, regular_solution
from haljax.free_energy.minimise import Minima
from haljax.free_energy.network import Network, Surface, idnn, load
from haljax.free_energy.novelty import novel
from haljax.free_energy.phases import (
    Coexistence,
    Path,
    PhaseDiagram,
    Spinodal,
    Voltage,
    coexistence,
    phase_diagram,
    relaxed,
    seeds,
    spinodals,
    voltage,
)
from haljax.free_energy.weighting import improvement, reweight, shares

__all__ = [
    "Coexistence",
    "Labels",
    "MeanField",
    "Minima",
    "Network",
    "Path",
    "PhaseDiagram",
    "Spinodal",
    "Surface",
    "Voltage",
    "biased_labels",
    "coexistence",
    "concatenate",
    "empty",
    "exact_labels",
    "idnn",
    "improvement",
    "labels",
    "load",
    "novel",
    "phase_diagram",
    "regular_solution",
    "relaxed",
    "reweight",
    "seeds",
    "shares",
    "spinodals",
    "voltage",
]
