"""Twelve rattled and strained 32-atom Al-Cu cells, from which examples/alcu_emt.toml sets out.

Run ``python examples/alcu_start.py`` to make examples/alcu_start.xyz again.
"""

from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.io import write

LATTICE = {"Al": 4.05, "Cu": 3.61}  # Å, fcc


def structures(n: int = 12, seed: int = 0) -> list:
    """Fcc cells of 2 x 2 x 2 cubes with random occupation, Vegard's lattice constant, strain and displacements."""
    rng = np.random.default_rng(seed)
    made = []
    for copper in np.linspace(0, 32, n).round().astype(int):
        symbols = np.array(["Al"] * 32, dtype=object)
        symbols[rng.permutation(32)[:copper]] = "Cu"
        atoms = bulk("Al", "fcc", a=1.0, cubic=True) * 2
        atoms.symbols = list(symbols)
        length = 2 * (LATTICE["Al"] + (LATTICE["Cu"] - LATTICE["Al"]) * copper / 32)
        strain = np.eye(3) + 0.02 * rng.standard_normal((3, 3))
        atoms.set_cell(length * (strain + strain.T) / 2, scale_atoms=True)
        atoms.positions += 0.08 * rng.standard_normal(atoms.positions.shape)
        made.append(atoms)
    return made


if __name__ == "__main__":
    write(Path(__file__).with_name("alcu_start.xyz"), structures(), format="extxyz")
