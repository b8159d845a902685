"""Polynomials of order parameters that a symmetry group leaves as they are, found by the Reynolds operator.

The mean of ``m(g x)`` over a group is invariant for every monomial m, and such means span all invariants (Sturmfels,
Algorithms in Invariant Theory, doi:10.1007/978-3-211-77417-5, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from math import factorial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # numpy or JAX
Word = tuple[int, ...]  # a monomial as the sorted list of its factors

BOX = 0.5  # |eta| of an ordering parameter is at most this: the patterns are +-1, the fractions 0 to 1


@dataclass(frozen=True)
class Invariants:
    """F polynomials of d order parameters; hashable, so that it can be a static argument.

    Attributes
    ----------
    exponents : (P, d) of the monomials that occur.
    coefficients : (F, P)
    """

    exponents: tuple[tuple[int, ...], ...]
    coefficients: tuple[tuple[float, ...], ...]

    def __len__(self) -> int:
        return len(self.coefficients)

    @property
    def degrees(self) -> tuple[int, ...]:
        """Degree of each polynomial."""
        degree = np.sum(self.exponents, axis=1)
        return tuple(int(np.max(degree[np.array(row) != 0])) for row in self.coefficients)

    def __call__(self, eta: Array) -> jax.Array:
        """Values (..., F) at order parameters (..., d); jittable, any number of times differentiable.

        Raises
        ------
        ValueError : eta does not have d entries.
        """
        eta = jnp.asarray(eta)
        d = len(self.exponents[0])
        if eta.ndim == 0 or eta.shape[-1] != d:
            raise ValueError(f"eta of shape {eta.shape}: these invariants are of {d} order parameters")
        eta = eta.astype(jnp.promote_types(eta.dtype, jnp.float32))
        # Each monomial is one of a degree less times one coordinate: no power, whose derivative is NaN at 0. Both are
        # picked by products with 0-1 matrices, whose derivatives are products again where those of gathers scatter.
        values = jnp.ones((*eta.shape[:-1], 1), eta.dtype)
        total = jnp.zeros((*eta.shape[:-1], len(self)), eta.dtype)
        for parent, factor, coefficients in self._levels:
            values = _product(values, parent) * _product(eta, factor)
            total = total + _product(values, coefficients)
        return total

    @cached_property
    def _levels(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each degree 0-1 matrices to its monomials from those below and from eta, and coefficients (., F)."""
        words = [tuple(np.repeat(np.arange(len(row)), row).tolist()) for row in self.exponents]
        needed: set[Word] = {word[:k] for word in words for k in range(1, len(word) + 1)}
        of_word = dict(zip(words, np.array(self.coefficients).T, strict=True))
        nothing = np.zeros(len(self.coefficients))
        below: dict[Word, int] = {(): 0}
        levels = []
        for degree in range(1, max(map(len, words)) + 1):
            level = sorted(word for word in needed if len(word) == degree)
            parent = np.eye(len(below))[:, [below[word[:-1]] for word in level]]
            factor = np.eye(len(self.exponents[0]))[:, [word[-1] for word in level]]
            levels.append((parent, factor, np.array([of_word.get(word, nothing) for word in level])))
            below = {word: i for i, word in enumerate(level)}
        return levels


def invariants(group: Array, degree: int) -> Invariants:
    """A linear basis of the polynomials of degrees 1 to `degree` that a group leaves invariant.

    Coordinates that every matrix leaves alone (a composition) are features of their own, of degree 1, and come
    first; the rest are polynomials of the other coordinates, products of lower ones included, by degree. Each is
    scaled so that the sum of its coefficients' magnitudes is 1 over the box ``|eta| <= 1/2``; the coordinates left
    alone are not scaled.

    Parameters
    ----------
    group : (G, d, d) all matrices of a finite group; quick for signed permutations, otherwise d to the power of the
        degree must stay moderate.

    Raises
    ------
    ValueError : a degree below 1, matrices of the wrong shape, not invertible or not finite, no group,
        a degree up to which nothing is invariant.
    """
    group = np.asarray(group, float)
    if group.ndim != 3 or group.shape[1] != group.shape[2] or not group.size or not np.all(np.isfinite(group)):
        raise ValueError(f"the group must be (G, d, d) finite matrices, not of shape {group.shape}")
    if degree != int(degree) or degree < 1:
        raise ValueError(f"the degree must be an integer >= 1, not {degree}")
    _check_group(group)
    d = group.shape[1]
    eye = np.eye(d)
    alone = np.all((np.abs(group - eye) < 1e-9).all(axis=1) & (np.abs(group - eye) < 1e-9).all(axis=2), axis=0)
    moved = np.flatnonzero(~alone)
    polynomials: list[dict[tuple[int, ...], float]] = [{tuple(map(int, eye[i])): 1.0} for i in np.flatnonzero(alone)]
    if len(moved):
        rest = np.unique(np.round(group[:, moved][:, :, moved], 12), axis=0)
        signed = np.all(np.isin(rest, (-1.0, 0.0, 1.0))) and np.all(np.abs(rest).sum(axis=1) == 1)
        for k in range(1, int(degree) + 1):
            words = list(combinations_with_replacement(range(len(moved)), k))
            found = _orbit_sums(rest, words) if signed else _reynolds(rest, words)
            for row in found:
                row = row / (np.abs(row).sum() * BOX**k)
                polynomials.append(
                    {
                        tuple(np.bincount(moved[list(words[j])], minlength=d).tolist()): row[j]
                        for j in np.flatnonzero(row)
                    }
                )
    if not polynomials:
        raise ValueError(f"the group has no invariant up to degree {degree}: take a higher one")
    exponents = tuple(sorted({e for p in polynomials for e in p}, key=lambda e: (sum(e), e[::-1])))
    coefficients = tuple(tuple(float(p.get(e, 0.0)) for e in exponents) for p in polynomials)
    return Invariants(exponents, coefficients)


