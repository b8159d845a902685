from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haljax.lattice.supercell import Supercell, hermite_normal_form

LCO = [[24, 12, 0], [0, 12, 24], [0, -12, 0]]


def matrices():
    rng = np.random.default_rng(0)
    found = [m for m in rng.integers(-4, 5, (60, 3, 3)) if round(np.linalg.det(m))]
    return [*found, np.array(LCO)]


def test_every_site_once_and_periodic():
    rng = np.random.default_rng(1)
    for matrix in matrices():
        cell = Supercell(matrix.tolist(), 2)
        assert cell.n_cells == abs(round(np.linalg.det(matrix)))
        sites = cell.sites()
        assert len(np.unique(sites, axis=0)) == cell.n_sites
        np.testing.assert_array_equal(cell.index(sites), np.arange(cell.n_sites))
        period = np.append(matrix @ rng.integers(-5, 6, 3), 0)
        np.testing.assert_array_equal(cell.index(sites + period), np.arange(cell.n_sites))


def test_the_order_depends_on_the_periods_alone():
    unimodular = np.array([[1, 2, 0], [0, 1, 0], [3, 1, -1]])
    for matrix in matrices():
        np.testing.assert_array_equal(hermite_normal_form(matrix), hermite_normal_form(matrix @ unimodular))


def test_index_in_jax():
    cell, sites = Supercell(LCO, 3), np.random.default_rng(2).integers([-50, -50, -50, 0], [50, 50, 50, 3], (40, 4))
    expected = cell.index(sites)
    for f in (cell.index, jax.jit(cell.index), jax.vmap(cell.index)):
        np.testing.assert_array_equal(f(jnp.asarray(sites)), expected)


def test_neighbours():
    cell = Supercell([[2, 0, 0], [0, 3, 0], [0, 0, 1]], 2)
    around = cell.neighbours([(1, 0, 0, 0), (0, -1, 0, 1)])
    cells = cell.cells()
    np.testing.assert_array_equal(cell.sites()[around[:, 0], :3], (cells + [1, 0, 0]) % [2, 3, 1])
    np.testing.assert_array_equal(cell.sites()[around[:, 1], :3], (cells - [0, 1, 0]) % [2, 3, 1])
    assert set(around[:, 1] // cell.n_cells) == {1}


def test_commensurate():
    rng = np.random.default_rng(3)
    for matrix in matrices():
        for cell in rng.integers(-2, 3, (5, 3, 3)):
            if round(np.linalg.det(cell)):
                turns = np.linalg.solve(cell, matrix)
                assert Supercell(matrix.tolist()).commensurate(cell) == np.allclose(turns, np.round(turns), atol=1e-9)
    assert Supercell(LCO).commensurate([[4, 4, 2], [-4, 0, -2], [0, 0, 2]])


@pytest.mark.parametrize(
    "matrix, n_basis, message",
    [
        ([[1, 0, 0], [0, 1, 0], [1, 1, 0]], 1, "singular"),
        ([[1, 0], [0, 1]], 1, "3 x 3 integers"),
        ([[1.5, 0, 0], [0, 1, 0], [0, 0, 1]], 1, "3 x 3 integers"),
        (np.eye(3).tolist(), 0, "at least one site"),
    ],
)
def test_bad_input(matrix, n_basis, message):
    with pytest.raises(ValueError, match=message):
        Supercell(matrix, n_basis)
