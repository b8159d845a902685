"""Molecular dynamics of replicas: Langevin steps by jax-md, cell and swap moves, guards."""

from haljax.md.moves import cell_move, swap_move
from haljax.md.replicas import (
    MARGIN,
    Hamiltonian,
    Replica,
    advance,
    choose,
    hamiltonian,
    kinetic_energy,
    langevin_step,
    maxwell_boltzmann,
    shortage_of,
    temperature,
    worst,
)
from haljax.md.status import Guards, Status, guard

__all__ = [
    "MARGIN",
    "Guards",
    "Hamiltonian",
    "Replica",
    "Status",
    "advance",
    "cell_move",
    "choose",
    "guard",
    "hamiltonian",
    "kinetic_energy",
    "langevin_step",
    "maxwell_boltzmann",
    "shortage_of",
    "swap_move",
    "temperature",
    "worst",
]
