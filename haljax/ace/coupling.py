"""Rotation-invariant polynomials of the one-particle basis, of any correlation order.

An invariant is a vector killed by the raising operator L+ among the products of total weight zero. Working
on monomials (products with repeated factors identified) makes permutation symmetry automatic, so one null
space replaces recursive Clebsch-Gordan coupling and its later symmetrisation.
Scaling is that of ACE1.jl: sqrt(|H|) times a unit vector of the full tensor product, H the permutations
of identical factors (Dusson et al., J Comput Phys 454, 110946 (2022), doi:10.1016/j.jcp.2022.110946).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from functools import cache
from itertools import product

import numpy as np

Ms = tuple[int, ...]


def _canonical(ms: Ms, groups: tuple[int, ...]) -> Ms:
    """Sort the m of identical factors; ``groups`` is non-decreasing, so sorting pairs keeps factors in place."""
    return tuple(m for _, m in sorted(zip(groups, ms, strict=True)))


def _multiplicity(ms: Ms, groups: tuple[int, ...]) -> int:
    """How many distinct orderings of the factors give this monomial."""
    counts = Counter(zip(groups, ms, strict=True))
    return math.prod(math.factorial(k) for k in Counter(groups).values()) // math.prod(
        math.factorial(k) for k in counts.values()
    )


def _null_space(matrix: np.ndarray) -> np.ndarray:
    """Orthonormal null vectors (rows), fixed by Gram-Schmidt on the projector's columns.

    The projector is unique while LAPACK's basis of it is not, so saved coefficients mean the same
    functions on every machine.
    """
    n = matrix.shape[1]
    if matrix.shape[0] == 0:
        return np.eye(n)
    _, s, vt = np.linalg.svd(matrix)
    rank = int(np.sum(s > 1e-10 * max(1.0, s[0])))
    projector = vt[rank:].T @ vt[rank:]
    vectors: list[np.ndarray] = []
    for column in projector.T:
        for _ in range(2):  # once more against rounding
            for v in vectors:
                column = column - v * (v @ column)
        norm = np.linalg.norm(column)
        if norm > 1e-6:
            vectors.append(column / norm)
        if len(vectors) == n - rank:
            break
    return np.array(vectors).reshape(-1, n)


def _to_real(ls: tuple[int, ...], ms: Ms) -> list[tuple[Ms, complex]]:
    """Expand a product of complex harmonics in products of real ones."""
    half = 1 / math.sqrt(2)
    factors = []
    for m in ms:
        if m == 0:
            factors.append([(0, 1.0 + 0j)])
        elif m > 0:
            factors.append([(m, (-1) ** m * half + 0j), (-m, (-1) ** m * half * 1j)])
        else:
            factors.append([(-m, half + 0j), (m, -half * 1j)])
    return [(tuple(m for m, _ in term), math.prod((c for _, c in term), start=1.0 + 0j)) for term in product(*factors)]


@cache
def invariants(ls: tuple[int, ...], groups: tuple[int, ...]) -> tuple[tuple[tuple[Ms, float], ...], ...]:
    """All independent invariants of a product of harmonics of degrees ``ls``.

    Args:
        ls: degree of each factor; their sum must be even (reflection).
        groups: equal numbers mark identical factors; non-decreasing.

    Returns:
        One entry an invariant: ((m_1, ..., m_nu), coefficient) over products of real harmonics.
    """
    every = {_canonical(ms, groups) for ms in product(*(range(-deg, deg + 1) for deg in ls)) if sum(ms) == 0}
    monomials = sorted(every)
    column = {ms: i for i, ms in enumerate(monomials)}
    row: dict[Ms, int] = {}
    entries = []
    for ms in monomials:
        for t, (degree, m) in enumerate(zip(ls, ms, strict=True)):
            if m < degree:
                raised = _canonical((*ms[:t], m + 1, *ms[t + 1 :]), groups)
                i = row.setdefault(raised, len(row))
                entries.append((i, column[ms], math.sqrt(degree * (degree + 1) - m * (m + 1))))
    root = np.sqrt([_multiplicity(ms, groups) for ms in monomials])
    raising = np.zeros((len(row), len(monomials)))
    for i, j, value in entries:
        raising[i, j] += value * root[j]
    permutations = math.prod(math.factorial(k) for k in Counter(groups).values())
    result = []
    for vector in _null_space(raising):
        weights = math.sqrt(permutations) * root * vector
        real: defaultdict[Ms, complex] = defaultdict(complex)
        for ms, weight in zip(monomials, weights, strict=True):
            if abs(weight) > 1e-13:
                for real_ms, c in _to_real(ls, ms):
                    real[_canonical(real_ms, groups)] += weight * c
        result.append(tuple((ms, c.real) for ms, c in sorted(real.items()) if abs(c) > 1e-12))
    return tuple(result)