def _product(values: jax.Array, matrix: np.ndarray) -> jax.Array:
    return jnp.matmul(values, jnp.asarray(matrix, values.dtype), precision="highest")


def _orbit_sums(group: np.ndarray, words: list[Word]) -> np.ndarray:
    """Invariants (n, len(words)) of a group of signed permutations: sums over orbits of monomials, in whole numbers.

    A monomial that some matrix takes to its own negative has the mean zero.
    """
    target = np.argmax(np.abs(group), axis=2)  # x_i -> sign_i x_target_i
    sign = np.take_along_axis(group, target[:, :, None], axis=2)[:, :, 0]
    factors = np.array(words)
    images = np.sort(target[:, factors], axis=2)  # (G, n, k)
    signs = np.prod(sign[:, factors], axis=2)
    place = {word: i for i, word in enumerate(words)}
    seen: set[int] = set()
    found = []
    for i in range(len(words)):
        if i in seen:
            continue
        row = np.zeros(len(words))
        orbit = [place[tuple(image)] for image in images[:, i].tolist()]
        np.add.at(row, orbit, signs[:, i])
        seen.update(orbit)
        if np.any(row):
            found.append(np.sign(row))
    return np.array(found).reshape(len(found), len(words))


def _reynolds(group: np.ndarray, words: list[Word]) -> np.ndarray:
    """Invariants (n, len(words)) of any finite group: the range of the Reynolds operator, in reduced echelon form."""
    k, n = len(words[0]), len(words)
    total, chunk = np.zeros((n, n)), max(1, 10**7 // n**2)
    for start in range(0, len(group), chunk):
        total += _symmetric_powers(group[start : start + chunk], k).sum(axis=0)
    # Row i is the mean of monomial i over the group, so the matrix projects rows of coefficients onto the invariants.
    mean = total / len(group)
    rank = int(round(np.trace(mean)))
    # With monomials scaled so, orthogonal matrices act by orthogonal matrices, and the projection is well conditioned.
    norm = np.sqrt([np.prod([factorial(int(n)) for n in np.bincount(word)]) / factorial(k) for word in words])
    _, _, vt = np.linalg.svd(mean * (norm[None, :] / norm[:, None]))
    rows = vt[:rank] / norm[None, :]
    for i in range(rank):  # Gauss-Jordan with full pivoting, so that few coefficients remain
        j, column = divmod(int(np.argmax(np.abs(rows[i:]))), len(words))
        rows[[i, i + j]] = rows[[i + j, i]]
        rows[i] /= rows[i, column]
        others = np.arange(rank) != i
        rows[others] -= rows[others][:, column : column + 1] * rows[i][None, :]
    rows = rows @ mean  # back onto the invariants to rounding
    rows[np.abs(rows) < 1e-13] = 0
    return rows


def _symmetric_powers(matrices: np.ndarray, k: int) -> np.ndarray:
    """(G, n, n) coefficients of every monomial of degree k after x -> matrix @ x, in the order of the words."""
    d = matrices.shape[1]
    power: np.ndarray = np.ones((len(matrices), 1, 1))
    lower: list[Word] = [()]
    for degree in range(1, k + 1):
        words = list(combinations_with_replacement(range(d), degree))
        place = {word: i for i, word in enumerate(words)}
        below = {word: i for i, word in enumerate(lower)}
        parent, last = np.array([(below[word[:-1]], word[-1]) for word in words]).T
        grown = np.zeros((len(matrices), len(words), len(words)))
        for j in range(d):
            product = [place[tuple(sorted((*word, j)))] for word in lower]
            grown[:, :, product] += matrices[:, last, j, None] * power[:, parent]
        power, lower = grown, words
    return power


def _check_group(group: np.ndarray) -> None:
    """Raise unless all products are in the set, compared by one generic linear function of their entries."""
    d = group.shape[1]
    weight = np.random.default_rng(0).normal(size=(d, d))
    known = np.sort(np.einsum("aij,ij->a", group, weight))
    products = np.einsum("aij,ik->ajk", group, weight).reshape(len(group), -1) @ group.reshape(len(group), -1).T
    above = np.clip(np.searchsorted(known, products), 1, len(known) - 1) if len(known) > 1 else np.zeros((1, 1), int)
    missed = np.minimum(np.abs(known[above] - products), np.abs(known[above - 1] - products))
    if np.any(missed > 1e-6):
        raise ValueError(
            f"the {len(group)} matrices are no group: products of them are not among them. Give all of a finite group"
        )
