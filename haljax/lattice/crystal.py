"""A crystal lattice with several species on its sites, and its space group.

A site is an integer 4-vector (l, m, n, s): basis site s of the primitive cell (l, m, n). Species of a site are
numbered 0, 1, ... in the order in which the lattice lists them; species 0 is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy or JAX


class Operations(NamedTuple):
    """The space group modulo lattice translations, acting on sites.

    Attributes
    ----------
    rotations : (G, 3, 3) integers, on cell coordinates as column vectors.
    permutation : (G, S) where basis site s goes.
    shift : (G, S, 3) the cell in which the image of basis site s of cell (0, 0, 0) lies.
    """

    rotations: np.ndarray
    permutation: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class Lattice:
    """A periodic lattice; hashable, so that it can be a static argument. Made by `lattice`, which checks it.

    Attributes
    ----------
    cell : (3, 3) rows are the primitive vectors, Å.
    positions : (S, 3) of the basis sites, fractional.
    species : names of the species allowed on each basis site; a site with one species is a spectator.
    tolerance : Å, within which two positions are the same.
    """

    cell: tuple[tuple[float, ...], ...]
    positions: tuple[tuple[float, ...], ...]
    species: tuple[tuple[str, ...], ...]
    tolerance: float = 1e-5

    @property
    def n_sites(self) -> int:
        """Sites of the primitive cell."""
        return len(self.positions)

    @property
    def n_species(self) -> tuple[int, ...]:
        """Number of species of each basis site."""
        return tuple(map(len, self.species))

    @property
    def active(self) -> tuple[int, ...]:
        """Basis sites with a choice of species."""
        return tuple(s for s, n in enumerate(self.n_species) if n > 1)

    @property
    def operations(self) -> Operations:
        """The space group, from spglib (doi:10.1080/27660400.2024.2384822); computed once."""
        return _operations(self)

    def operate(self, sites: np.ndarray) -> np.ndarray:
        """Images (G, ..., 4) of sites (..., 4) under every operation of the space group."""
        sites = np.asarray(sites)
        rotations, permutation, shift = self.operations
        s = sites[..., 3]
        cells = np.einsum("gij,...j->g...i", rotations, sites[..., :3]) + shift[:, s]
        return np.concatenate([cells, permutation[:, s][..., None]], axis=-1)

    def cartesian(self, sites: np.ndarray) -> np.ndarray:
        """Positions (..., 3) of sites (..., 4), Å."""
        sites = np.asarray(sites)
        return (sites[..., :3] + np.asarray(self.positions)[sites[..., 3]]) @ np.asarray(self.cell)


def lattice(cell: Array, positions: Array, species: Sequence[Sequence[str]], tolerance: float = 1e-5) -> Lattice:
    """A lattice from its primitive vectors and the species allowed on its basis sites.

    Parameters
    ----------
    cell : (3, 3) rows, Å.
    positions : (S, 3) fractional.
    species : S lists of names, for instance ``[("Li", "Va")]``. Only sites with equal lists, in the same order,
        can be equivalent.
    tolerance : Å, for the space group.

    Raises
    ------
    ValueError : shapes that do not fit, a flat cell, coinciding sites, a site without species or with one twice,
        no site with a choice of species.
    """
    cell, positions = np.asarray(cell, float), np.asarray(positions, float)
    if cell.shape != (3, 3) or not np.all(np.isfinite(cell)):
        raise ValueError(f"cell must be three finite rows of three numbers in Å, not an array of shape {cell.shape}")
    lengths = np.linalg.norm(cell, axis=1)
    if abs(np.linalg.det(cell)) <= 1e-6 * np.prod(lengths):
        raise ValueError(f"the cell has no volume: its rows {cell.tolist()} lie in a plane")
    if positions.ndim != 2 or positions.shape[1] != 3 or not len(positions) or not np.all(np.isfinite(positions)):
        raise ValueError(f"positions must be (S, 3) finite fractional coordinates, not of shape {positions.shape}")
    if isinstance(species, str) or any(isinstance(names, str) for names in species):
        raise ValueError(f'species must be a list of names for each site, such as [("Li", "Va")], not {species!r}')
    names = tuple(tuple(map(str, site)) for site in species)
    if len(names) != len(positions):
        raise ValueError(f"{len(positions)} positions but {len(names)} lists of species: give one list for each site")
    for s, site in enumerate(names):
        if not site or len(set(site)) != len(site):
            raise ValueError(f"site {s} has the species {site}: give each allowed species once")
    if all(len(site) == 1 for site in names):
        raise ValueError("no site has a choice of species: give at least one site two species")
    a, b = np.triu_indices(len(positions), 1)
    distance = _distance(positions[a] - positions[b], cell)
    if len(a) and distance.min() <= max(tolerance, 1e-3):
        i = int(np.argmin(distance))
        raise ValueError(f"sites {a[i]} and {b[i]} coincide ({distance[i]:.2g} Å apart): give each site once")
    return Lattice(_nested(cell), _nested(positions), names, float(tolerance))


def _distance(difference: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Shortest length (...), Å, of fractional differences (..., 3) modulo lattice vectors, when it is small."""
    return np.linalg.norm((difference - np.round(difference)) @ cell, axis=-1)


def _nested(array: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in array)


@lru_cache(maxsize=64)
def _operations(lattice: Lattice) -> Operations:
    import spglib

    cell, positions = np.asarray(lattice.cell), np.asarray(lattice.positions)
    kinds = {names: i for i, names in enumerate(dict.fromkeys(lattice.species))}
    numbers = [kinds[names] + 1 for names in lattice.species]
    try:
        found, reason = spglib.get_symmetry((lattice.cell, lattice.positions, numbers), symprec=lattice.tolerance), None
    except Exception as error:  # newer versions raise where older ones return None
        found, reason = None, error
    if found is None:
        raise ValueError(
            f"spglib finds no space group for the lattice of cell {lattice.cell} and sites {lattice.positions} "
            f"at a tolerance of {lattice.tolerance} Å: check the coordinates or change the tolerance"
        ) from reason
    rotations, translations = found["rotations"].astype(int), found["translations"]
    images = np.einsum("gij,sj->gsi", rotations, positions) + translations[:, None]  # (G, S, 3)
    difference = images[:, :, None] - positions[None, None]  # (G, S, S', 3)
    distance = np.where(np.equal.outer(numbers, numbers)[None], _distance(difference, cell), np.inf)
    permutation = np.argmin(distance, axis=2)
    shift = np.round(np.take_along_axis(difference, permutation[:, :, None, None], axis=2)[:, :, 0]).astype(int)
    return Operations(rotations, permutation, shift)
