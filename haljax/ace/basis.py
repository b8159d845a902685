"""Which functions a linear ACE basis holds: their labels, channels, monomials and couplings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from haljax.ace.core import core_radii
from haljax.ace.coupling import invariants
from haljax.ace.radial import product_expansion

L_WEIGHT = 1.5  # total degree = sum of n + 1.5 l (ACE1x's wL)
P_ENVELOPE = 2  # envelope exponents of the many-body radial functions, inside the orthogonality
CORE_INNER, CORE_OUTER = 0.4, 0.8  # fractions of the sum of covalent radii between which core hands over to fit

# Bond lengths in Å, as ACE1x tabulates them (data/length_scales_VASP_auto_length_scales.yaml); the others are
# twice the covalent radius.
BOND_LENGTHS = {
    "H": 1.2, "C": 1.4, "N": 1.6, "O": 1.7, "Al": 2.9, "Si": 2.4, "Ti": 2.9, "Cu": 2.6, "W": 2.8,
}  # fmt: skip


class Label(NamedTuple):
    """One basis function: centre element (None for a pair term) and its (element, n, l) factors."""

    centre: str | None
    factors: tuple[tuple[str, int, int], ...]

    @property
    def order(self) -> int:
        """Correlation order: 1 for a pair term."""
        return 1 if self.centre is None else len(self.factors)


class Tables(NamedTuple):
    """Index tables that the features are computed with (numpy, built once a basis).

    Monomials of one correlation order stand in one level; each is a parent of the level below times one
    channel. Level 0 holds the l = 0, m = 0 channels alone, for the single-neighbour correction.
    """

    l_max: int
    n_of_l: tuple[int, ...]  # radial functions needed for each l
    levels: tuple[tuple[np.ndarray, np.ndarray], ...]  # (parents, factors) for order 2, 3, ...
    rows: np.ndarray  # (nnz,) many-body function of each coupling entry, sorted
    columns: np.ndarray  # (nnz,) monomial index over the concatenated levels (singles first)
    weights: np.ndarray  # (nnz,)
    products: tuple[
        tuple[np.ndarray, np.ndarray, np.ndarray], ...
    ]  # the same by order: rows, (n, nu) channels, weights


@dataclass(frozen=True)
class ACEBasis:
    """A linear ACE basis, static and hashable: it may be closed over or passed as a static argument.

    ``len(basis)`` is the number of functions, ``basis.labels`` names each of them. Order of the functions:
    pair terms of each unordered element pair, then the many-body terms of each centre element.
    """

    elements: tuple[str, ...]
    cutoff: float
    order: int
    max_degree: int

    def __post_init__(self) -> None:
        from ase.data import atomic_numbers

        if not self.elements or len(set(self.elements)) != len(self.elements):
            raise ValueError(f"elements must be distinct and at least one, got {self.elements}")
        for element in self.elements:
            if element not in atomic_numbers:
                raise ValueError(f"{element!r} is not a chemical symbol")
        if not self.cutoff > 0:
            raise ValueError(f"cutoff must be a positive distance in Å, got {self.cutoff}")
        if self.order < 1 or self.max_degree < 1:
            raise ValueError(f"order and max_degree must be at least 1, got {self.order} and {self.max_degree}")
        if np.any(self.core_radii[1] >= self.cutoff):
            raise ValueError(
                f"cutoff {self.cutoff} Å lies inside the repulsive core of {self.elements} "
                f"(up to {self.core_radii[1].max():.2f} Å); choose a larger cutoff"
            )

    def __len__(self) -> int:
        return self.n_pair + len(self.elements) * len(self._many_body)

    @property
    def n_species(self) -> int:
        return len(self.elements)

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """Atomic numbers."""
        from ase.data import atomic_numbers

        return tuple(atomic_numbers[e] for e in self.elements)

    @cached_property
    def core_radii(self) -> tuple[np.ndarray, np.ndarray]:
        """(Z, Z) radii in Å: pure core below the first, pure fit above the second."""
        return core_radii(self.numbers, CORE_INNER, CORE_OUTER)

    @cached_property
    def bond_lengths(self) -> np.ndarray:
        """(Z, Z) typical distances r0 in Å at which the distance transform is steepest."""
        from ase.data import covalent_radii

        bond = np.array(
            [BOND_LENGTHS.get(e, 2 * covalent_radii[z]) for e, z in zip(self.elements, self.numbers, strict=True)]
        )
        return (bond[:, None] + bond[None, :]) / 2

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Unordered element pairs, in the order of the pair blocks."""
        z = range(self.n_species)
        return tuple((a, b) for a in z for b in z if a <= b)

    def words(self) -> str:
        """ "order 3, degree 10, cutoff 5 Å, 1138 functions"."""
        return f"order {self.order}, degree {self.max_degree}, cutoff {self.cutoff:g} Å, {len(self)} functions"

    @property
    def n_pair(self) -> int:
        return len(self.pairs) * self.max_degree

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        e = self.elements
        pair = [Label(None, ((e[a], n, 0), (e[b], n, 0))) for a, b in self.pairs for n in range(1, self.max_degree + 1)]
        many = [
            Label(centre, tuple((e[z], n, degree) for degree, z, n in factors))
            for centre in e
            for factors, _ in self._many_body
        ]
        return tuple(pair + many)

    @cached_property
    def _many_body(self) -> tuple[tuple[tuple[tuple[int, int, int], ...], tuple], ...]:
        """((l, z, n) factors, invariant) of every many-body function of one centre."""
        functions = []
        for order in range(2, self.order + 1):
            for factors in _products(order, self.max_degree, self.n_species):
                groups = tuple(factors.index(f) for f in factors)
                for invariant in invariants(tuple(f[0] for f in factors), groups):
                    functions.append((factors, invariant))
        return tuple(functions)

    @cached_property
    def tables(self) -> Tables:
        return _tables(self._many_body, self.n_species)

    @property
    def n_monomials(self) -> int:
        """Products of the atomic basis over all levels, singles first."""
        return self.n_species * self.tables.n_of_l[0] + sum(len(parents) for parents, _ in self.tables.levels)

    def smoothness(self, power: float) -> np.ndarray:
        """(M,) diagonal prior P that grows with roughness: 1 + n^p for pair terms, 1 + sum_t (n_t^p + l_t^p) else.

        In the manner of ACE1x's algebraic prior, which also counts the m of each monomial.
        """
        return np.array(
            [
                1.0
                + (
                    label.factors[0][1] ** power
                    if label.centre is None
                    else sum(n**power + degree**power for _, n, degree in label.factors)
                )
                for label in self.labels
            ]
        )


