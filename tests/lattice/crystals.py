"""Lattices and expansions that the tests share."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from haljax.lattice import ClusterExpansion, lattice, load_expansion, orbits

LIXCOO2 = Path(__file__).parents[2] / "examples" / "lixcoo2_eci.json"


def lixcoo2() -> ClusterExpansion:
    return load_expansion(LIXCOO2)


def fcc(*species, a=4.0):
    return lattice(0.5 * a * (1 - np.eye(3)), [[0, 0, 0]], [species])


def rocksalt():
    """Two sublattices, three species on one and two on the other."""
    return lattice(2.1 * (1 - np.eye(3)), [[0, 0, 0], [0.5, 0.5, 0.5]], [("Mg", "Zn", "Va"), ("O", "S")])


def hcp():
    """Two equivalent sites in the cell."""
    cell = [[2.9, 0, 0], [-1.45, 1.45 * np.sqrt(3), 0], [0, 0, 4.7]]
    return lattice(cell, [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]], [("Ti", "Al")] * 2)


def random_expansion(lattice, cutoffs, seed=0, site_functions=()):
    found = orbits(lattice, cutoffs)
    return ClusterExpansion(lattice, found, np.random.default_rng(seed).normal(size=len(found)), site_functions)


def random_occupation(lattice, supercell, seed=0, batch=()):
    size = np.array(lattice.n_species)[supercell.sites()[:, 3]]
    return np.random.default_rng(seed).integers(size, size=(*batch, supercell.n_sites)).astype(np.int32)


def reference_data(name):
    """A file of the shared data, for slow tests; the environment variable HALJAX_DATA names their folder."""
    folder = Path(os.environ.get("HALJAX_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / name).exists():
        pytest.skip(f"{folder / name} is not there: set HALJAX_DATA")
    return json.loads((folder / name).read_text())
