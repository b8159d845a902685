from __future__ import annotations

import numpy as np
import pytest

from haljax.lattice import Supercell, Wave, check_inside, energy, lattice, order_parameters, zigzag

from .crystals import fcc, hcp, lixcoo2, reference_data, rocksalt

L12_CELL = [[-1, 1, 1], [1, -1, 1], [1, 1, -1]]
L12 = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, -1, 1], [1, -1, 1, -1]])
COMMENSURATE = [
    ((4, 0, 0), (0, 4, 0), (0, 0, 4)),
    ((8, 0, 0), (0, 8, 0), (0, 0, 4)),
    ((12, 6, 0), (0, 6, 12), (0, 6, 0)),
    ((24, 12, 0), (0, 12, 24), (0, -12, 0)),
]


def l12():
    return order_parameters(fcc("Ni", "Al", a=3.6), L12_CELL, patterns=L12)


def eta_of(op, supercell, occupation):
    return (occupation == op.species) @ op.counters(supercell).T / (supercell.n_cells * len(op.sites))


def variants():
    return np.array([0.5 * np.eye(7)[0] + 0.5 * sign * np.eye(7)[i] for i in range(1, 7) for sign in (1, -1)])


def test_zigzag_patterns():
    op = zigzag(lixcoo2().lattice)
    assert (op.d, op.n_sub, op.sites, op.species) == (7, 32, (0,), 1)
    patterns = np.array(op.patterns)
    np.testing.assert_array_equal(patterns @ patterns.T, 32 * np.eye(7))
    np.testing.assert_array_equal(op.S, patterns.T)  # the pseudo-inverse of Q
    np.testing.assert_allclose(op.Q @ op.S, np.eye(7), atol=1e-15)
    signs = patterns[1:].T
    assert len(np.unique(signs, axis=0)) == 32 and np.all(np.prod(signs, axis=1) == 1)  # the even half-cube


def test_zigzag_polytope():
    op = zigzag(lixcoo2().lattice)
    assert op.polytope.normals.shape == (64, 7)
    inside = np.concatenate([variants(), np.zeros((1, 7)), np.eye(7)[:1]])
    assert np.all(op.polytope.contains(inside, tolerance=1e-12))
    outside = inside + 0.01 * (inside - 0.5 * np.eye(7)[0])
    assert not np.any(op.polytope.contains(outside))


def test_zigzag_group():
    op = zigzag(lixcoo2().lattice)
    group = op.group
    assert group.shape == (384, 7, 7) and np.array_equal(group[0], np.eye(7))
    assert np.all(np.isin(group, (-1, 0, 1))) and np.all(np.abs(group).sum(axis=1) == 1)  # signed permutations
    keys = {matrix.tobytes() for matrix in group + 0.0}
    assert len(keys) == 384
    products = np.einsum("aij,bjk->abik", group, group).reshape(-1, 7, 7) + 0.0
    assert {matrix.tobytes() for matrix in products} == keys  # closed
    images = np.einsum("gij,vj->gvi", group, variants())
    expected = {tuple(v) for v in variants()}
    assert all({tuple(v) for v in image + 0.0} == expected for image in images)


@pytest.mark.slow
def test_zigzag_group_is_the_published_one():
    def keys(group):
        return {tuple(matrix.ravel()) for matrix in np.asarray(group).astype(int)}

    reference = reference_data("lco_order_parameter_group.json")
    assert keys(zigzag(lixcoo2().lattice).group) == keys(reference)


@pytest.mark.parametrize("make", [lambda: zigzag(lixcoo2().lattice), l12], ids=["zigzag", "L12"])
def test_the_group_is_what_moving_a_configuration_does(make):
    op = make()
    supercell = Supercell(((4, 0, 0), (0, 4, 0), (0, 0, 4)), 1)
    occupation = np.random.default_rng(0).integers(2, size=supercell.n_sites)
    places = supercell.index(op.lattice.operate(supercell.sites() + [1, 2, 0, 0]))
    moved = np.zeros_like(places)
    np.put_along_axis(moved, places, np.broadcast_to(occupation, places.shape), axis=1)
    images = op.group @ eta_of(op, supercell, occupation)
    for configuration in moved:
        distance = np.abs(images - eta_of(op, supercell, configuration)[None]).max(axis=1)
        assert distance.min() < 1e-14