def _products(order: int, max_degree: int, n_species: int) -> Iterator[tuple[tuple[int, int, int], ...]]:
    """Multisets of (l, z, n) channels with total degree within bounds and an even sum of l, sorted."""
    channels = sorted(
        (degree, z, n)
        for n in range(1, max_degree + 1)
        for degree in range(int((max_degree - n) / L_WEIGHT) + 1)
        for z in range(n_species)
    )

    def extend(prefix: tuple, start: int, budget: float) -> Iterator[tuple]:
        left = order - len(prefix)
        if left == 0:
            if sum(f[0] for f in prefix) % 2 == 0:
                yield prefix
            return
        for i in range(start, len(channels)):
            degree, _, n = channels[i]
            cost = n + L_WEIGHT * degree
            if cost + (left - 1) <= budget + 1e-9:
                yield from extend((*prefix, channels[i]), i, budget - cost)

    return extend((), 0, max_degree)


def _tables(functions: tuple, n_species: int) -> Tables:
    # Radial functions needed for each l; the single-neighbour correction needs more of them at l = 0.
    n_of_l: dict[int, int] = {0: 1}
    corrections = []
    for factors, invariant in functions:
        for degree, _, n in factors:
            n_of_l[degree] = max(n_of_l.get(degree, 0), n)
        species = {z for _, z, _ in factors}
        expansion = None
        if len(species) == 1:
            # One neighbour on the z axis sees only m = 0, where Y_l0 = sqrt((2 l + 1) / 4 pi).
            angular = sum(c for ms, c in invariant if not any(ms))
            for degree, _, _ in factors:
                angular *= np.sqrt((2 * degree + 1) / (4 * np.pi))
            if abs(angular) > 1e-12:
                ns = tuple(sorted(n for _, _, n in factors))
                radial = product_expansion(ns, P_ENVELOPE, P_ENVELOPE)
                expansion = (species.pop(), -angular * np.sqrt(4 * np.pi) * radial)
                n_of_l[0] = max(n_of_l[0], len(radial))
        corrections.append(expansion)
    l_max = max(n_of_l)
    counts = tuple(n_of_l.get(degree, 0) for degree in range(l_max + 1))
    offsets = np.cumsum([0] + [n_species * n * (2 * degree + 1) for degree, n in enumerate(counts)])

    def channel(degree: int, z: int, n: int, m: int) -> int:
        return int(offsets[degree]) + (z * counts[degree] + n - 1) * (2 * degree + 1) + m + degree

    monomials: dict[int, set] = {}
    entries = []  # (function, monomial, weight)
    for row, ((factors, invariant), correction) in enumerate(zip(functions, corrections, strict=True)):
        for ms, weight in invariant:
            monomial = tuple(sorted(channel(l, z, n, m) for (l, z, n), m in zip(factors, ms, strict=True)))
            monomials.setdefault(len(monomial), set()).add(monomial)
            entries.append((row, monomial, weight))
        if correction is not None:
            z, radial = correction
            entries += [(row, (channel(0, z, n + 1, 0),), p) for n, p in enumerate(radial) if abs(p) > 1e-14]

    # From the highest order down, give every monomial a parent one order lower, adding those not there.
    top = max(monomials, default=1)
    parent_of = {}
    for order in range(top, 2, -1):
        lower = monomials.setdefault(order - 1, set())
        for monomial in sorted(monomials[order]):
            cuts = [(monomial[:t] + monomial[t + 1 :], monomial[t]) for t in range(order)]
            parent, factor = next((cut for cut in cuts if cut[0] in lower), cuts[-1])
            lower.add(parent)
            parent_of[monomial] = (parent, factor)
    n_singles = n_species * counts[0]
    position: dict[tuple[int, ...], int] = {(c,): c for c in range(n_singles)}
    index_in_level: dict[tuple, int] = {}
    levels, start = [], n_singles
    for order in range(2, top + 1):
        ordered = sorted(monomials[order])
        if order == 2:
            parents, factors_ = [m[0] for m in ordered], [m[1] for m in ordered]
        else:
            parents = [index_in_level[parent_of[m][0]] for m in ordered]
            factors_ = [parent_of[m][1] for m in ordered]
        index_in_level = {m: i for i, m in enumerate(ordered)}
        position |= {m: start + i for i, m in enumerate(ordered)}
        start += len(ordered)
        levels.append((np.array(parents, np.int32), np.array(factors_, np.int32)))
    entries.sort(key=lambda entry: entry[0])
    return Tables(
        l_max=l_max,
        n_of_l=counts,
        levels=tuple(levels),
        rows=np.array([e[0] for e in entries], np.int32),
        columns=np.array([position[e[1]] for e in entries], np.int32),
        weights=np.array([e[2] for e in entries], float),
        products=tuple(
            (
                np.array([row for row, _, _ in some], np.int32),
                np.array([monomial for _, monomial, _ in some], np.int32),
                np.array([weight for _, _, weight in some], float),
            )
            for order in range(1, top + 1)
            if (some := [e for e in entries if len(e[1]) == order])
        ),
    )
