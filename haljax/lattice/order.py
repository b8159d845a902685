"""Order parameters: how far the occupation follows given modulations of the lattice.

The sites of a commensurate cell number n_sub sublattices. With x_k the fraction of sublattice k that holds the
counted species, ``eta = Q x`` with ``Q = patterns / n_sub``. Source: Natarajan, Thomas, Puchala & Van der Ven, Phys.
Rev. B 96, 134204 (2017), doi:10.1103/PhysRevB.96.134204.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from haljax.lattice.crystal import Lattice
from haljax.lattice.ideal import checked
from haljax.lattice.polytope import Polytope, from_sublattices
from haljax.lattice.supercell import Supercell, integer_matrix

Array = Any  # numpy or JAX


class Wave(NamedTuple):
    """A modulation ``values[(q . R + offset) mod len(values)]`` of the cells R = (l, m, n).

    All sites of a cell have the same.

    Attributes
    ----------
    q : three integers. offset : integer. values : integers; ``(1,)`` is the uniform wave.
    """

    q: tuple[int, int, int]
    offset: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class OrderParameters:
    """d order parameters of a lattice; hashable, so that they can be a static argument. Made by `order_parameters`.

    Attributes
    ----------
    lattice : Lattice
    cell : (3, 3) integers; columns are the vectors of the commensurate cell in primitive vectors.
    patterns : (d, n_sub) integers, in the order of `sublattices`.
    sites : basis sites on which the species is counted.
    species : the number of the counted species on those sites.
    """

    lattice: Lattice
    cell: tuple[tuple[int, int, int], ...]
    patterns: tuple[tuple[int, ...], ...]
    sites: tuple[int, ...]
    species: int

    @property
    def d(self) -> int:
        """Number of order parameters."""
        return len(self.patterns)

    @property
    def n_sub(self) -> int:
        """Number of sublattices."""
        return len(self.patterns[0])

    @property
    def sublattices(self) -> np.ndarray:
        """(n_sub, 4) one site of each sublattice, in the order of `patterns`."""
        return _sublattices(self.cell, self.lattice.n_sites, self.sites)

    @property
    def Q(self) -> np.ndarray:
        """(d, n_sub) with eta = Q x."""
        return np.array(self.patterns) / self.n_sub

    @property
    def S(self) -> np.ndarray:
        """(n_sub, d) with x = S eta where all order beside these parameters vanishes: the pseudo-inverse of Q."""
        # the Gram matrix of integer patterns is exact, so that S is too where they are orthogonal
        patterns = np.array(self.patterns)
        return self.n_sub * np.linalg.solve(patterns @ patterns.T, patterns).T

    @property
    def polytope(self) -> Polytope:
        """The order parameters that need no other order, ``0 <= S eta <= 1``; computed once.

        All of them are admissible. Where d < n_sub, some beyond are too: those of states with other order as well.
        """
        return _polytope(self)

    @property
    def group(self) -> np.ndarray:
        """(G, d, d) the matrices by which the space group, translations included, acts on eta; computed once.

        Moving a configuration by an operation takes its eta to ``matrix @ eta``. Operations with equal matrices
        appear once; the identity comes first.

        Raises
        ------
        ValueError : some operation takes a pattern to one that is no combination of the patterns.
        """
        return _group(self)

    def counters(self, supercell: Supercell) -> np.ndarray:
        """(d, n_sites) integer weights, ``eta = counters @ (occupation == species) / n_counted``.

        n_counted is the number of sites of the supercell on which the species is counted, ``n_cells * len(sites)``;
        other sites weigh 0.

        Raises
        ------
        ValueError : the supercell is not commensurate with the cell or does not fit the lattice.
        """
        if supercell.n_basis != self.lattice.n_sites:
            raise ValueError(f"the supercell has {supercell.n_basis} basis sites, the lattice {self.lattice.n_sites}")
        if not supercell.commensurate(self.cell):
            raise ValueError(
                f"the supercell {supercell.matrix} is not commensurate with the order parameters' cell {self.cell}: "
                "its columns must be integer combinations of that cell's columns"
            )
        return self.modulation(supercell.sites()).T

    def modulation(self, sites: np.ndarray) -> np.ndarray:
        """Patterns (..., d) at sites (..., 4), 0 on sites that are not counted."""
        within = Supercell(self.cell, self.lattice.n_sites)
        table = np.zeros((within.n_sites, self.d), int)
        table[within.index(self.sublattices)] = np.array(self.patterns).T
        return table[within.index(np.asarray(sites))]


def order_parameters(
    lattice: Lattice,
    cell: Array,
    waves: Sequence[Wave] | None = None,
    patterns: Array | None = None,
    species: int = 1,
    sites: Sequence[int] | None = None,
) -> OrderParameters:
    """Order parameters from waves or from explicit patterns.

    Parameters
    ----------
    cell : (3, 3) integers, columns in primitive vectors: a period of all patterns.
    waves : d waves, or
    patterns : (d, n_sub) integers, n_sub times the rows of Q. The sublattices are ordered as the sites of
        ``Supercell(cell)`` (see `OrderParameters.sublattices`), counted basis sites only.
    species : the number of the counted species.
    sites : basis sites on which it is counted (default: all with a choice of species); the same species there.

    Raises
    ------
    ValueError : a wave that the cell does not hold, patterns that are not integers or depend on each other, sites
        that do not have the species.
    """
    matrix = integer_matrix(cell, "the order parameters' cell")
    counted = lattice.active if sites is None else tuple(map(int, sites))
    if not counted or len(set(counted)) < len(counted) or not set(counted) <= set(lattice.active):
        raise ValueError(f"sites {list(counted)}: count on different ones of the active basis sites {lattice.active}")
    names = {lattice.species[s][species] if 0 <= species < lattice.n_species[s] else None for s in counted}
    if len(names) > 1 or None in names:
        raise ValueError(
            f"species {species} is not one and the same on the counted sites, which hold "
            f"{[lattice.species[s] for s in counted]}: choose other sites or another number"
        )
    nested = tuple((int(a), int(b), int(c)) for a, b, c in matrix)
    found = _sublattices(nested, lattice.n_sites, counted)
    if (waves is None) == (patterns is None):
        raise ValueError("give either waves or patterns")
    if waves is not None:
        values = np.array([_wave(Wave(*wave), matrix, found) for wave in waves]).reshape(len(waves), len(found))
    else:
        given = np.asarray(patterns, float)
        if given.ndim != 2 or given.shape[1] != len(found):
            raise ValueError(
                f"patterns of shape {given.shape}: the cell has {len(found)} sublattices, so give (d, {len(found)})"
            )
        values = np.round(given)
        if not np.all(np.abs(given - values) < 1e-9):
            worst = given.flat[np.argmax(np.abs(given - values))]
            raise ValueError(
                f"patterns must be integers but hold {worst}: give n_sub = {len(found)} times the rows of Q"
            )
        values = values.astype(int)
    checked(values)
    return OrderParameters(lattice, nested, tuple(tuple(map(int, row)) for row in values), counted, int(species))


def zigzag(lattice: Lattice) -> OrderParameters:
    """The seven order parameters of the zigzag order in O3 LixCoO2 (doi:10.48550/arXiv.2503.07619).

    eta_0 is the vacancy fraction; the pairs (1, 2), (3, 6) and (4, 5) are the two phases of three waves of period 4.
    The lattice has one basis site for Li and vacancy, species 1, with a1 and a2 60 degrees apart in the layer and
    a3 = (a1 + a2) / 3 + c / 3.
    """
    sign = (1, 1, -1, -1)
    phases = [((2, 1, 3), 2), ((2, 1, 3), 3), ((1, 3, 2), 3), ((1, 2, 3), 3), ((1, 2, 3), 2), ((1, 3, 2), 2)]
    waves = [Wave((0, 0, 0), 0, (1,)), *(Wave(q, offset, sign) for q, offset in phases)]
    return order_parameters(lattice, [[4, 4, 2], [-4, 0, -2], [0, 0, 2]], waves)


def check_inside(order_parameters: OrderParameters, eta: Array, tolerance: float = 1e-9) -> None:
    """Raise a ValueError unless every point of eta (..., d) is in the polytope, 0 <= S eta <= 1."""
    eta = np.asarray(eta, float)
    if eta.ndim == 0 or eta.shape[-1] != order_parameters.d:
        raise ValueError(f"eta of shape {eta.shape}: give {order_parameters.d} order parameters for each point")
    points = eta.reshape(-1, order_parameters.d)
    x = points @ order_parameters.S.T
    excess = np.max(np.abs(x - 0.5), axis=1, initial=0.0) - 0.5
    outside = ~(excess <= tolerance)  # NaN is outside
    if np.any(outside):
        i = int(np.argmax(outside))
        k = int(np.argmax(np.abs(x[i] - 0.5)))
        more = f" ({int(outside.sum())} of {len(points)} points are outside)" if len(points) > 1 else ""
        raise ValueError(
            f"order parameters {points[i].tolist()} (point {i}) are outside the admissible polytope: sublattice {k} "
            f"would hold a fraction {x[i, k]:.4g} of the counted species, without other order{more}"
        )


def _wave(wave: Wave, cell: np.ndarray, sublattices: np.ndarray) -> np.ndarray:
    values, q = np.asarray(wave.values, float), np.asarray(wave.q, float)
    if values.ndim != 1 or not len(values) or np.any(values != np.round(values)):
        raise ValueError(f"the values of a wave must be integers, not {wave.values}: the patterns are counted exactly")
    if q.shape != (3,) or np.any(q != np.round(q)) or wave.offset != round(wave.offset):
        raise ValueError(f"q = {wave.q} and offset = {wave.offset} of a wave must be integers")
    period = len(values)
    steps = q.astype(int) @ cell % period
    values = values.astype(int)
    phase = np.arange(period)
    if any(np.any(values != values[(phase + step) % period]) for step in steps):
        raise ValueError(
            f"the wave {tuple(wave)} is not periodic in the cell {cell.tolist()}: q . t must be a multiple of "
            f"{period} for each of its columns t"
        )
    return values[(sublattices[:, :3] @ q.astype(int) + int(wave.offset)) % period]


@lru_cache(maxsize=64)
def _sublattices(cell: tuple, n_basis: int, sites: tuple[int, ...]) -> np.ndarray:
    found = Supercell(cell, n_basis).sites()
    return found[np.isin(found[:, 3], sites)]


@lru_cache(maxsize=16)
def _polytope(chosen: OrderParameters) -> Polytope:
    return from_sublattices(chosen.S)


@lru_cache(maxsize=16)
def _group(chosen: OrderParameters) -> np.ndarray:
    lattice, commensurate = chosen.lattice, Supercell(chosen.cell, chosen.lattice.n_sites)
    # Rotations need not leave the commensurate cell as it is, but they do leave n times the lattice, which is in it.
    cubes = (Supercell(((n, 0, 0), (0, n, 0), (0, 0, n)), lattice.n_sites) for n in range(1, commensurate.n_cells + 1))
    sites = next(cube for cube in cubes if cube.commensurate(chosen.cell)).sites()
    weights = chosen.modulation(sites).astype(float)  # (n_sites, d)
    back = np.linalg.solve(weights.T @ weights, weights.T)
    # eta of a moved configuration reads the pattern at the image of each site: s(g R) = sum_j matrix[i, j] s_j(R)
    images = lattice.operate(sites)
    matrices = []
    for cell in commensurate.cells():
        moved = chosen.modulation(images + np.append(cell, 0))  # (G, n_sites, d)
        matrix = np.swapaxes(back @ moved, 1, 2)
        missed = np.abs(weights @ np.swapaxes(matrix, 1, 2) - moved).max(axis=(1, 2))
        if np.any(missed > 1e-9):
            g = int(np.argmax(missed))
            i = int(np.argmax(np.abs(weights @ matrix[g].T - moved[g]).max(axis=0)))
            raise ValueError(
                f"the order parameters are not closed under the space group: rotation "
                f"{lattice.operations.rotations[g].tolist()} with translation {cell.tolist()} takes order parameter "
                f"{i} to a pattern that is no combination of the {chosen.d} chosen; add the patterns that it needs"
            )
        matrices.append(matrix)
    every = np.concatenate(matrices)
    whole = np.round(every)
    every = np.where(np.abs(every - whole) < 1e-9, whole, every) + 0.0  # signed permutations exactly; no -0
    _, first = np.unique(np.round(every, 8).reshape(len(every), -1), axis=0, return_index=True)
    unique = every[first]
    identity = np.all(unique == np.eye(chosen.d)[None], axis=(1, 2))
    return np.concatenate([unique[identity], unique[~identity]])
