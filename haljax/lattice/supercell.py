"""Periodic supercells of a lattice: which sites there are, in which order, and where a translated site lies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Supercell:
    """A supercell of a lattice with ``n_basis`` sites in the primitive cell. Static and hashable.

    Sites are integer 4-vectors (l, m, n, s): primitive cell (l, m, n), basis site s. Site i of an occupation array
    (..., n_sites) is basis site ``i // n_cells`` of cell ``i % n_cells``: each basis site has a contiguous block. Cells
    are numbered by the Hermite normal form of ``matrix``, so that supercells with the same lattice of periods have the
    same order, whichever vectors span it.

    Attributes
    ----------
    matrix : (3, 3) int; its columns are the supercell's vectors in primitive vectors (CASM's convention).
    n_basis : sites of the primitive cell.

    Raises
    ------
    ValueError
        The matrix is not of 3 x 3 integers, or singular; there is no basis site.
    """

    matrix: tuple[tuple[int, int, int], ...]
    n_basis: int = 1

    def __post_init__(self) -> None:
        matrix = integer_matrix(self.matrix, "a supercell's matrix")
        object.__setattr__(self, "matrix", tuple(tuple(int(v) for v in row) for row in matrix))
        if determinant(matrix) == 0:
            raise ValueError(
                f"The supercell matrix {self.matrix} is singular; its columns, the supercell's vectors in primitive "
                "vectors, must be linearly independent."
            )
        if self.n_basis < 1:
            raise ValueError(f"n_basis is {self.n_basis}; a primitive cell has at least one site.")

    @cached_property
    def hermite(self) -> np.ndarray:
        """(3, 3) lower triangular integers with a positive diagonal, whose columns span the same periods."""
        return hermite_normal_form(np.array(self.matrix, int))

    @property
    def n_cells(self) -> int:
        return abs(determinant(np.array(self.matrix, int)))

    @property
    def n_sites(self) -> int:
        return self.n_cells * self.n_basis

    def cells(self) -> np.ndarray:
        """(n_cells, 3) the cells in their order."""
        shape = np.diag(self.hermite)
        return np.stack(np.unravel_index(np.arange(self.n_cells), shape), axis=-1).astype(int)

    def sites(self) -> np.ndarray:
        """(n_sites, 4) the sites (l, m, n, s) in the order of occupation arrays."""
        cells = np.tile(self.cells(), (self.n_basis, 1))
        return np.concatenate([cells, np.repeat(np.arange(self.n_basis), self.n_cells)[:, None]], axis=1)

    def index(self, sites: Any) -> Any:
        """Place (...) in the occupation array of sites (..., 4), periodic. NumPy in, NumPy out; jittable on JAX."""
        xp = np if isinstance(sites, (np.ndarray, list, tuple)) else jnp
        sites = xp.asarray(sites)
        (a, _, _), (b, c, _), (d, e, f) = (tuple(int(v) for v in row) for row in self.hermite)
        l, m, n, s = (sites[..., i] for i in range(4))
        turns = l // a
        l, m, n = l - a * turns, m - b * turns, n - d * turns
        turns = m // c
        m, n = m - c * turns, n - e * turns
        return ((s * a + l) * c + m) * f + n % f

    def neighbours(self, offsets: Any) -> np.ndarray:
        """(n_cells, K) place of the sites at ``offsets`` (K, 4) from every cell: (l, m, n) added to it, s as given."""
        offsets = np.asarray(offsets, int).reshape(-1, 4)
        origin = np.concatenate([self.cells(), np.zeros((self.n_cells, 1), int)], axis=1)
        return self.index(origin[:, None, :] + offsets[None, :, :])

    def commensurate(self, cell: Any) -> bool:
        """Whether every period of this supercell is a period of ``cell`` (3, 3), columns in primitive vectors."""
        cell = integer_matrix(cell, "a commensurate cell")
        det = determinant(cell)
        if det == 0:
            raise ValueError(f"The cell {cell.tolist()} is singular; its columns must be linearly independent.")
        # adj(cell) @ matrix = det * inv(cell) @ matrix, in integers
        adjugate = np.array([np.cross(cell[:, i - 2], cell[:, i - 1]) for i in range(3)])
        return bool(np.all((adjugate @ np.array(self.matrix, int)) % det == 0))


def integer_matrix(matrix: Any, what: str) -> np.ndarray:
    """``matrix`` as (3, 3) integers, or a ValueError that names ``what``."""
    array = np.asarray(matrix)
    if array.shape != (3, 3) or not np.issubdtype(array.dtype, np.number) or np.any(array != np.round(array)):
        raise ValueError(
            f"{what[0].upper()}{what[1:]} must be 3 x 3 integers (columns in primitive vectors); got {matrix}."
        )
    return np.round(array).astype(int)


def determinant(matrix: np.ndarray) -> int:
    """Of a (3, 3) integer matrix, exactly."""
    a, b, c = (tuple(int(v) for v in column) for column in matrix.T)
    return a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])


def hermite_normal_form(matrix: np.ndarray) -> np.ndarray:
    """Column-style Hermite normal form: lower triangular, positive diagonal, each row reduced modulo its diagonal.

    Found by Euclid's algorithm on pairs of columns; spans the same lattice as the columns of ``matrix`` (3, 3).
    """
    columns = [[int(v) for v in column] for column in matrix.T]
    for row in range(3):
        for other in range(row + 1, 3):
            while columns[other][row]:
                turns = columns[row][row] // columns[other][row]
                columns[row], columns[other] = columns[other], _minus(columns[row], turns, columns[other])
        if columns[row][row] < 0:
            columns[row] = [-v for v in columns[row]]
        for other in range(row):
            columns[other] = _minus(columns[other], columns[other][row] // columns[row][row], columns[row])
    return np.array(columns).T


def _minus(a: Iterable[int], turns: int, b: Iterable[int]) -> list[int]:
    return [x - turns * y for x, y in zip(a, b, strict=True)]