@pytest.mark.parametrize("matrix", COMMENSURATE)
def test_counters_of_any_commensurate_cell(matrix):
    op, supercell = zigzag(lixcoo2().lattice), Supercell(matrix, 1)
    counters = op.counters(supercell)
    assert counters.shape == (7, supercell.n_sites) and np.issubdtype(counters.dtype, np.integer)
    np.testing.assert_array_equal(counters @ counters.T, supercell.n_sites * np.eye(7))
    sign = np.array([1, 1, -1, -1])
    expected = sign[(supercell.cells() @ np.array([1, 3, 2]) + 3) % 4]  # order parameter 3
    np.testing.assert_array_equal(counters[3], expected)
    # a zigzag variant has eta_0 = 1/2 and one more of 1/2
    np.testing.assert_allclose(eta_of(op, supercell, (1 + expected) // 2), [0.5, 0, 0, 0.5, 0, 0, 0], atol=1e-15)


def test_the_zigzag_variants_are_degenerate():
    expansion = lixcoo2()
    op, supercell = zigzag(expansion.lattice), Supercell(COMMENSURATE[0], 1)
    counters = op.counters(supercell)
    occupations = np.array([(1 + sign * counters[i]) // 2 for i in range(1, 7) for sign in (1, -1)])
    np.testing.assert_array_equal(eta_of(op, supercell, occupations), variants())
    # ten digits of the published energy
    np.testing.assert_allclose(energy(expansion, supercell, occupations), -0.1701334192, atol=1e-9)


def test_l12():
    op = l12()
    np.testing.assert_array_equal(4 * op.Q, L12)
    np.testing.assert_array_equal(op.S, L12.T)
    assert op.group.shape == (24, 4, 4)  # all permutations of the four sublattices
    permutations = op.S @ op.group @ op.Q
    assert np.all(np.isin(np.round(permutations, 12), (0, 1)))
    assert op.polytope.normals.shape == (8, 4)
    assert bool(op.polytope.contains(np.array([0.25, 0.25, -0.25, -0.25]), tolerance=1e-12))  # Al on one sublattice
    cell = Supercell(((-8, 8, 8), (8, -8, 8), (8, 8, -8)), 1)
    assert op.counters(cell).shape == (4, 2048)


def test_fewer_than_all_patterns_of_a_sublattice_mean_no_other_order():
    # one composition wave only: x = S eta has the least norm, all other order parameters vanish
    chain = lattice(np.diag([1.0, 3, 4]), [[0, 0, 0]], [("A", "B")])
    cell = np.diag([2, 1, 1])
    op = order_parameters(chain, cell, waves=[Wave((0, 0, 0), 0, (1,)), Wave((1, 0, 0), 0, (1, -1))])
    np.testing.assert_array_equal(op.S, [[1, 1], [1, -1]])
    only = order_parameters(chain, cell, patterns=[[1, 1]])
    np.testing.assert_array_equal(only.S, [[1], [1]])
    # values other than +-1: eta = (2 x_0 - x_1) / 2 = 1 has its smallest x along the pattern
    uneven = order_parameters(chain, cell, patterns=[[2, -1]])
    np.testing.assert_allclose(uneven.S, [[0.8], [-0.4]])


def test_several_basis_sites():
    op = order_parameters(hcp(), np.eye(3, dtype=int), patterns=[[1, 1], [1, -1]])
    np.testing.assert_array_equal(op.sublattices, [[0, 0, 0, 0], [0, 0, 0, 1]])
    assert len(op.group) == 2  # the two sites are equivalent: eta_1 changes sign
    supercell = Supercell(((2, 0, 0), (0, 1, 0), (0, 0, 3)), 2)
    occupation = (supercell.sites()[:, 3] == 1).astype(int)
    np.testing.assert_allclose(eta_of(op, supercell, occupation), [0.5, -0.5])

    one = order_parameters(rocksalt(), np.eye(3, dtype=int), patterns=[[1]], species=2, sites=[0])
    supercell = Supercell(((2, 0, 0), (0, 2, 0), (0, 0, 2)), 2)
    counters = one.counters(supercell)
    np.testing.assert_array_equal(counters[0], supercell.sites()[:, 3] == 0)  # the other sublattice weighs nothing
    assert len(one.group) == 1


def test_a_subset_that_is_not_closed():
    lattice = lixcoo2().lattice
    full = zigzag(lattice)
    for chosen in ([0, 1], [0, 1, 2], [1, 2, 3, 4, 5]):
        subset = order_parameters(lattice, full.cell, patterns=np.array(full.patterns)[chosen])
        with pytest.raises(ValueError, match="not closed under the space group"):
            subset.group  # noqa: B018
    without_composition = order_parameters(lattice, full.cell, patterns=np.array(full.patterns)[1:])
    assert without_composition.group.shape == (384, 6, 6)


def test_supercells_that_do_not_fit():
    op = zigzag(lixcoo2().lattice)
    with pytest.raises(ValueError, match="not commensurate with the order parameters' cell"):
        op.counters(Supercell(((6, 0, 0), (0, 6, 0), (0, 0, 6)), 1))
    with pytest.raises(ValueError, match="2 basis sites, the lattice 1"):
        op.counters(Supercell(COMMENSURATE[0], 2))


def test_check_inside():
    op = zigzag(lixcoo2().lattice)
    check_inside(op, variants())
    check_inside(op, [0.3, 0, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"\(point 1\) are outside.* fraction -0.2 .*\(2 of 3 points"):
        check_inside(op, [variants()[0], [0.5, 0.5, 0.2, 0, 0, 0, 0], [1.1, 0, 0, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match="outside"):
        check_inside(op, [np.nan, 0, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="give 7 order parameters"):
        check_inside(op, [0.5, 0.5])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"patterns": L12 / 4}, "n_sub = 4 times the rows of Q"),
        ({"patterns": L12[:, :3]}, r"give \(d, 4\)"),
        ({"patterns": [[1, 1, 1, 1], [2, 2, 2, 2]]}, "not linearly independent"),
        ({}, "either waves or patterns"),
        ({"patterns": L12, "waves": []}, "either waves or patterns"),
        ({"waves": [Wave((1, 0, 0), 0, (1, 0, -1))]}, "not periodic in the cell"),
        ({"waves": [Wave((1, 0, 0), 0, (0.5, -0.5))]}, "must be integers"),
        ({"waves": [Wave((0.5, 0, 0), 0, (1, -1))]}, "must be integers"),
        ({"patterns": L12, "species": 2}, "species 2 is not one and the same"),
        ({"patterns": L12, "sites": [1]}, "active basis sites"),
    ],
)
def test_bad_order_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        order_parameters(fcc("Ni", "Al"), L12_CELL, **arguments)


def test_bad_cells_and_mixed_sites():
    for cell in (np.zeros((3, 3)), 0.5 * np.eye(3)):
        with pytest.raises(ValueError):
            order_parameters(fcc("Ni", "Al"), cell, patterns=[[1]])
    with pytest.raises(ValueError, match="not one and the same"):
        order_parameters(rocksalt(), np.eye(3, dtype=int), patterns=[[1, 1]])
