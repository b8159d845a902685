"""Cluster expansions of icet (doi:10.1002/adts.201900015), read from its ``.ce`` files."""

from __future__ import annotations

import os
from itertools import product
from typing import Any

import numpy as np

from haljax.lattice.clusters import Orbit, decompose, orbit
from haljax.lattice.crystal import lattice
from haljax.lattice.expansion import ClusterExpansion


def read_icet(path: str | os.PathLike[str]) -> ClusterExpansion:
    """Read a cluster expansion that ``icet.ClusterExpansion.write`` wrote.

    The lattice is icet's primitive structure; the species of a site are in icet's order, by atomic number (a vacancy,
    X, first). icet's energies are per site: this expansion's, per primitive cell, are ``predict(structure)`` times
    the number of sites of the primitive cell. Such files hold pickles, so read only those that you trust.

    Raises
    ------
    ImportError : icet is not installed.
    ValueError : not such a file.
    """
    try:
        import icet
    except ImportError as error:
        raise ImportError("icet's .ce files are read by icet itself: pip install icet") from error
    import pickle
    import tarfile

    try:
        found = icet.ClusterExpansion.read(os.fspath(path))
    except (tarfile.TarError, pickle.UnpicklingError, KeyError) as error:
        raise ValueError(f"{path} is not a cluster expansion of icet: {error}") from error
    space = found.get_cluster_space_copy()
    orbits = []
    for group in (space.orbit_list.get_orbit(i) for i in range(len(space.orbit_list))):
        clusters = [
            [[*map(int, site.unitcell_offset), site.index] for site in cluster.lattice_sites]
            for cluster in group.clusters
        ]
        elements = [(e["multicomponent_vector"], e["site_permutations"]) for e in group.cluster_vector_elements]
        orbits.append((np.array(clusters), elements))
    structure = space.primitive_structure
    return from_icet(
        np.array(structure.cell), structure.get_scaled_positions(), space.chemical_symbols, orbits, found.parameters
    )


def from_icet(
    cell: np.ndarray,
    positions: np.ndarray,
    symbols: list[list[str]],
    orbits: list[tuple[np.ndarray, list[tuple[Any, Any]]]],
    parameters: np.ndarray,
) -> ClusterExpansion:
    """The expansion of icet's orbits and parameters; what `read_icet` does once the file is read.

    Parameters
    ----------
    cell, positions, symbols : of the primitive structure, positions fractional.
    orbits : for each orbit its clusters (n, k, 4) of sites (l, m, n, s), and its elements of the cluster vector, each
        a multicomponent vector (k,) and the permutations (p, k) of it that are equivalent.
    parameters : (1 + number of elements,) eV per site.

    Raises
    ------
    ValueError : the number of parameters or the symmetry does not fit the orbits.
    """
    from ase.data import atomic_numbers

    species = [sorted(names, key=atomic_numbers.__getitem__) for names in symbols]
    crystal = lattice(cell, positions, species)
    tables = tuple(
        tuple(tuple(_point_function(len(names), a, k) for k in range(len(names))) for a in range(len(names) - 1))
        for names in species
    )
    groups = [(clusters, element) for clusters, elements in orbits for element in elements]
    if len(parameters) != 1 + len(groups):
        raise ValueError(f"{len(parameters)} parameters for {1 + len(groups)} elements of the cluster vector")
    eci: dict[Orbit, float] = {orbit(crystal, ()): float(parameters[0])}
    for (clusters, (vector, permutations)), parameter in zip(groups, parameters[1:], strict=True):
        vector = np.asarray(vector)
        decorated = [(cluster, vector[list(p)] + 1) for cluster, p in product(clusters, permutations)]
        sites, functions = (np.array(part) for part in zip(*decorated, strict=True))
        for found, share in decompose(crystal, sites, functions):
            eci[found] = eci.get(found, 0.0) + share * float(parameter)
    scale = crystal.n_sites
    return ClusterExpansion(crystal, tuple(eci), tuple(scale * value for value in eci.values()), tables)


def _point_function(n_species: int, function: int, species: int) -> float:
    """icet's orthogonal point function (doi:10.1002/adts.201900015, eq. 5), counted from 0."""
    angle = 2 * np.pi * ((function + 2) // 2) * species / n_species
    return float(-np.cos(angle) if function % 2 == 0 else -np.sin(angle))
