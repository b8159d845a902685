"""Clusters of sites and their orbits under the space group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from haljax.lattice.crystal import Lattice


@dataclass(frozen=True)
class Orbit:
    """All clusters equivalent to a prototype, modulo lattice translations; hashable.

    Attributes
    ----------
    clusters : (multiplicity, k, 4) sites, sorted, each cluster moved by a lattice vector so that its last site
        lies in cell (0, 0, 0). The empty cluster has multiplicity 1 and k = 0.
    functions : (multiplicity, k) which site function, >= 1, stands on each site.
    """

    clusters: tuple[tuple[tuple[int, ...], ...], ...]
    functions: tuple[tuple[int, ...], ...]

    @property
    def order(self) -> int:
        """Number of sites k of a cluster."""
        return len(self.clusters[0])

    @property
    def multiplicity(self) -> int:
        """Clusters per primitive cell."""
        return len(self.clusters)


def orbit(lattice: Lattice, prototype: Sequence[Sequence[int]], functions: Sequence[int] | None = None) -> Orbit:
    """The orbit of one cluster.

    Parameters
    ----------
    prototype : (k, 4) sites, or (k, 3) cells where the lattice has one site; empty for the empty cluster.
    functions : (k,) site functions, 1 to n_species - 1 of the site (default: all 1).

    Raises
    ------
    ValueError : a site twice, a site that the lattice lacks or that has no choice of species, a function that
        its site does not have, numbers that are not integers.
    """
    if not len(prototype):
        return Orbit(((),), ((),))
    sites = np.asarray(prototype, float).reshape(len(prototype), -1)
    if sites.shape[1] == 3 and lattice.n_sites == 1:
        sites = np.pad(sites, ((0, 0), (0, 1)))
    if sites.shape[1] != 4 or np.any(sites != np.round(sites)):
        raise ValueError(f"a cluster must be (k, 4) integers l, m, n, s, not {prototype!r}")
    sites = sites.astype(int)
    chosen = np.ones(len(sites), int) if functions is None else np.asarray(functions, int)
    if chosen.shape != (len(sites),):
        raise ValueError(f"{len(sites)} sites but functions {functions!r}: give one function for each site")
    if len(np.unique(sites, axis=0)) < len(sites):
        raise ValueError(f"the cluster {sites.tolist()} has a site twice")
    for site, function in zip(sites, chosen, strict=True):
        s = int(site[3])
        if s not in lattice.active:
            raise ValueError(
                f"the cluster {sites.tolist()} stands on basis site {s}, but the sites with a choice of species "
                f"are {list(lattice.active)}"
            )
        if not 1 <= function < lattice.n_species[s]:
            raise ValueError(
                f"function {function} on basis site {s}: it has the functions 1 to {lattice.n_species[s] - 1}"
            )
    images = _normal(_images(lattice, np.concatenate([sites, chosen[:, None]], axis=1)[None])[:, 0])
    images = np.unique(images, axis=0)
    return Orbit(_nested(images[:, :, :4]), _nested(images[:, :, 4]))


def orbits(lattice: Lattice, cutoffs: Mapping[int, float]) -> tuple[Orbit, ...]:
    """Every orbit whose clusters' sites are all within a cutoff of each other.

    Parameters
    ----------
    cutoffs : for orders k >= 2 (pairs, triplets, ...) the largest distance within a cluster, Å. Orders not
        named have no orbits.

    Returns
    -------
    the empty orbit, the point orbits, then by order, by the largest distance and by the sum of distances.

    Raises
    ------
    ValueError : an order below 2, a cutoff that is not positive.
    """
    for k, cutoff in cutoffs.items():
        if int(k) != k or k < 2:
            raise ValueError(f"cutoffs are given for orders 2 (pairs), 3, ..., not for {k!r}; points are always in")
        if not 0 < cutoff < np.inf:
            raise ValueError(f"the cutoff of order {k} must be a positive distance in Å, not {cutoff}")
    found = [orbit(lattice, ())]
    for order in sorted({1, *cutoffs}):
        shapes = _shapes(lattice, order, float(cutoffs[order]) if order > 1 else 0.0)
        distances = [_distances(lattice, np.array(shape)) for shape in shapes]
        rank = sorted(range(len(shapes)), key=lambda i: (*distances[i], shapes[i]))
        for i in rank:
            found += _decorations(lattice, shapes[i])
    return tuple(found)


def decompose(lattice: Lattice, clusters: np.ndarray, functions: np.ndarray) -> list[tuple[Orbit, float]]:
    """The mean over given clusters as a weighted mean over whole orbits, weights adding up to 1.

    For expansions from elsewhere, whose orbits are groups of clusters found by other means.

    Parameters
    ----------
    clusters : (n, k, 4) sites; functions : (n, k).

    Raises
    ------
    ValueError : the clusters are not whole orbits of the lattice, each as often as its equivalents; as `orbit`.
    """
    decorated = _normal(np.concatenate([clusters, functions[..., None]], axis=-1).astype(int))
    rows, counts = np.unique(decorated, axis=0, return_counts=True)
    left = {(_nested(row[:, :4]), _nested(row[:, 4])): count for row, count in zip(rows, counts, strict=True)}
    found = []
    while left:
        (sites, chosen), count = next(iter(left.items()))
        whole = orbit(lattice, sites, chosen)
        if any(left.pop(member, 0) != count for member in zip(whole.clusters, whole.functions, strict=True)):
            raise ValueError(
                f"the clusters equivalent to {sites} are not all there, or not equally often: the expansion has "
                "another symmetry than the lattice"
            )
        found.append((whole, float(count * whole.multiplicity / len(decorated))))
    return found


Shape = tuple[tuple[int, ...], ...]


@cache
def _shapes(lattice: Lattice, order: int, cutoff: float) -> tuple[Shape, ...]:
    """One cluster (order, 4) of each geometric orbit within the cutoff.

    Every cluster of k sites holds one of k - 1 sites within the same cutoff, so those, one of each orbit, and one
    more site near all of their sites give them all.
    """
    if order == 1:
        candidates = np.array([[[0, 0, 0, s]] for s in lattice.active])
    else:
        near = _neighbours(lattice, cutoff)
        grown = []
        for shape in map(np.array, _shapes(lattice, order - 1, cutoff)):
            more = shape[-1] * [1, 1, 1, 0] + near[shape[-1][3]]
            more = more[~np.any(np.all(more[:, None] == shape[None], axis=2), axis=1)]
            apart = lattice.cartesian(more)[:, None] - lattice.cartesian(shape)[None]
            more = more[np.all(np.linalg.norm(apart, axis=2) <= cutoff + lattice.tolerance, axis=1)]
            grown.append(np.concatenate([np.broadcast_to(shape, (len(more), *shape.shape)), more[:, None]], axis=1))
        candidates = np.concatenate(grown)
    if not len(candidates):
        return ()
    decorated = np.concatenate([candidates, np.ones_like(candidates[..., :1])], axis=2)
    images = _normal(_images(lattice, decorated))
    first = _lexicographic_minimum(images.reshape(len(images), len(candidates), -1))
    unique = np.unique(first, axis=0).reshape(-1, order, 5)[:, :, :4]
    return _nested(unique)


def _decorations(lattice: Lattice, shape: Shape) -> list[Orbit]:
    """All orbits of one shape: one for binary sites, more with several functions for a site."""
    choices = [range(1, lattice.n_species[site[3]]) for site in shape]
    return list(dict.fromkeys(orbit(lattice, shape, functions) for functions in product(*choices)))


def _neighbours(lattice: Lattice, cutoff: float) -> dict[int, np.ndarray]:
    """For each active basis site the other sites (K, 4) with a choice of species within the cutoff of it."""
    cell, positions = np.asarray(lattice.cell), np.asarray(lattice.positions)
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)  # distances between lattice planes
    spread = np.ptp(positions, axis=0) if len(positions) > 1 else np.zeros(3)
    reach = np.ceil((cutoff + lattice.tolerance) / heights + spread).astype(int)
    cells = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), axis=-1).reshape(-1, 3)
    sites = np.concatenate([np.pad(cells, ((0, 0), (0, 1)), constant_values=s) for s in lattice.active])
    found = {}
    for s in lattice.active:
        distance = np.linalg.norm(lattice.cartesian(sites) - lattice.cartesian(np.array([0, 0, 0, s])), axis=1)
        found[s] = sites[(distance > lattice.tolerance) & (distance <= cutoff + lattice.tolerance)]
    return found


def _images(lattice: Lattice, decorated: np.ndarray) -> np.ndarray:
    """Images (G, C, k, 5) of clusters (C, k, 5) of sites with their functions."""
    images = lattice.operate(decorated[..., :4])
    functions = np.broadcast_to(decorated[None, ..., 4:], (*images.shape[:-1], 1))
    return np.concatenate([images, functions], axis=-1)


def _normal(decorated: np.ndarray) -> np.ndarray:
    """Clusters (..., k, 5) with their sites sorted, moved by a lattice vector so that the last is in cell 0."""
    keys = tuple(decorated[..., i] for i in (3, 2, 1, 0))
    decorated = np.take_along_axis(decorated, np.lexsort(keys, axis=-1)[..., None], axis=-2)
    decorated[..., :3] -= decorated[..., -1:, :3].copy()
    return decorated


def _lexicographic_minimum(rows: np.ndarray) -> np.ndarray:
    """For rows (G, C, n) the lexicographically smallest (C, n) over the first axis."""
    candidate = np.ones(rows.shape[:2], bool)
    for column in np.moveaxis(rows, 2, 0):
        least = np.min(np.where(candidate, column, np.iinfo(rows.dtype).max), axis=0)
        candidate &= column == least[None]
    return rows[np.argmax(candidate, axis=0), np.arange(rows.shape[1])]


def _distances(lattice: Lattice, shape: np.ndarray) -> tuple[float, float]:
    """The largest distance in a cluster and their sum, Å, rounded so that equal ones are equal."""
    positions = lattice.cartesian(shape)
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    return round(float(apart.max()), 4), round(float(apart.sum()) / 2, 4)


def _nested(array: np.ndarray) -> tuple:
    return tuple(map(_nested, array)) if array.ndim > 1 else tuple(int(i) for i in array)
